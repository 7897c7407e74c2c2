"""Pictures of a study: its history, and its points as parallel coordinates."""

from __future__ import annotations

import warnings
from pathlib import Path

import optuna

from training.config.search import SearchConfig


def write_plots(study: optuna.Study, config: SearchConfig, folder: Path) -> list[Path]:
    """Write `history.png` and `parallel.png` with Optuna's own plots, and return their paths."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot
    from optuna.visualization.matplotlib import plot_optimization_history, plot_parallel_coordinate

    paths = []
    for name, plot in (
        ("history.png", plot_optimization_history),
        ("parallel.png", plot_parallel_coordinate),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Optuna calls its plots experimental
            axes = plot(study, target_name=config.metric)
            figure = axes.figure
            figure.set_size_inches(10, 5)
            figure.savefig(folder / name, dpi=110, bbox_inches="tight", metadata={"Software": None})
        pyplot.close(figure)
        paths.append(folder / name)
    return paths
