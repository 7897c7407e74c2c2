"""Rows with more tokens than training takes, as the base model's chat template renders them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from training.config import DataConfig
from training.config.checks import LengthCheck
from training.data.checks.check import Check, Found
from training.data.row import Row
from tuneline.core.messages import Message, content_of


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

    def num_tokens(self, row: Row) -> int:
        """Return the tokens of a row; see `num_tokens`."""
        return num_tokens(row, self.folder, self.template_kwargs, self.template_name)

    @property
    def action(self) -> str:
        return self.config.action


def limit_of(data: DataConfig, folder: Path, max_length: int) -> LengthLimit:
    """Return the limit for rows that the section `data` renders with a base model."""
    kwargs = json.dumps(data.chat_template_kwargs)
    return LengthLimit(folder, max_length, data.checks.length, kwargs, data.chat_template)


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
    if limit.config.by == "drop":
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


def num_tokens(
    row: Row, folder: Path, template_kwargs: str = "{}", template_name: str | None = None
) -> int:
    """Return the tokens of a row; of a preference pair, of the longer answer."""
    from tuneline.models.chat import conversation_token_ids

    tokenizer = _tokenizer(folder, template_kwargs, template_name)
    if row.text is not None:
        return len(tokenizer(row.text)["input_ids"])
    conversations = [row.messages]
    if row.rejected:
        conversations.append([*row.prompt, *row.rejected])
    return max(len(conversation_token_ids(tokenizer, m, row.tools)) for m in conversations)


@lru_cache(maxsize=1)
def _tokenizer(folder: Path, template_kwargs: str, template_name: str | None) -> Any:
    from tuneline.models.chat import set_template
    from tuneline.models.template import TemplateSettings
    from tuneline.models.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(folder)
    settings = TemplateSettings(kwargs=json.loads(template_kwargs), named=template_name)
    if settings.kwargs or settings.named:
        set_template(tokenizer, str(folder), settings)
    return tokenizer


CHECK = Check(
    "length",
    "rows with too many tokens",
    find=find_length,
    repair=repair_length,
    advice="Try: a greater training.max_length; or data.checks.length: fix, which drops these "
    "rows; or data.checks.length: {action: fix, by: cut_left}.",
)
