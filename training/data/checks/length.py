"""Rows with more tokens than training takes, counted as training renders them."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from training.config import DataConfig, TrainingConfig
from training.config.checks import LengthCheck
from training.config.types import TrainOn
from training.data.checks.check import Check, Found
from training.data.formats import row_place
from training.data.row import Row
from tuneline.core.errors import ConfigError, DataError
from tuneline.core.messages import Message, content_of
from tuneline.models.pairs import pair_reader


@dataclass(frozen=True)
class LengthLimit:
    """The most tokens of a row, and the tokenizer that counts them."""

    folder: Path
    """The base model."""
    max_length: int
    config: LengthCheck
    template_kwargs: str = "{}"
    """`data.chat_template_kwargs` as JSON."""
    template_name: str | None = None
    """`data.chat_template`."""
    date: datetime.date | None = None
    """The day that the chat template takes for today."""
    train_on: TrainOn = "all_turns"
    """`training.train_on`, for answers."""
    eos_token: str | None = None
    """`training.eos_token`."""
    prompts: tuple[tuple[str, str], ...] = ()
    """The texts before a `query` and a `document` of an embedding model."""
    reads_pairs: bool = False
    """Whether a query is read with each passage, as a reranker reads them."""
    num_sampled_tokens: int = 0
    """Tokens that the model itself adds to a prompt in training; then no answer counts."""

    def num_tokens(self, row: Row) -> int:
        """Return the tokens of a row's longest example."""
        return num_tokens(row, self)

    @property
    def action(self) -> str:
        return self.config.action


def limit_of(data: DataConfig, folder: Path, training: TrainingConfig) -> LengthLimit:
    """Return the limit for rows that a run renders with a base model and trains on."""
    today = datetime.datetime.now(datetime.UTC).date()
    return LengthLimit(
        folder,
        training.max_length,
        data.checks.length,
        template_kwargs=json.dumps(data.chat_template_kwargs),
        template_name=data.chat_template,
        date=data.chat_template_date or today,
        train_on=training.train_on,
        eos_token=training.eos_token,
        prompts=tuple(training.method.prompts(folder).items()),
        reads_pairs=training.method.makes == "relevance",
        num_sampled_tokens=training.method.num_sampled_tokens,
    )


def find_length(row: Row, limit: LengthLimit) -> Iterator[Found]:
    """Return the number of tokens of a row that has too many."""
    found = limit.num_tokens(row)
    if found > limit.max_length:
        column = "text" if row.text is not None else "prompt"
        yield Found(column, "too long", f"{found:,} tokens; at most {limit.max_length:,}")


def repair_length(row: Row, limit: LengthLimit) -> Row | None:
    """Return the row cut on the left, or None if it must be dropped.

    The oldest turns go first, then the beginning of the last message before the answer. System
    message, last message and answer keep their places, so that the chat template renders a whole
    conversation. Plain text loses its beginning.
    """
    if limit.config.by == "drop" or row.is_query:
        return None
    if row.text is not None:
        whole = row.text
        return _longest(len(whole), lambda start: replace(row, text=whole[start:]), limit)
    num_system = next(
        (i for i, m in enumerate(row.prompt) if m["role"] not in ("system", "developer")), 0
    )
    system, turns = row.prompt[:num_system], list(row.prompt[num_system:])
    while len(turns) > 1:
        # A conversation begins with a user's turn, so the turns go up to the next one.
        later = [i for i, m in enumerate(turns) if m["role"] == "user" and i > 0]
        if not later:
            break
        turns = turns[later[0] :]
        shorter = _with_turns(row, system, turns)
        if limit.num_tokens(shorter) <= limit.max_length:
            return shorter
    if len(turns) != 1:
        return None
    text = content_of(turns[0])

    def cut(start: int) -> Row:
        return _with_turns(row, system, [{**turns[0], "content": text[start:]}])

    return _longest(len(text), cut, limit)


def _with_turns(row: Row, system: tuple[Message, ...], turns: list[Message]) -> Row:
    removed = len(row.prompt) - len(system) - len(turns)
    untrained = tuple(i - removed for i in row.untrained if i - removed >= len(system))
    return replace(row, prompt=(*system, *turns), untrained=untrained)


def _longest(size: int, cut: Callable[[int], Row], limit: LengthLimit) -> Row | None:
    """Return the row with the fewest characters cut that fits; None if one character is too much.

    The number of tokens does not grow as characters go, so bisection finds it; the last step is
    checked, since a tokenizer may break that rule by a token.
    """
    low, high = 1, size - 1
    while low < high:
        middle = (low + high) // 2
        if limit.num_tokens(cut(middle)) <= limit.max_length:
            high = middle
        else:
            low = middle + 1
    shorter = cut(low)
    fits = size > 1 and limit.num_tokens(shorter) <= limit.max_length
    return shorter if fits else None


def num_tokens(row: Row, limit: LengthLimit) -> int:
    """Return the tokens of the longest sequence that training makes of a row.

    A row gives several sequences if it is a pair, or if the template renders an earlier turn in
    another way than when the turn was the last one.

    Raises:
        DataError: The template refuses the row, or an answer holds a stop token.
    """
    if row.is_query:
        return _num_text_tokens(row, limit)
    if row.text is None and (limit.num_sampled_tokens or not row.completion):
        return _num_prompt_tokens(row, limit) + limit.num_sampled_tokens
    if row.rejected:
        answers = [replace(row, completion=side, rejected=()) for side in _sides(row)]
        return max(num_tokens(one, replace(limit, train_on="last_turn")) for one in answers)
    if row.label is not None:
        limit = replace(limit, train_on="last_turn")
    return _num_rendered_tokens(row, limit)


def _num_text_tokens(row: Row, limit: LengthLimit) -> int:
    """Return the tokens of a query or its longest passage, each a sequence of its own; of a
    reranker, those of the longest pair."""
    tokenizer, _ = _tokenizer(limit)
    positives, negatives = row.passages
    if limit.reads_pairs:
        read = pair_reader(limit.folder, tokenizer)
        return max(len(read(row.query, one).input_ids) for one in (*positives, *negatives))
    sides = {"query": [row.query], "document": [*positives, *negatives]}
    prompts = dict(limit.prompts)
    return max(
        len(tokenizer(prompts.get(side, "") + text)["input_ids"])
        for side, texts in sides.items()
        for text in texts
    )


def _sides(row: Row) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    return row.completion, row.rejected


def _num_prompt_tokens(row: Row, limit: LengthLimit) -> int:
    from training.rendering.turns import RENDERING_ERRORS
    from tuneline.models.chat import prompt_token_ids

    tokenizer, _ = _tokenizer(limit)
    try:
        return len(prompt_token_ids(tokenizer, row.prompt, row.tools))
    except RENDERING_ERRORS as error:
        raise DataError(
            f"{row_place(row.file, row.line)}: the chat template refuses the row: {error}"
        ) from None


def _num_rendered_tokens(row: Row, limit: LengthLimit) -> int:
    from training.rendering.chat import render_row
    from tuneline.models.chat import conversation_token_ids

    tokenizer, stop_ids = _tokenizer(limit)
    try:
        examples = render_row(
            tokenizer, row, stop_ids=stop_ids, file=row.file, train_on=limit.train_on
        )
    except DataError:
        raise
    except ConfigError:
        # A template that cannot be trained with is refused by training; here only lengths count.
        if row.text is not None:
            return len(tokenizer(row.text)["input_ids"])
        return len(conversation_token_ids(tokenizer, row.messages, row.tools))
    return max(len(example.input_ids) for example in examples)


def _tokenizer(limit: LengthLimit) -> tuple[Any, tuple[int, ...]]:
    """Return the tokenizer with the chat template of the run, and the stop tokens."""
    return _loaded(
        limit.folder, limit.template_kwargs, limit.template_name, limit.date, limit.eos_token
    )


@lru_cache(maxsize=1)
def _loaded(
    folder: Path,
    template_kwargs: str,
    template_name: str | None,
    date: datetime.date | None,
    eos_token: str | None,
) -> tuple[Any, tuple[int, ...]]:
    from tuneline.models.chat import set_template
    from tuneline.models.stop_tokens import served_stop_ids
    from tuneline.models.template import TemplateSettings
    from tuneline.models.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(folder)
    settings = TemplateSettings(kwargs=json.loads(template_kwargs), named=template_name, date=date)
    if settings.kwargs or settings.named or date:
        set_template(tokenizer, str(folder), settings)
    return tokenizer, tuple(served_stop_ids(folder, tokenizer, eos_token))


CHECK = Check(
    "length",
    "rows with too many tokens",
    find=find_length,
    repair=repair_length,
    advice="Try: a greater training.max_length; or data.checks.length: fix, which drops these "
    "rows; or data.checks.length: {action: fix, by: cut_left}.",
)
