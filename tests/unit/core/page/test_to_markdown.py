"""The Markdown of a page, as GitHub's own parser reads it."""

import re
from dataclasses import replace

import pycmarkgfm
import pytest

from tests.unit.core.page.pages import HOSTILE, document
from tests.unit.core.page.test_to_html import Reader
from tuneline.core.page.blocks import Answer, Column, Example, Examples, Section, Table
from tuneline.core.page.to_markdown import markdown_page


def rendered(markdown: str) -> Reader:
    return Reader(pycmarkgfm.gfm_to_html(markdown, options=pycmarkgfm.options.unsafe))


def test_text_with_markup_is_shown_as_text() -> None:
    plain, hostile = (rendered(markdown_page(document(text))) for text in ("plain", HOSTILE))
    assert len(plain.tags) > 60
    assert hostile.tags == plain.tags
    assert "a" not in hostile.tags
    joined = "".join(hostile.texts)
    assert joined.count("document.title='broken'") > 30
    assert joined.count("**bold** _it_ [link](http://a.b)") > 20


def test_a_mention_outside_code_does_not_call_a_user() -> None:
    html = pycmarkgfm.gfm_to_html(markdown_page(document(HOSTILE)))
    outside = re.sub(r"<(code|pre).*?</\1>", "", html, flags=re.DOTALL)
    assert "@" in outside
    assert not re.findall(r"@\w|#\d", outside)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("95.2%", "95.2%"),
        ("+3.1 to +4.0", "+3.1 to +4.0"),
        ("1. first", "1. first"),
        ("- a", "- a"),
        ("# a", "# a"),
        ("---", "---"),
        ("===", "==="),
        ("a\n===", "a ==="),
        ("> quoted", "> quoted"),
        ("<b>&amp;", "<b>&amp;"),
        ("a | b", "a | b"),
        ("``", "``"),
        ("*", "*"),
        ("~~gone~~", "~~gone~~"),
        ("a_b_c", "a_b_c"),
        ("\\", "\\"),
    ],
)
def test_a_text_is_shown_as_it_is(text: str, shown: str) -> None:
    found = "".join(rendered(markdown_page(document(text))).texts)
    whole = re.sub(r"\s+", " ", found)
    assert whole.count(shown) > 20


def test_a_table_keeps_its_columns() -> None:
    plain, piped = (rendered(markdown_page(document(text))) for text in ("a", "a | b `c` \\| d"))
    assert plain.tags.count("td") > 10
    assert [tag for tag in piped.tags if tag in ("th", "td", "tr")] == [
        tag for tag in plain.tags if tag in ("th", "td", "tr")
    ]


def test_a_page_with_long_answers_fits_into_a_pull_request() -> None:
    answers = (Answer("tuned", "word " * 20_000, False),)
    examples = tuple(Example(f"Row {n}", "word " * 20_000, answers) for n in range(50))
    rows = tuple((f"figure {n}", "0.5") for n in range(500))
    blocks = (Examples(examples), Table("Figures", (Column("name"), Column("value")), rows))
    page = replace(document("plain"), sections=(Section("one", "One", blocks),))
    text = markdown_page(page)
    assert len(text) < 65_536
    assert "45 more are on the HTML page." in text
    assert "440 more rows are on the HTML page." in text
