"""The HTML of a page, as Python's own parser reads it."""

import base64
import hashlib
import html
import re
from html.parser import HTMLParser
from pathlib import Path

from tests.unit.core.page.pages import HOSTILE, document
from tuneline.core.page.to_html import html_page, script_page


class Reader(HTMLParser):
    """Collects the tags, the attributes and the text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_text_with_markup_is_shown_as_text() -> None:
    plain, hostile = (Reader(html_page(document(text))) for text in ("plain", HOSTILE))
    assert hostile.tags == plain.tags
    assert [name for name, _ in hostile.attributes] == [name for name, _ in plain.attributes]
    assert len(plain.tags) > 80
    shown = sum("document.title='broken'" in text for text in hostile.texts)
    assert shown > 30


def test_a_page_names_no_other_file() -> None:
    page = Reader(html_page(document("plain")))
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    links = [value or "" for name, value in page.attributes if name in ("href", "src")]
    assert links and all(link.startswith("#") for link in links)
    assert "url(" not in html_page(document("plain"))
    assert "@import" not in html_page(document("plain"))


def test_a_page_has_one_main_heading_and_titled_sections() -> None:
    page = Reader(html_page(document("plain")))
    assert page.tags.count("h1") == 1
    assert page.tags.count("h2") == 2
    for landmark in ("header", "nav", "main", "footer"):
        assert page.tags.count(landmark) == 1, landmark
    scopes = [value for name, value in page.attributes if name == "scope"]
    assert scopes.count("col") == 4
    assert scopes.count("row") == 3


def sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def test_the_policy_allows_only_the_style_and_the_script_of_the_page(tmp_path: Path) -> None:
    (tmp_path / "body.html").write_text('{% extends "frame.html" %}{% block body %}x{% endblock %}')
    (tmp_path / "code.js").write_text("const a = 1 < 2;\n")
    (tmp_path / "own.css").write_text("b > i { color: red; }\n")
    text = script_page(
        "t", tmp_path / "body.html", {"rows": [HOSTILE]}, tmp_path / "code.js",
        tmp_path / "own.css",
    )  # fmt: skip
    (style,) = re.findall("<style>(.*?)</style>", text, re.DOTALL)
    (code,) = re.findall("<script>(.*?)</script>", text, re.DOTALL)
    assert code == "const a = 1 < 2;\n"
    assert style.endswith("b > i { color: red; }\n")
    policies = []
    for page in (text, html_page(document("plain"))):
        (policy,) = re.findall('http-equiv="Content-Security-Policy" content="(.*?)"', page)
        policies.append(html.unescape(policy))
        assert policy.startswith("default-src 'none';")
        assert "unsafe" not in policy
    assert f"style-src 'sha256-{sha256(style)}'" in policies[0]
    assert f"script-src 'sha256-{sha256(code)}'" in policies[0]
    assert "script-src" not in policies[1]
