"""The loss curve: one JSON line per logged step, and a picture of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

COLUMNS = ("step", "epoch", "loss", "learning_rate", "grad_norm", "eval_loss")


def loss_points(log_history: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The Trainer's log as one point per step, with the columns that were measured there."""
    points: dict[int, dict[str, Any]] = {}
    for entry in log_history:
        if "loss" in entry or "eval_loss" in entry:
            points.setdefault(entry["step"], {}).update(entry)
    return [
        {name: points[step][name] for name in COLUMNS if name in points[step]}
        for step in sorted(points)
    ]


def write_curve(points: Sequence[dict[str, Any]], folder: Path) -> None:
    """Write `loss.jsonl` and `loss.png`; the held-out loss is in nats per answer token, as the
    training loss is."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    lines = (json.dumps(point) + "\n" for point in points)
    (folder / "loss.jsonl").write_text("".join(lines), encoding="utf-8")
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, label, style in (
        ("loss", "training", {"color": "#2563eb"}),
        ("eval_loss", "held out", {"color": "#d97706", "marker": "o", "markersize": 5}),
    ):
        measured = [(point["step"], point[name]) for point in points if name in point]
        if measured:
            steps, values = zip(*measured, strict=True)
            axes.plot(steps, values, label=f"{label} ({values[-1]:.3g})", **style)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss of the answers (nats per token)")
    axes.set_title("Loss during fine-tuning; the last value in brackets")
    losses = [point[name] for point in points for name in ("loss", "eval_loss") if name in point]
    axes.set_ylim(0, 1.08 * max(losses))
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend()
    # Without the metadata, the bytes of the picture depend only on the points.
    figure.savefig(folder / "loss.png", metadata={"Software": None})
