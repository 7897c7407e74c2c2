"""Confusion matrices as one picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tuneline.core.environment import require


def draw_confusions(tables: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Write a PNG with one matrix per title; each row is shaded by the share of its expected class.

    Args:
        tables: By title, `columns` and `rows` of a confusion matrix.
        path: The PNG file.

    Raises:
        MissingError: matplotlib is not installed.
    """
    figure_type = require("matplotlib.figure", "train").Figure
    size = max(len(table["columns"]) for table in tables.values())
    side = min(12.0, 3.0 + 0.45 * size)
    figure = figure_type(figsize=(side * len(tables), side), layout="constrained")
    for place, (title, table) in enumerate(tables.items(), start=1):
        axes = figure.add_subplot(1, len(tables), place)
        shares = [[count / (sum(row) or 1) for count in row] for row in table["rows"]]
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        axes.set_title(title)
        axes.set_xticks(range(len(table["columns"])), table["columns"], rotation=60, ha="right")
        axes.set_yticks(range(len(table["rows"])), table["columns"][: len(table["rows"])])
        axes.set_xlabel("given")
        axes.set_ylabel("expected")
        for y, row in enumerate(table["rows"]):
            for x, count in enumerate(row):
                if count:
                    color = "white" if shares[y][x] > 0.5 else "black"
                    axes.text(x, y, count, ha="center", va="center", color=color, fontsize=8)
    figure.savefig(path, dpi=110)
