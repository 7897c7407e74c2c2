"""The parts of a check: its row of the table, and its findings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from training.data.row import Row

if TYPE_CHECKING:
    from training.data.checks.whole import Whole


class Found(NamedTuple):
    """A finding of a check of one row."""

    column: str
    kind: str
    excerpt: str
    """Text of the row, not cut: personal data in it is masked first, and the text is cut then."""
    from_end: bool = False
    """Whether the end of the text is shown in place of its beginning."""


class Hit(NamedTuple):
    """A finding of a check of all rows, by the rows' indices in the spool."""

    row: int
    kind: str
    other: int | None = None
    """The row that this row is equal to, similar to or in conflict with."""
    detail: str = ""
    """Text to show in place of the row's; personal data in it is masked already."""
    fixed: bool = True
    """Whether `fix` drops this row."""


@dataclass(frozen=True)
class Check:
    """One check: a row of `CHECKS`."""

    name: str
    """Its key in `data.checks`."""
    title: str
    """The rows that it finds, in words."""
    find: Callable[[Row, Any], Iterable[Found]] | None = None
    """A row and the check's configuration -> its findings, for a check of single rows."""
    compare: Callable[[Whole, Any], Iterator[Hit]] | None = None
    """All rows and the check's configuration -> the findings, for a check that compares rows."""
    repair: Callable[[Row, Any], Row | None] | None = None
    """A found row and the check's configuration -> the row that `fix` writes, or None to drop the
    row. Without it, `fix` drops the row."""
    of_answers: bool = False
    """Whether a check of all rows looks at answers, and not at prompts."""
    advice: str = ""
    """How to go on after a refusal."""
    dropped_as: str = ""
    """The reason in counts of dropped rows; the title if it is empty."""

    @property
    def reason(self) -> str:
        return self.dropped_as or self.title
