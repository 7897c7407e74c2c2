"""The loss curve: one JSON line per logged step, and a picture of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

COLUMNS = ("step", "epoch", "loss", "learning_rate", "grad_norm", "eval_loss")


def loss_points(
    log_history: Sequence[dict[str, Any]], columns: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Return the Trainer's log as one point per step, with what was measured there.

    Args:
        columns: Figures of the method that are kept next to the loss, with those of held-out rows.
    """
    names = [*COLUMNS, *columns, *(f"eval_{name}" for name in columns)]
    points: dict[int, dict[str, Any]] = {}
    for entry in log_history:
        if "loss" in entry or "eval_loss" in entry:
            points.setdefault(entry["step"], {}).update(entry)
    return [
        {name: points[step][name] for name in names if name in points[step]}
        for step in sorted(points)
    ]


def loss_limits(losses: Sequence[float]) -> tuple[float, float]:
    """Return the ends of the axis of losses, which has 0; the loss of `robust` may be negative."""
    low, high = 1.08 * min(0.0, *losses), 1.08 * max(0.0, *losses)
    return (low, high) if low < high else (0.0, 1.0)


def write_curve(points: Sequence[dict[str, Any]], folder: Path, name: str = "loss") -> None:
    """Write `loss.jsonl` and `loss.png`, which draws `name` of training and of held-out rows."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    lines = (json.dumps(point) + "\n" for point in points)
    (folder / "loss.jsonl").write_text("".join(lines), encoding="utf-8")
    figure = Figure(figsize=(8, 4.5), dpi=120)
    FigureCanvasAgg(figure)
    # Fixed margins: a layout that measures every label takes twice as long.
    margins = {"left": 0.13, "right": 0.98, "bottom": 0.12, "top": 0.92}
    axes = figure.subplots(gridspec_kw=margins)
    title = name.removeprefix("rewards/")
    for column, label, style in (
        (name, "training", {"color": "#2563eb"}),
        (f"eval_{name}", "held out", {"color": "#d97706", "marker": "o", "markersize": 5}),
    ):
        measured = [(point["step"], point[column]) for point in points if column in point]
        if measured:
            steps, found = zip(*measured, strict=True)
            axes.plot(steps, found, label=f"{label} ({found[-1]:.3g})", **style)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss of the answers (nats per token)" if name == "loss" else title)
    axes.set_title(f"{title.capitalize()} during fine-tuning; the last value in brackets")
    values = [p[column] for p in points for column in (name, f"eval_{name}") if column in p]
    if name == "loss":
        axes.set_ylim(*loss_limits(values))
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend()
    # Without the metadata, the bytes of the picture depend only on the points.
    figure.savefig(folder / "loss.png", metadata={"Software": None})
