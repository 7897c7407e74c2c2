"""One picture of a training: losses, learning rate, gradient norm, memory and speed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tuneline.core.progress import logger

PICTURE = "curves.png"
PANELS: tuple[tuple[str, tuple[str, ...], float], ...] = (
    ("loss of the answers (nats per token)", ("loss", "eval_loss"), 1),
    ("learning rate", ("learning_rate",), 1),
    ("gradient norm", ("grad_norm",), 1),
    ("memory (MiB)", ("memory_bytes",), 2**20),
    ("tokens/s without padding", ("tokens_per_s",), 1),
)
"""Title, figures of the log, and the divisor of each panel."""


def draw_curves(
    log_history: Sequence[Mapping[str, Any]], folder: Path, measured: Sequence[str] = ()
) -> None:
    """Write the curves of a training; a picture that cannot be drawn is only a warning."""
    try:
        write_curves(log_history, folder, measured)
    except Exception as error:  # noqa: BLE001 (the training is done; nothing here may end it)
        logger.warning("  %s is not drawn: %s: %s", PICTURE, type(error).__name__, error)


def panel_limits(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the limits of a panel that begins at 0; None if a value is below 0 or none is finite.

    There is room above: the line of a steady figure would lie under the frame.
    """
    finite = [value for value in values if math.isfinite(value)]
    if not finite or min(finite) < 0:
        return None
    return 0.0, 1.05 * max(finite) or 1.0


def write_curves(
    log_history: Sequence[Mapping[str, Any]], folder: Path, measured: Sequence[str] = ()
) -> Path:
    """Draw the log into `curves.png`; figures that were not logged have no panel.

    Args:
        measured: Other figures of held-out rows, each in a panel of its own.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    wanted = [*PANELS, *((name.removeprefix("eval_"), (name,), 1) for name in measured)]
    panels = [
        panel
        for panel in wanted
        if any(name in entry for entry in log_history for name in panel[1])
    ]
    folder.mkdir(parents=True, exist_ok=True)
    columns = 2
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(11, 3.2 * rows), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    for place, (title, names, divisor) in enumerate(panels, start=1):
        axes = figure.add_subplot(rows, columns, place)
        for name in names:
            points = [(e["step"], e[name] / divisor) for e in log_history if name in e]
            if points:
                marker = "o" if name.startswith("eval_") else None
                label = "held out" if name.startswith("eval_") else "training"
                axes.plot(*zip(*points, strict=True), marker=marker, markersize=4, label=label)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("optimizer step", fontsize=8)
        limits = panel_limits([e[n] / divisor for n in names for e in log_history if n in e])
        if limits is not None:
            axes.set_ylim(limits)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        if len(names) > 1:
            axes.legend(fontsize=8)
    path = folder / PICTURE
    figure.savefig(path, metadata={"Software": None})
    return path
