from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from training.evaluation.report.confusion_plot import draw_confusions

ROWS = [[3, 1, 0, 0], [0, 2, 0, 1]]


def _drawn(folder: Path, columns: list[str], title: str) -> bytes:
    path = folder / "confusion.png"
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of letters that it cannot draw
        draw_confusions({title: {"columns": columns, "rows": ROWS}}, path)
    return path.read_bytes()


def test_classes_without_letters_in_the_font_are_drawn_by_number(tmp_path: Path) -> None:
    found = _drawn(tmp_path, ["배송", "refund", "(another)", "(missing)"], "분류")
    assert found == _drawn(tmp_path, ["class 1", "refund", "(another)", "(missing)"], "field 1")
    assert found != _drawn(tmp_path, ["class 1", "class 2", "(another)", "(missing)"], "field 1")


@pytest.mark.parametrize("name", ["$5 to $10_{", "größer", "цена", "$\\frac{1}$"])
def test_classes_are_drawn_as_they_are_spelt(tmp_path: Path, name: str) -> None:
    found = _drawn(tmp_path, [name, "b", "(another)", "(missing)"], "answer")
    assert found != _drawn(tmp_path, ["class 1", "b", "(another)", "(missing)"], "answer")
