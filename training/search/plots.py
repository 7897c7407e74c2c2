"""Pictures of a search: its trials in order, and its points as parallel coordinates."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from training.config.search import ChoicesConfig, SearchConfig

Trials = Sequence[Mapping[str, Any]]
MOST_CHARACTERS = 28
"""Of a choice on an axis."""
LABEL_BOX = {"facecolor": "white", "alpha": 0.7, "lw": 0, "pad": 0.8}


def write_plots(trials: Trials, config: SearchConfig, folder: Path) -> list[Path]:
    """Write `history.png` and `parallel.png`, and return their paths.

    Args:
        trials: Trials with `number`, `state`, `value` and `values`; one at least is complete.
    """
    paths = []
    for name, draw in (("history.png", _history), ("parallel.png", _parallel)):
        draw(sorted(trials, key=lambda trial: trial["number"]), config, folder / name)
        paths.append(folder / name)
    return paths


def _figure(width: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, 4.8), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _history(trials: Trials, config: SearchConfig, path: Path) -> None:
    """Draw the metric of each trial in the order of their start, and the best one so far."""
    from matplotlib.ticker import MaxNLocator

    figure = _figure(9)
    axes = figure.add_subplot()
    complete = [trial for trial in trials if trial["state"] == "complete"]
    places = {trial["number"]: place for place, trial in enumerate(trials, start=1)}
    choose = min if config.direction == "minimize" else max
    best = [choose(t["value"] for t in complete[: n + 1]) for n in range(len(complete))]
    at = [places[trial["number"]] for trial in complete]
    axes.plot(at, [t["value"] for t in complete], "o", color="tab:blue", label="complete")
    axes.step([*at, len(trials)], [*best, best[-1]], where="post", color="tab:red", label="best")
    winner = next(t for t in complete if t["value"] == best[-1])
    axes.annotate(
        f"trial {winner['number']}", (places[winner["number"]], best[-1]), xytext=(5, 5),
        textcoords="offset points", fontsize=8,
    )  # fmt: skip
    for state, mark in (("pruned", "x"), ("fail", "v")):
        found = [places[trial["number"]] for trial in trials if trial["state"] == state]
        if found:
            # They have no value, so they are on the lower edge of the picture.
            edge = axes.get_xaxis_transform()
            axes.plot(
                found, [0.02] * len(found), mark, color="tab:gray", transform=edge,
                label="failed" if state == "fail" else state, clip_on=False,
            )  # fmt: skip
    axes.set_xlabel("trial, in the order of their start")
    axes.set_ylabel(config.metric)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    # Trials that were interrupted leave gaps in the numbers.
    names = {float(place): str(number) for number, place in places.items()}
    axes.xaxis.set_major_formatter(lambda place, _: names.get(place, ""))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, metadata={"Software": None})


def _parallel(trials: Trials, config: SearchConfig, path: Path) -> None:
    """Draw each complete trial as a line over one axis per key; the better, the darker."""
    ranked = worst_first(trials, config)
    scales = [_scale(config, name, ranked) for name in config.space]
    values = [trial["value"] for trial in ranked]
    scales.append(_numbers(values, min(values), max(values)))
    figure = _figure(max(7.0, 1.9 * len(scales)))
    axes = figure.add_subplot()
    for rank, trial in enumerate(ranked, start=1):
        heights = [
            scale[0](value)
            for scale, value in zip(
                scales, [*(trial["values"][n] for n in config.space), trial["value"]], strict=True
            )
        ]
        is_best = rank == len(ranked)
        shade = str(0.85 - 0.75 * rank / len(ranked))
        axes.plot(
            heights, color="tab:red" if is_best else shade, linewidth=2.4 if is_best else 1.2,
            label=f"trial {trial['number']}, the best" if is_best else None, zorder=2 + rank,
        )  # fmt: skip
    for place, (_, ticks) in enumerate(scales):
        axes.axvline(place, color="black", linewidth=0.8)
        for height, text in ticks:
            axes.annotate(
                text, (place, height), xytext=(4, 0), textcoords="offset points", fontsize=8,
                va="center", zorder=1000, bbox=LABEL_BOX,
            )  # fmt: skip
    names = [*config.space, config.metric]
    axes.set_xticks(range(len(names)), [name.replace(".", ".\n", 1) for name in names], fontsize=9)
    axes.set_yticks([])
    axes.set_ylim(-0.04, 1.04)
    axes.set_xlim(-0.1, len(names) - 0.6)
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)
    figure.legend(fontsize=8, loc="outside upper right")
    figure.savefig(path, metadata={"Software": None})


def worst_first(trials: Trials, config: SearchConfig) -> list[Mapping[str, Any]]:
    """Return the complete trials, the best one last; of equal ones, the first is the best."""
    sign = -1 if config.direction == "minimize" else 1
    complete = [trial for trial in trials if trial["state"] == "complete"]
    return sorted(complete, key=lambda trial: (sign * trial["value"], -trial["number"]))


def _scale(config: SearchConfig, name: str, trials: Trials) -> Any:
    """Return where the values of a key are on its axis, from 0 to 1, and the labels there."""
    entry = config.space[name]
    if not isinstance(entry, ChoicesConfig):
        drawn = [trial["values"][name] for trial in trials]
        # The first point has the values of run.yaml, which may be between two steps.
        return _numbers(drawn, entry.low, entry.high, log=entry.log)
    texts = [json.dumps(choice, sort_keys=True) for choice in entry.choices]
    if all(isinstance(c, int | float) and not isinstance(c, bool) for c in entry.choices):
        texts = [json.dumps(choice) for choice in sorted(entry.choices)]  # type: ignore[type-var]
    last = max(1, len(texts) - 1)
    ticks = [(place / last, text.strip('"')[:MOST_CHARACTERS]) for place, text in enumerate(texts)]
    return (lambda value: texts.index(json.dumps(value, sort_keys=True)) / last), ticks


def _numbers(drawn: Sequence[float], low: float, high: float, *, log: bool = False) -> Any:
    change = math.log if log else float
    first, last = change(low), change(high)
    width = last - first or 1.0

    def height(value: float) -> float:
        return (change(value) - first) / width

    whole = all(float(value).is_integer() for value in (*drawn, low, high))
    marks = [low + (high - low) * part / 4 for part in range(5)]
    if log:
        marks = [math.exp(first + width * part / 4) for part in range(5)]
    elif whole:
        marks = list(dict.fromkeys(round(mark) for mark in marks))
    return height, [(height(mark), f"{mark:.4g}" if whole else f"{mark:.3g}") for mark in marks]
