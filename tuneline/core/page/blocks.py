"""The parts of a page, without a form: `to_html.py` and `to_markdown.py` write them.

Every string is plain text from an artifact or from us. Both writers escape it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from tuneline.core.verdict import Verdict


class Tone(StrEnum):
    """The meaning of a colour; words always say the same."""

    GOOD = "good"
    BAD = "bad"
    WARN = "warn"
    QUIET = "quiet"


@dataclass(frozen=True)
class Badge:
    """A word such as a verdict."""

    word: str
    tone: Tone


@dataclass(frozen=True)
class Code:
    """A name, a path, a digest or a command."""

    text: str


Inline = str | Badge | Code
Text = Inline | tuple[Inline, ...]


@dataclass(frozen=True)
class Paragraph:
    """One paragraph; with a tone it is a notice."""

    kind: ClassVar = "paragraph"
    text: Text
    tone: Tone | None = None


@dataclass(frozen=True)
class Listing:
    """A list of points."""

    kind: ClassVar = "listing"
    entries: tuple[Text, ...]


@dataclass(frozen=True)
class Column:
    """The head of a column. Numbers are aligned to the right."""

    title: str
    is_number: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of cells."""

    kind: ClassVar = "table"
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Text, ...], ...]
    is_stacked: bool = False
    """Whether a narrow screen shows each row as a card, for cells that hold sentences."""
    head: int = 0
    """The place of the cell that is the head of its row."""


@dataclass(frozen=True)
class Pairs:
    """Names with their values."""

    kind: ClassVar = "pairs"
    pairs: tuple[tuple[str, Text], ...]


@dataclass(frozen=True)
class Plot:
    """One picture, with the numbers that it shows in words."""

    title: str
    svg: str
    """Trusted: made by `plot.py`, which escapes its labels."""
    says: str
    """The text alternative; it states the numbers."""
    legend: tuple[str, ...] = ()
    """The label of each series, in the order of their colours."""


@dataclass(frozen=True)
class Plots:
    """Plots next to one another, if there is space."""

    kind: ClassVar = "plots"
    plots: tuple[Plot, ...]


@dataclass(frozen=True)
class Answer:
    """One answer to a prompt; `is_right` is None for an answer that is not judged."""

    label: str
    text: str
    is_right: bool | None = None


@dataclass(frozen=True)
class Example:
    """One prompt and the answers to it."""

    title: str
    prompt: str
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class Examples:
    """Prompts with their answers."""

    kind: ClassVar = "examples"
    examples: tuple[Example, ...]


@dataclass(frozen=True)
class Command:
    """A command line and its purpose."""

    what: str
    line: str


@dataclass(frozen=True)
class Commands:
    """Command lines to type."""

    kind: ClassVar = "commands"
    commands: tuple[Command, ...]


@dataclass(frozen=True)
class Source:
    """Text of a file, line by line."""

    kind: ClassVar = "source"
    text: str


@dataclass(frozen=True)
class Fold:
    """Blocks that a reader opens."""

    kind: ClassVar = "fold"
    summary: str
    blocks: tuple[Block, ...]


Block = Paragraph | Listing | Table | Pairs | Plots | Examples | Commands | Source | Fold


@dataclass(frozen=True)
class Section:
    """A titled part of a page."""

    id: str
    title: str
    blocks: tuple[Block, ...]
    sources: tuple[tuple[str, str], ...] = ()
    """Directory and short digest of the artifacts that the section shows."""
    command: str = ""
    """The command line that measures the section's figures again."""


@dataclass(frozen=True)
class Tile:
    """A figure at the top of a page."""

    title: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Document:
    """A page."""

    name: str
    about: str
    """The kind of page, such as `release report`."""
    verdict: Badge
    lead: Text
    notices: tuple[Paragraph, ...]
    tiles: tuple[Tile, ...]
    sections: tuple[Section, ...]
    made: str
    """Who made the page and when."""


TONES = {
    Verdict.PASS: Tone.GOOD,
    Verdict.FAIL: Tone.BAD,
    Verdict.INCONCLUSIVE: Tone.WARN,
    Verdict.INVALID: Tone.WARN,
}


def verdict_badge(verdict: str) -> Badge:
    """Return the badge of a verdict."""
    known = Verdict(verdict)
    return Badge(known.value, TONES[known])
