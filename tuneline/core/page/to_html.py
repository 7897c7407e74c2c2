"""Write a page as one HTML file that needs no network.

The policy of a page allows only its own style sheet and its own script, by their SHA-256. Text that
would slip through the escaping could therefore still not run.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tuneline.core.page.blocks import Document

HERE = Path(__file__).parent
STYLE_FILE = "style.css"


def html_page(document: Document) -> str:
    """Return the page of a document."""
    title = f"{document.verdict.word} · {document.name} · {document.about}"
    return (
        _environment(HERE)
        .get_template("document.html")
        .render(document=document, title=title, script="", data="", **_style(HERE / STYLE_FILE))
    )


def script_page(title: str, template: Path, data: Any, script: Path, style: Path) -> str:
    """Return a page that a script fills.

    Args:
        title: The title of the page.
        template: An HTML file with `{% extends "frame.html" %}` and a block `body`.
        data: Becomes JSON in the element `data`.
        script: A JavaScript file.
        style: A style sheet that follows the common one.
    """
    text = json.dumps(data, ensure_ascii=False)
    # In a script element, "</" and "<!--" would end or change it; JSON may write "<" as an escape.
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    code = script.read_text(encoding="utf-8")
    page = _style(HERE / STYLE_FILE, style)
    page["policy"] = f"{page['policy']}; script-src '{_sha256(code)}'"
    return (
        _environment(HERE, template.parent)
        .get_template(template.name)
        .render(
            title=title,
            script=code,
            data=text,
            **page,
        )
    )


def _style(*files: Path) -> dict[str, Any]:
    text = "".join(file.read_text(encoding="utf-8") for file in files)
    return {"style": text, "policy": f"style-src '{_sha256(text)}'"}


def _sha256(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


@functools.cache
def _environment(*folders: Path) -> Environment:
    return Environment(
        loader=FileSystemLoader(folders),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
