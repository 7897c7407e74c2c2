"""One picture of a report: findings by check, lengths, languages and labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from training.data.checks.run import Checked

KEPT, CHANGED, DROPPED = "#d97706", "#2563eb", "#b91c1c"
NUM_BARS = 10
LABEL_LENGTH = 28


def draw_checks(checked: Checked, report: dict[str, Any], path: Path) -> None:
    """Write the picture as PNG or SVG, by the path's suffix."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    # The same rows give the same bytes: no date, no random identifiers in an SVG.
    with mpl.rc_context({"svg.hashsalt": "tuneline", "font.size": 9}):
        figure = Figure(figsize=(11, 6.5), dpi=120, layout="constrained")
        axes = figure.subplot_mosaic("AB;AC", width_ratios=(1.15, 1))
        _draw_findings(axes["A"], report)
        upper, lower = axes["B"], axes["C"]
        _draw_lengths(upper, checked)
        _draw_mix(lower, report)
        rows = report["rows"]["train"]
        title = f"{rows['num_read']:,} rows read, {rows['num_kept']:,} kept"
        held = report["rows"]["heldout"]
        if held["num_read"]:
            title += f"; held out: {held['num_read']:,} read, {held['num_kept']:,} kept"
        figure.suptitle(title)
        is_svg = path.suffix.lower() == ".svg"
        figure.savefig(path, metadata={"Date": None} if is_svg else {"Software": None})


def _draw_findings(axes: Any, report: dict[str, Any]) -> None:
    checks = report["checks"]
    places = np.arange(len(checks))
    at = np.zeros(len(checks))
    for color, label, values in (
        (DROPPED, "dropped", [check["num_dropped"] for check in checks]),
        (CHANGED, "changed", [check["num_changed"] for check in checks]),
        (KEPT, "kept", [_num_kept(check) for check in checks]),
    ):
        axes.barh(places, values, left=at, color=color, label=label, height=0.65)
        at += np.array(values)
    for place, check in zip(places, checks, strict=True):
        axes.annotate(
            f"{check['num_rows']:,}", (at[place], place), xytext=(4, 0),
            textcoords="offset points", va="center", color="#374151",
        )  # fmt: skip
    axes.set_yticks(places, [check["check"].replace("_", " ") for check in checks])
    axes.invert_yaxis()
    # A few findings among thousands stay visible on a logarithmic axis that begins at zero.
    axes.set_xscale("symlog", linthresh=1)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlim(0, max(at.max(initial=0) * 3, 10))
    axes.set(xlabel="rows with findings", title="Findings by check")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(loc="lower right")


def _num_kept(check: dict[str, Any]) -> int:
    return int(check["num_rows"] - check["num_dropped"] - check["num_changed"])


def _draw_lengths(axes: Any, checked: Checked) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    values = checked.whole.characters[checked.whole.kept(False)]
    least = max(int(values.min(initial=1 << 31)), 1) if len(values) else 1
    bins = np.geomspace(least, max(int(values.max(initial=1)), least + 1), 40)
    for column, label, color in ((0, "prompt", "#2563eb"), (1, "answer", "#059669")):
        axes.hist(values[:, column].clip(least), bins=bins, label=label, color=color, alpha=0.55)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set(xlabel="characters", ylabel="training rows", title="Lengths")
    axes.grid(alpha=0.3)
    axes.legend()


def _draw_mix(axes: Any, report: dict[str, Any]) -> None:
    """Draw the labels; the languages if the answers are free text."""
    if report["labels"]:
        title = "Labels"
        bars = [(entry["label"], entry["num_rows"]) for entry in report["labels"]]
    else:
        title, bars = "Languages of the answers", list(report["languages"].items())
    if len(bars) > NUM_BARS:
        rest = sum(count for _, count in bars[NUM_BARS - 1 :])
        bars = [*bars[: NUM_BARS - 1], (f"{len(bars) - NUM_BARS + 1} others", rest)]
    # The font of matplotlib has no Korean, Chinese or Japanese letters.
    names = [name if name.isascii() else ascii(name)[1:-1] for name, _ in bars]
    short = [n if len(n) <= LABEL_LENGTH else n[: LABEL_LENGTH - 3] + "..." for n in names]
    places = np.arange(len(bars))
    axes.barh(places, [count for _, count in bars], color="#7c3aed", height=0.65)
    axes.set_yticks(places, short, parse_math=False)
    axes.invert_yaxis()
    axes.set(xlabel="training rows", title=title)
    axes.grid(axis="x", alpha=0.3)
