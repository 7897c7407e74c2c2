"""Rows to token ids through the model's own chat template, with the checks that come before any
step: a template that is not the one served, or a stop token that is never trained, costs the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from training.data.row import Row
from tuneline.core.errors import ConfigError, DataError
from tuneline.models.chat import conversation_token_ids, prompt_token_ids

IGNORED = -100  # the label that torch's cross entropy leaves out


@dataclass(frozen=True)
class Rendered:
    """One row as the model is trained on it; it ends with the stop token."""

    input_ids: list[int]
    num_prompt_tokens: int

    @property
    def labels(self) -> list[int]:
        """The answer and its stop token; the prompt is ignored."""
        return [IGNORED] * self.num_prompt_tokens + self.input_ids[self.num_prompt_tokens :]

    @property
    def num_trained_tokens(self) -> int:
        return len(self.input_ids) - self.num_prompt_tokens


def render_rows(
    tokenizer: Any, rows: Sequence[Row], *, stop_ids: Sequence[int], max_length: int, file: str
) -> list[Rendered]:
    """Render rows and check each one: the prompt is a prefix of prompt and answer, the answer ends
    with a stop token, nothing is cut.

    What the template puts after the stop token (a line end, in ChatML) is left off: the server
    never sees it, and a model need not learn it.

    Raises:
        ConfigError: The chat template cannot train this model to stop, or renders prompts
            differently with and without an answer.
        DataError: Rows are longer than `max_length`, hold a stop token inside, or are refused by
            the template.
    """
    rendered = [_render(tokenizer, row, frozenset(stop_ids), file) for row in rows]
    too_long = [(len(row.input_ids), i) for i, row in enumerate(rendered)]
    too_long = [(length, i) for length, i in too_long if length > max_length]
    if too_long:
        longest, index = max(too_long)
        raise DataError(
            f"{file}: {len(too_long)} of {len(rows)} rows are longer than max_length={max_length} "
            f"tokens; the longest, line {rows[index].line}, has {longest}. Cutting a row would cut "
            "its stop token",
            hint=f"Set training.max_length: {longest}, or remove the rows.",
        )
    return rendered


def _render(tokenizer: Any, row: Row, stop_ids: frozenset[int], file: str) -> Rendered:
    where = f"{file}: line {row.line}"
    try:
        prompt = prompt_token_ids(tokenizer, row.prompt)
        whole = conversation_token_ids(tokenizer, row.messages)
    except TemplateError as error:
        raise DataError(f"{where}: the chat template refuses the row: {error}") from None
    if whole[: len(prompt)] != prompt:
        raise ConfigError(_no_prefix(tokenizer, prompt, whole, where))
    answer = whole[len(prompt) :]
    stop = next((i for i, token in enumerate(answer) if token in stop_ids), None)
    if stop is None:
        raise ConfigError(
            _untrained_stop(tokenizer, answer, stop_ids, where),
            hint="If the model should stop at the token that the template writes, name it: "
            'training.eos_token: "<the token>". Otherwise mend chat_template.jinja in the base '
            "model's folder so that an answer ends with a stop token.",
        )
    rest = tokenizer.decode(answer[stop + 1 :])
    if rest.strip():
        raise DataError(
            f"{where}: the answer holds the stop token {tokenizer.decode([answer[stop]])!r} inside "
            f"its text; after it comes {_excerpt(rest)!r}",
            hint="Remove the token from the row.",
        )
    return Rendered(whole[: len(prompt) + stop + 1], len(prompt))


def _untrained_stop(
    tokenizer: Any, answer: Sequence[int], stop_ids: frozenset[int], where: str
) -> str:
    stops = ", ".join(f"{tokenizer.decode([i])!r} ({i})" for i in sorted(stop_ids)) or "none"
    end = tokenizer.decode(answer[-8:])
    return (
        f"{where}: the chat template ends the answer with {end!r}, without a stop token of the "
        f"model (stop tokens: {stops}): a model trained on this never stops by itself"
    )


def _no_prefix(tokenizer: Any, prompt: Sequence[int], whole: Sequence[int], where: str) -> str:
    at = next(
        (i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b),
        min(len(prompt), len(whole)),
    )
    return (
        f"{where}: the chat template renders the prompt differently once an answer follows: "
        f"{_excerpt(tokenizer.decode(prompt[at:]))!r} becomes "
        f"{_excerpt(tokenizer.decode(whole[at:]))!r} (token {at}): the model would be trained on a "
        "prompt that no server sends. Mend chat_template.jinja in the base model's folder"
    )


def _excerpt(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:60]}…"
