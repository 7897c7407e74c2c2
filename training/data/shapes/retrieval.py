"""A query with passages that answer it, and passages that do not, for models that rank.

The names of the columns are those of sentence-transformers (`anchor`, `positive`, `negative`),
FlagEmbedding (`query`, `pos`, `neg`) and Tevatron (`query`, `positive_passages`,
`negative_passages`, with a title and a text each).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from training.data.problem import RowProblem, kind_of
from training.data.row import Row, query_row
from training.data.shapes.values import check_text, parsed

QUERIES = ("query", "anchor")
POSITIVES = ("positives", "positive", "pos", "positive_passages")
NUMBERED = tuple(f"negative_{number}" for number in range(1, 21))
"""The columns of sentence-transformers' mined negatives."""
NEGATIVES = ("negatives", "negative", "neg", "negative_passages", *NUMBERED)
LISTS = ("positives", "pos", "positive_passages", "negatives", "neg", "negative_passages")
"""Columns whose text may be the JSON of a list; the text of another column is one passage."""


def read_retrieval(row: Mapping[str, Any]) -> Row:
    """Return the row of a query.

    Raises:
        RowProblem: A text is missing or empty, or a passage is on both sides.
    """
    name = next(name for name in QUERIES if name in row)
    query = check_text(row[name], f"field {name!r}")
    positives, negatives = (
        [text for name in names if name in row for text in _passages(row[name], name)]
        for names in (POSITIVES, NEGATIVES)
    )
    if not positives:
        raise RowProblem("no passage answers the query; expected one or more")
    if both := set(positives) & set(negatives):
        raise RowProblem(
            f"a passage is positive and negative: {min(both)[:40]!r}; expected one of the two"
        )
    return query_row(query, list(dict.fromkeys(positives)), list(dict.fromkeys(negatives)))


def _passages(value: Any, name: str) -> list[str]:
    if name in LISTS:
        value = parsed(value, name)
    entries = value if isinstance(value, list) else [value]
    return [_text(entry, f"field {name!r}") for entry in entries]


def _text(value: Any, where: str) -> str:
    """Return a passage; Tevatron's has a title before its text."""
    if isinstance(value, dict):
        if not isinstance(value.get("text"), str):
            raise RowProblem(f"{where}: expected passages with text, found {kind_of(value)}")
        title = value.get("title")
        has_title = isinstance(title, str) and title.strip()
        value = f"{title} {value['text']}" if has_title else value["text"]
    return check_text(value, where)
