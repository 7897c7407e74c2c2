"""A row as the model is trained on it, token by token, through the code that trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from training.config.types import TrainOn
from training.data.row import Row
from training.rendering.chat import Rendered, render_row
from tuneline.models.chat import prompt_token_ids
from tuneline.models.pairs import Pair


@dataclass(frozen=True)
class ShownToken:
    """One token of an example."""

    id: int
    text: str
    is_trained: bool


@dataclass(frozen=True)
class ShownExample:
    """One sequence that a row is trained with.

    Attributes:
        side: `chosen` or `rejected` of a preference pair, `prompt` of a row without an answer,
            `query`, `positive` or `negative` of a query with passages, else `answer`.
        tokens: Its tokens in order.
    """

    side: str
    tokens: list[ShownToken]


def show_row(
    tokenizer: Any,
    row: Row,
    *,
    stop_ids: Sequence[int],
    file: str,
    train_on: TrainOn = "all_turns",
) -> list[ShownExample]:
    """Return the examples that a row gives; a pair's two sides are trained on their last turn.

    Raises:
        ConfigError, DataError: As `render_rows` does.
    """

    def rendered(one: Row, train_on: TrainOn) -> list[Rendered]:
        return render_row(tokenizer, one, stop_ids=stop_ids, file=file, train_on=train_on)

    if row.kind == "prompt":
        ids = prompt_token_ids(tokenizer, row.prompt, row.tools)
        return [_shown(tokenizer, "prompt", Rendered(ids, ((len(ids), len(ids)),), row.line))]
    if row.kind == "preference":
        sides = {
            "chosen": replace(row, rejected=()),
            "rejected": replace(row, completion=row.rejected, rejected=()),
        }
        return [
            _shown(tokenizer, side, example)
            for side, one in sides.items()
            for example in rendered(one, "last_turn")
        ]
    only = "last_turn" if row.kind == "label" else train_on
    return [_shown(tokenizer, "answer", example) for example in rendered(row, only)]


def show_texts(tokenizer: Any, row: Row, prompts: Mapping[str, str]) -> list[ShownExample]:
    """Return the texts of a query with passages; a vector is made of all tokens of each.

    Args:
        prompts: The texts before a `query` and a `document`; empty for none.
    """
    positives, negatives = row.passages
    texts = [("query", "query", row.query)]
    texts += [("positive", "document", text) for text in positives]
    texts += [("negative", "document", text) for text in negatives]
    shown = []
    for side, kind, text in texts:
        ids = tokenizer(prompts.get(kind, "") + text)["input_ids"]
        shown.append(_shown(tokenizer, side, Rendered(ids, ((0, len(ids)),), row.line)))
    return shown


def show_pairs(read: Callable[[str, str], Pair], tokenizer: Any, row: Row) -> list[ShownExample]:
    """Return a query with each of its passages; a score is made of all tokens of each pair."""
    shown = []
    for side, passages in zip(("positive", "negative"), row.passages, strict=True):
        for passage in passages:
            ids = read(row.query, passage).input_ids
            shown.append(_shown(tokenizer, side, Rendered(ids, ((0, len(ids)),), row.line)))
    return shown


def _shown(tokenizer: Any, side: str, example: Rendered) -> ShownExample:
    trained = {index for start, end in example.spans for index in range(start, end)}
    tokens = [
        ShownToken(token, tokenizer.decode([token]), index in trained)
        for index, token in enumerate(example.input_ids)
    ]
    return ShownExample(side, tokens)
