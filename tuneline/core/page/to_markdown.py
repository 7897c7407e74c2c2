"""Write a page as GitHub-flavoured Markdown, for a pull request or a job summary.

A pull request takes 65,536 characters, so long answers are cut and long lists end early. Text from
artifacts neither becomes markup, nor a link, nor the mention of a user.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Sequence

from tuneline.core.page.blocks import (
    Badge,
    Block,
    Document,
    Example,
    Examples,
    Fold,
    Listing,
    Pairs,
    Paragraph,
    Plots,
    Section,
    Source,
    Table,
    Text,
    Tone,
)

MAX_EXAMPLES = 5
MAX_ROWS = 60
MAX_CHARACTERS = 400
"""Of one prompt or one answer."""
SIGNS = {Tone.GOOD: "✅ ", Tone.BAD: "❌ ", Tone.WARN: "⚠️ ", Tone.QUIET: ""}
JOINER = "\u2060"
"""Invisible; GitHub then sees neither a mention in `@name` nor an issue in `#1`."""


def markdown_page(document: Document) -> str:
    """Return the Markdown of a document."""
    lines = [f"# {_plain(document.name)}: {_inline(document.verdict)}", "", _inline(document.lead)]
    for notice in document.notices:
        lines += ["", *_block(notice)]
    if document.tiles:
        tiles = [[_plain(t.title), _plain(t.value), _plain(t.note)] for t in document.tiles]
        lines += ["", *_table(["figure", "value", ""], tiles)]
    for section in document.sections:
        lines += ["", *_section(section)]
    return "\n".join([*lines, "", f"<sub>{_plain(document.made)}</sub>", ""])


def _section(section: Section) -> Iterator[str]:
    yield f"## {_plain(section.title)}"
    for block in section.blocks:
        yield ""
        yield from _block(block)
    if section.sources:
        named = ", ".join(f"{_code(name)} ({_plain(digest)})" for name, digest in section.sources)
        yield from ("", f"From {named}.")
    if section.command:
        yield from ("", f"Reproduce: {_code(section.command)}")


def _block(block: Block) -> Iterator[str]:
    if isinstance(block, Paragraph):
        quote = "" if block.tone is None else f"> {SIGNS[block.tone]}"
        yield f"{quote}{_inline(block.text)}"
    elif isinstance(block, Listing):
        yield from (f"- {_inline(entry)}" for entry in block.entries)
    elif isinstance(block, Table):
        yield from _captioned(block)
    elif isinstance(block, Pairs):
        cells = [[_plain(name), _inline(value, in_table=True)] for name, value in block.pairs]
        yield from _table(["", ""], cells)
    elif isinstance(block, Plots):
        yield from (f"- **{_plain(plot.title)}.** {_plain(plot.says)}" for plot in block.plots)
    elif isinstance(block, Examples):
        for example in block.examples[:MAX_EXAMPLES]:
            yield from _example(example)
        if len(block.examples) > MAX_EXAMPLES:
            yield f"{len(block.examples) - MAX_EXAMPLES} more are on the HTML page."
    elif isinstance(block, Source):
        yield from _fenced(block.text)
    elif isinstance(block, Fold):
        yield from ("<details>", f"<summary>{_in_html(block.summary)}</summary>")
        for inner in block.blocks:
            yield ""
            yield from _block(inner)
        yield from ("", "</details>")
    else:
        for command in block.commands:
            yield from (f"{_plain(command.what)}:", *_fenced(command.line, "sh"))


def _captioned(block: Table) -> Iterator[str]:
    if block.caption:
        yield from (f"{_plain(block.caption)}:", "")
    shown = block.rows[:MAX_ROWS]
    cells = [[_inline(cell, in_table=True) for cell in row] for row in shown]
    titles = [_plain(column.title) for column in block.columns]
    yield from _table(titles, cells, [column.is_number for column in block.columns])
    if len(block.rows) > len(shown):
        yield from ("", f"{len(block.rows) - len(shown)} more rows are on the HTML page.")


def _table(
    titles: list[str], rows: list[list[str]], are_numbers: Sequence[bool] = ()
) -> Iterator[str]:
    rules = ["--:" if is_number else ":--" for is_number in are_numbers]
    for row in (titles, rules or [":--"] * len(titles), *rows):
        yield "| " + " | ".join(row) + " |"


def _example(example: Example) -> Iterator[str]:
    yield f"**{_plain(example.title)}**"
    yield from _fenced(_cut(example.prompt))
    for answer in example.answers:
        judged = {True: " ✅", False: " ❌", None: ""}[answer.is_right]
        yield from ("", f"{_plain(answer.label)}{judged}", *_fenced(_cut(answer.text) or "(empty)"))
    yield ""


def _cut(text: str) -> str:
    return text if len(text) <= MAX_CHARACTERS else text[:MAX_CHARACTERS] + " …"


def _inline(text: Text, in_table: bool = False) -> str:
    if isinstance(text, str):
        return _plain(text)
    if isinstance(text, tuple):
        return "".join(_inline(part, in_table) for part in text)
    if isinstance(text, Badge):
        return f"{SIGNS[text.tone]}**{_plain(text.word)}**"
    return _code(text.text, in_table)


def _plain(text: str) -> str:
    """Return text that Markdown shows as it is, in one line."""
    text = re.sub(r"\s+", " ", text)
    text = re.sub(r"([\\`*_{}\[\]<>|~$&!])", r"\\\1", text)
    # Only a line's first characters make a list, a heading or a rule.
    text = re.sub(r"^(\d+)([.)])(?=\s|$)", r"\1\\\2", text)
    text = re.sub(r"^([-+=#])(?=[-+=#\s]|$)", r"\\\1", text)
    # GitHub makes links of these after it has removed the backslashes.
    text = re.sub(r"(?i)(:)(?=//)|(?<=www)(\.)", r"\\\1\2", text)
    return _unlinked(text)


def _code(text: str, in_table: bool = False) -> str:
    text = re.sub(r"\s+", " ", text)
    if not text.strip():
        return ""
    fence = "`" * (_longest_run(text) + 1)
    pad = " " if len(fence) > 1 else ""
    if in_table:
        text = text.replace("|", "\\|")
    return f"{fence}{pad}{text}{pad}{fence}"


def _fenced(text: str, language: str = "text") -> list[str]:
    fence = "`" * max(3, _longest_run(text) + 1)
    return ["", f"{fence}{language}", *text.splitlines(), fence]


def _longest_run(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)


def _in_html(text: str) -> str:
    return _unlinked(html.escape(re.sub(r"\s+", " ", text), quote=False))


def _unlinked(text: str) -> str:
    """Return text in which GitHub finds no user and no issue."""
    return re.sub(r"(@|#(?=\d))", rf"\1{JOINER}", text)
