"""The page of a release in a real browser: screen, phone, dark, print and screen reader."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.browser import OPEN_ALL, OVERFLOW, opened
from tests.integration.release.line import write_line
from tests.unit.core.page.pages import HOSTILE, document
from tuneline.core.page.blocks import Badge, Column, Document, Section, Table, Tone
from tuneline.core.page.to_html import html_page

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = {"evaluation": {"metrics": ["exact_match"], "forgetting": True}}
    return write_line(tmp_path_factory.mktemp("line"), config=config).released() / "report.html"


@pytest.fixture(scope="module")
def every_block(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("blocks") / "blocks.html"
    path.write_text(html_page(document("plain")), encoding="utf-8")
    return path


def test_the_page_needs_no_network_and_fits_a_phone(browser: "Browser", page: Path) -> None:
    with opened(browser, page, width=360) as shown:
        shown.page.evaluate(OPEN_ALL)
        assert shown.page.evaluate(OVERFLOW) <= 0
        assert shown.problems == []
        assert shown.requests == [f"file://{page}"]
        # A thousand pixels of plot would be unreadable if they were scaled down.
        widths = shown.page.evaluate(
            "[...document.querySelectorAll('svg')].map((e) => e.getBoundingClientRect().width)"
        )
        assert len(widths) >= 4
        assert min(widths) > 300


def test_a_long_address_in_a_reason_leaves_the_other_columns_their_width(
    browser: "Browser", tmp_path: Path
) -> None:
    address = "https://example.com/" + "1234567890" * 9
    words = "the served model is PASS; all answers are equal, and log-probabilities too"
    table = Table("t", (Column("gate"), Column("result"), Column("required")),
                  (("load", f"Waived: {address}", words),), is_stacked=True)  # fmt: skip
    badge = Badge("FAIL", Tone.BAD)
    shown_page = Document("t", "t", badge, "t", (), (), (Section("s", "s", (table,)),), "t")
    path = tmp_path / "page.html"
    path.write_text(html_page(shown_page), encoding="utf-8")
    with opened(browser, path, width=1280) as shown:
        assert shown.page.evaluate(OVERFLOW) <= 0
        box = shown.page.locator("td").last.bounding_box()
        sheet = shown.page.locator("section").bounding_box()
    assert box is not None and sheet is not None
    assert box["width"] > 180
    assert box["x"] + box["width"] <= sheet["x"] + sheet["width"] + 1


def test_a_long_result_leaves_the_condition_words_in_a_line(browser: "Browser", page: Path) -> None:
    with opened(browser, page, width=1280) as shown:
        shown.page.evaluate(OPEN_ALL)
        widths = shown.page.evaluate(
            "[...document.querySelectorAll('#gates td[data-label=required]')]"
            ".map((e) => e.getBoundingClientRect().width)"
        )
        assert shown.page.evaluate(OVERFLOW) <= 0
    assert len(widths) >= 10
    assert min(widths) >= 170  # pixels: three words of 16 px


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_block_has_contrast_in_both_schemes(
    browser: "Browser", every_block: Path, scheme: str
) -> None:
    with opened(browser, every_block) as shown:
        shown.page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]  # one of two
        back = shown.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (back == "rgb(255, 255, 255)") == (scheme == "light")
        shown.page.evaluate(OPEN_ALL)
        assert shown.violations() == []


def test_a_screen_reader_gets_verdict_tables_and_numbers(browser: "Browser", page: Path) -> None:
    with opened(browser, page) as shown:
        assert shown.violations() == []
        tree = shown.page.locator("body").aria_snapshot()
        for landmark in ("banner", "navigation", "main", "contentinfo"):
            assert shown.page.get_by_role(landmark).count() == 1, landmark
        pictures = [
            one.get_attribute("aria-label") or "" for one in shown.page.get_by_role("img").all()
        ]
    assert 'heading "support-tickets PASS" [level=1]' in tree
    assert 'columnheader "result"' in tree
    assert 'rowheader "merged"' in tree
    assert len(pictures) >= 4
    assert all(any(letter.isdigit() for letter in picture) for picture in pictures)


def test_the_page_prints_with_its_folds_open(browser: "Browser", page: Path) -> None:
    with opened(browser, page) as shown:
        pdf = shown.page.pdf(format="A4")
        shown.page.emulate_media(media="print", color_scheme="dark")
        shown.page.set_viewport_size({"width": 680, "height": 960})  # A4 without its margins
        assert shown.page.evaluate(OVERFLOW) <= 0
        folded = shown.page.locator("details .inside").first
        assert folded.evaluate("(e) => e.getBoundingClientRect().height") > 20
        color = shown.page.evaluate(
            "getComputedStyle(document.documentElement).getPropertyValue('--text')"
        )
        assert color.strip() == "#191d23"
    assert pdf.startswith(b"%PDF")
    assert pdf.count(b"/Type /Page\n") + pdf.count(b"/Type /Page ") >= 3


def test_markup_in_every_place_stays_text(browser: "Browser", tmp_path: Path) -> None:
    path = tmp_path / "hostile.html"
    path.write_text(html_page(document(HOSTILE)), encoding="utf-8")
    with opened(browser, path, width=360) as shown:
        shown.page.evaluate(OPEN_ALL)
        assert shown.problems == []
        assert shown.requests == [f"file://{path}"]
        assert "broken" in shown.page.title() and shown.page.title() != "broken"
        assert shown.page.locator("script, img").count() == 0
        assert shown.page.evaluate(OVERFLOW) <= 0
