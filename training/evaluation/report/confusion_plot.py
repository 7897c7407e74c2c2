"""Confusion matrices as one picture."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from tuneline.core.environment import require


def draw_confusions(tables: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Write a PNG with one matrix per title; each row is shaded by the share of its expected class.

    A class, or a title, with a letter that matplotlib's own font lacks, such as a Korean one, is
    written by its number, from 1. An installed font would make another file on every machine.

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
        names = [_drawn(name, f"class {n}") for n, name in enumerate(table["columns"], start=1)]
        axes.set_title(_drawn(title, f"field {place}"), parse_math=False)
        axes.set_xticks(range(len(names)), names, rotation=60, ha="right", parse_math=False)
        axes.set_yticks(range(len(table["rows"])), names[: len(table["rows"])], parse_math=False)
        axes.set_xlabel("given")
        axes.set_ylabel("expected")
        for y, row in enumerate(table["rows"]):
            for x, count in enumerate(row):
                if count:
                    color = "white" if shares[y][x] > 0.5 else "black"
                    axes.text(x, y, count, ha="center", va="center", color=color, fontsize=8)
    figure.savefig(path, dpi=110)


def _drawn(name: str, number: str) -> str:
    """Return a name, or its number if the font lacks a letter of it."""
    return name if {*map(ord, name)} <= _letters() else number


@lru_cache(maxsize=1)
def _letters() -> frozenset[int]:
    """Return the code points that matplotlib's own font has."""
    manager = require("matplotlib.font_manager", "train")
    font = manager.get_font(manager.findfont("DejaVu Sans"))
    return frozenset(font.get_charmap())
