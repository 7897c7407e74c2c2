"""The part of a dataset artifact that several rooms read."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tuneline.core.artifact import Artifact
from tuneline.core.errors import DataError, NotAnArtifactError
from tuneline.core.messages import ChatPrompt, Messages, as_request, with_tools

TRAIN_FILE = "train.jsonl"
HELDOUT_FILE = "heldout.jsonl"


def prompt_of(row: dict[str, Any]) -> Messages:
    """Return the prompt of a row; a query of an embedding model is a user's message.

    Raises:
        KeyError: The row has no prompt.
    """
    if "query" in row:
        return [{"role": "user", "content": row["query"]}]
    found: Messages = row["prompt"]
    return found


def heldout_prompts(dataset: Artifact) -> list[ChatPrompt]:
    """Return the prompts of a dataset's held-out rows as requests, in order, without answers.

    Rows of plain text have no messages and are left out.

    Raises:
        NotAnArtifactError: A line is not a row.
        DataError: No row has a prompt.
    """
    return _requests(dataset, lambda row: [prompt_of(row)], "a prompt")


def heldout_queries(dataset: Artifact, before: str) -> list[ChatPrompt]:
    """Return a dataset's held-out queries as requests, each after the text `before`.

    Raises:
        NotAnArtifactError: A line is not a query.
        DataError: No row is a query.
    """

    def asked(row: dict[str, Any]) -> list[Messages]:
        return [[{"role": "user", "content": before + row["query"]}]]

    return _requests(dataset, asked, "a query")


def heldout_lists(dataset: Artifact) -> list[ChatPrompt]:
    """Return a dataset's held-out queries as requests to rerank: the query, then its passages.

    Raises:
        NotAnArtifactError: A line is not a query.
        DataError: No row is a query.
    """

    def asked(row: dict[str, Any]) -> list[Messages]:
        texts = [row["query"], *row["positives"], *row["negatives"]]
        return [[{"role": "user", "content": text} for text in texts]]

    return _requests(dataset, asked, "a query")


def heldout_conversations(dataset: Artifact) -> list[ChatPrompt]:
    """Return the conversations of a dataset's held-out pairs as requests: of each pair the prompt
    with the better answer, then the prompt with the other one.

    Raises:
        NotAnArtifactError: A line is not a pair.
        DataError: No row is a pair.
    """

    def both(row: dict[str, Any]) -> list[Messages]:
        return [row["prompt"] + row[answer] for answer in ("chosen", "rejected")]

    return _requests(dataset, both, "a pair of answers")


def _requests(
    dataset: Artifact, chats_of: Callable[[dict[str, Any]], list[Messages]], part: str
) -> list[ChatPrompt]:
    """Return the chats of each held-out row as requests; `part` names what a row must have."""
    path = dataset.path / HELDOUT_FILE
    text = path.read_text(encoding="utf-8")
    found: list[ChatPrompt] = []
    # Only a line feed ends a line; text may hold the other line ends that `splitlines` knows.
    for number, line in enumerate(text.removesuffix("\n").split("\n"), start=1):
        try:
            row = json.loads(line)
            if not (isinstance(row, dict) and "text" in row):
                tools = row.get("tools", ())
                found += [with_tools(as_request(chat), tools) for chat in chats_of(row)]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise NotAnArtifactError(f"{path}: line {number}: expected a row with {part}") from None
    if not found:
        raise DataError(
            f"{path}: no row has {part}; expected rows with {part}",
            hint=f"Try: data.heldout_path with rows that have {part}.",
        )
    return found
