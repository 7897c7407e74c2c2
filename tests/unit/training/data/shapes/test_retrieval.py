"""Queries with passages, in the columns of the tools that make such files."""

from __future__ import annotations

from typing import Any

import pytest

from training.data.problem import RowProblem
from training.data.row import Row
from training.data.shapes import read_shape

TITLED = {"docid": "7", "title": "Paris", "text": "is in France."}


@pytest.mark.parametrize(
    ("columns", "positives", "negatives"),
    [
        ({"query": "q", "positive": "a"}, ["a"], []),
        ({"query": "q", "positive": "[a] is text"}, ["[a] is text"], []),
        ({"anchor": "q", "positive": "a", "negative": "b"}, ["a"], ["b"]),
        ({"anchor": "q", "positive": "a", "negative": ["b", "c"]}, ["a"], ["b", "c"]),
        (
            {"anchor": "q", "positive": "a", "negative_1": "b", "negative_2": "c"},
            ["a"],
            ["b", "c"],
        ),
        ({"query": "q", "pos": ["a", "b", "a"], "neg": ["c"], "id": 7}, ["a", "b"], ["c"]),
        ({"query": "q", "pos": '["a", "b"]', "neg": None}, ["a", "b"], []),
        (
            {"query": "q", "positive_passages": [TITLED], "negative_passages": []},
            ["Paris is in France."],
            [],
        ),
        ({"query": "q", "positives": ["a"], "negatives": ["b"]}, ["a"], ["b"]),
    ],
)
def test_a_query_has_its_passages(
    columns: dict[str, Any], positives: list[str], negatives: list[str]
) -> None:
    row = read_shape(columns)
    assert (row.kind, row.query, row.passages) == ("retrieval", "q", (positives, negatives))
    assert Row.from_json(row.as_json(), 1) == Row(
        row.prompt, row.completion, row.rejected, is_query=True, fields=row.fields, line=1
    )


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ({"query": " ", "positive": "a"}, "field 'query': is empty"),
        ({"query": "q", "positive": ""}, "field 'positive': is empty"),
        ({"query": "q", "pos": []}, "no passage answers the query"),
        ({"query": "q", "pos": [3]}, "field 'pos': expected text, found a number"),
        (
            {"anchor": "q", "positive": "a", "negative": "a"},
            "a passage is positive and negative: 'a'",
        ),
        ({"query": "q", "positive_passages": [{"docid": 1}]}, "expected passages with text"),
        # Not of an embedding model: the names of a prompt and its answer.
        ({"query": "q", "answer": "a"}, "no shape has the columns 'query', 'answer'"),
    ],
)
def test_a_query_that_cannot_be_read_is_named(columns: dict[str, Any], problem: str) -> None:
    with pytest.raises(RowProblem) as error:
        read_shape(columns)
    assert problem in str(error.value)
