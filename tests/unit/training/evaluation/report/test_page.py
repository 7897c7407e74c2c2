"""The page of answers, in a real browser where there is one."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.browser import OPEN_ALL, OVERFLOW, opened
from tests.unit.training.evaluation.metrics.rows import made
from training.config import EvaluationConfig
from training.evaluation.report.page import MAX_ROWS, mismatch_page

if TYPE_CHECKING:
    from playwright.sync_api import Browser

CONFIG = EvaluationConfig(fields="lines")
RIGHT = "Category: Email\nPriority: low"
OTHER = "Category: Data\nPriority: low"
EXPECTED = [RIGHT, RIGHT, OTHER, OTHER]
BASE = [RIGHT, "Category: Data\nPriority: low", "nonsense", OTHER]
TUNED = [RIGHT, RIGHT, "Category: Data\nPriority: high", "Category: 메일\nPriority: low"]
HOSTILE = "</script><script>document.title='broken'</script><!-- \u2028 &lt;b&gt;"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    answers = {
        "base": made(list(zip(EXPECTED, BASE, strict=True)), prompt=HOSTILE),
        "tuned": made(list(zip(EXPECTED, TUNED, strict=True)), prompt=HOSTILE),
    }
    path = tmp_path_factory.mktemp("page") / "mismatches.html"
    path.write_text(mismatch_page("Four rows", answers, CONFIG), encoding="utf-8")
    return path


CHOICES: list[tuple[dict[str, str], list[int]]] = [
    ({}, [2, 3, 4]),
    ({"show": "all"}, [2, 3, 4, 1]),
    ({"show": "wrong-0"}, [2, 3]),
    ({"show": "fixed"}, [2]),
    ({"show": "broken"}, [4]),
    ({"show": "all", "field": "Priority"}, [3]),
    ({"show": "all", "class": "Category=Email"}, [2, 1]),
    ({"show": "all", "search": "메일"}, [4]),
]
DRIVER = """(choices) => choices.map((choice) => {
  for (const id of ["show", "field", "class", "search"]) {
    document.getElementById(id).value = choice[id] || (id === "show" ? "mismatches" : "");
    document.getElementById(id).dispatchEvent(new Event("input"));
  }
  return [...document.querySelectorAll("article > .role")].map((e) => +e.textContent.slice(4));
})"""


def test_the_page_shows_the_rows_that_its_filters_choose(browser: Browser, page: Path) -> None:
    with opened(browser, page) as shown:
        found = shown.page.evaluate(DRIVER, [choice for choice, _ in CHOICES])
        assert found == [rows for _, rows in CHOICES]
        assert shown.problems == []
        assert shown.requests == [f"file://{page}"]


def test_a_view_can_be_linked(browser: Browser, page: Path) -> None:
    with opened(browser, page, state="#show=all&class=Category%3DEmail", width=360) as shown:
        text = shown.page.inner_text("body")
        assert shown.page.title() == "Four rows"
        assert shown.page.evaluate(OVERFLOW) <= 0
        shown.page.evaluate(OPEN_ALL)
        assert shown.violations() == []
    assert re.findall(r"row (\d+)", text) == ["2", "1"]
    assert "2 rows" in text
    assert "base: 2 of 4 right (50.0 %) · tuned: 2 of 4 right (50.0 %)" in text
    # The hostile prompt of both rows is text.
    assert text.count("document.title='broken'") == 2


def test_a_page_needs_no_network(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "default-src 'none'" in text
    assert not re.findall(r"""(?:src|href)\s*=\s*["']|@import|url\(""", text)


def test_the_data_of_a_page_can_be_read_again(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    (data,) = re.findall(r'id="data">(.*?)</script>', text, flags=re.DOTALL)
    rows = json.loads(data)["rows"]
    assert [row["number"] for row in rows] == [2, 3, 4, 1]
    assert rows[0]["prompt"] == [{"role": "user", "content": HOSTILE}]
    assert json.loads(data)["targets"] == ["Category"]


def test_a_page_holds_wrong_answers_first_and_not_every_row() -> None:
    pairs = [("a", "a")] * MAX_ROWS + [("a", "b")] * 2
    text = mismatch_page("Many", {"model": made(pairs)}, EvaluationConfig())
    (data,) = re.findall(r'id="data">(.*?)</script>', text, flags=re.DOTALL)
    rows = json.loads(data)["rows"]
    assert len(rows) == MAX_ROWS
    assert [row["right"] for row in rows[:3]] == [[False], [False], [True]]
    assert json.loads(data)["num_right"] == [MAX_ROWS]
