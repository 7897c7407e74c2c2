"""The page of answers, in a real browser where there is one."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.unit.training.evaluation.metrics.rows import made
from training.config import EvaluationConfig
from training.evaluation.report.page import MAX_ROWS, mismatch_page

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


def opened(page: Path, state: str = "") -> str:
    """Return the text of the page's body after its script ran."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("there is no Chromium here")
    done = subprocess.run(
        [
            chromium, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom",
            f"--user-data-dir={page.parent / 'profile'}", f"file://{page}#{state}",
        ],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert "broken" not in re.findall("<title>(.*?)</title>", done.stdout)
    body = re.sub(r"<script.*?</script>", "", done.stdout, flags=re.DOTALL)
    return html.unescape(re.sub(r"<[^>]+>", "", body))


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
DRIVER = """
const found = [];
for (const choice of CHOICES) {
  for (const id of ["show", "field", "class", "search"]) {
    document.getElementById(id).value = choice[id] || (id === "show" ? "mismatches" : "");
    document.getElementById(id).dispatchEvent(new Event("input"));
  }
  found.push([...document.querySelectorAll("article > .role")].map((e) => +e.textContent.slice(4)));
}
document.body.append("FOUND " + JSON.stringify(found) + " END");
"""


def test_the_page_shows_the_rows_that_its_filters_choose(page: Path) -> None:
    driven = page.with_name("driven.html")
    choices = json.dumps([choice for choice, _ in CHOICES])
    script = f"<script>{DRIVER.replace('CHOICES', choices)}</script></body>"
    driven.write_text(page.read_text(encoding="utf-8").replace("</body>", script))
    (found,) = re.findall("FOUND (.*?) END", opened(driven))
    assert json.loads(found) == [rows for _, rows in CHOICES]


def test_a_view_can_be_linked(page: Path) -> None:
    text = opened(page, "show=all&class=Category%3DEmail")
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
