"""Rows to token ids through the model's own chat template, with the checks that come before any
step: a template that is not the one served, or a stop token that is never trained, costs the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from training.config.types import TrainOn
from training.data.row import Row
from training.rendering.turns import Turn, render_turn
from tuneline.core.errors import ConfigError, DataError
from tuneline.core.messages import content_of
from tuneline.core.progress import logger

IGNORED = -100  # the label that torch's cross entropy leaves out


@dataclass(frozen=True)
class Rendered:
    """Token ids as the model is trained on them; they end with a stop token.

    Attributes:
        input_ids: The tokens.
        spans: The trained tokens as `(start, end)`, in order.
        line: The row's line in its file.
    """

    input_ids: list[int]
    spans: tuple[tuple[int, int], ...]
    line: int = 0

    @property
    def labels(self) -> list[int]:
        """Return the trained tokens; every other token is ignored."""
        labels = [IGNORED] * len(self.input_ids)
        for start, end in self.spans:
            labels[start:end] = self.input_ids[start:end]
        return labels

    @property
    def num_prompt_tokens(self) -> int:
        """Return how many tokens come before the first trained token."""
        return self.spans[0][0]

    @property
    def num_trained_tokens(self) -> int:
        return sum(end - start for start, end in self.spans)


def render_rows(
    tokenizer: Any,
    rows: Sequence[Row],
    *,
    stop_ids: Sequence[int],
    max_length: int,
    file: str,
    train_on: TrainOn = "all_turns",
) -> list[Rendered]:
    """Render rows and check each one: the prompt is a prefix of prompt and answer, the answer ends
    with a stop token, nothing is cut.

    A row gives several examples if the template renders an earlier turn otherwise than when the
    turn was the last one, for example without its reasoning.

    Raises:
        ConfigError: The chat template cannot train this model to stop, or renders prompts
            differently with and without an answer.
        DataError: Rows are longer than `max_length`, hold a stop token inside, or are refused by
            the template.
    """
    rendered = [
        example
        for row in rows
        for example in render_row(tokenizer, row, stop_ids=stop_ids, file=file, train_on=train_on)
    ]
    too_long = {one.line: len(one.input_ids) for one in rendered if len(one.input_ids) > max_length}
    if too_long:
        line, longest = max(too_long.items(), key=lambda item: item[1])
        raise DataError(
            f"{file}: {len(too_long)} of {len(rows)} rows are longer than max_length={max_length} "
            f"tokens; the longest, line {line}, has {longest}. Cutting a row would cut "
            "its stop token",
            hint=f"Set training.max_length: {longest}, or remove the rows.",
        )
    _warn_of_lost_text(tokenizer, rows, rendered, file, train_on)
    return rendered


def _warn_of_lost_text(
    tokenizer: Any,
    rows: Sequence[Row],
    rendered: Sequence[Rendered],
    file: str,
    train_on: TrainOn,
) -> None:
    """Say that the chat template writes no text next to calls, as those of Llama 3 and Mistral."""
    said = {row.line: text for row in rows if (text := _text_next_to_call(row, train_on))}
    trained = dict.fromkeys(said, "")
    for one in rendered if said else ():
        if one.line in said:
            for start, end in one.spans:
                trained[one.line] += tokenizer.decode(one.input_ids[start:end])
    lost = [line for line, text in said.items() if text not in trained[line]]
    if lost:
        logger.warning(
            "  %s: line %d: the chat template leaves out the text next to a tool call, %r; %d rows "
            "have such text, which is not trained",
            file, lost[0], said[lost[0]][:60], len(lost),
        )  # fmt: skip


def _text_next_to_call(row: Row, train_on: TrainOn) -> str:
    """Return the text of the last trained message that has text and calls; empty without one."""
    messages = list(enumerate(row.messages))
    for index, message in reversed(messages[-1:] if train_on == "last_turn" else messages):
        text = content_of(message).strip()
        if text and message.get("tool_calls") and index not in row.untrained:
            return text
    return ""


def render_row(
    tokenizer: Any,
    row: Row,
    *,
    stop_ids: Sequence[int],
    file: str,
    train_on: TrainOn = "all_turns",
) -> list[Rendered]:
    """Return the examples of one row, the one with its last turn last."""
    where = f"{file}: line {row.line}"
    if row.text is not None:
        return [_plain_text(tokenizer, row, where)]
    messages = row.messages
    ends = [
        index + 1
        for index, message in enumerate(messages)
        if message["role"] == "assistant" and index not in row.untrained
    ]
    if not ends:
        raise DataError(f"{where}: has no assistant message to train; expected an answer")
    if train_on == "last_turn":
        ends = ends[-1:]
    stops = frozenset(stop_ids)
    turns = [
        render_turn(
            tokenizer,
            messages[:end],
            row.tools,
            stops,
            where if end == len(messages) else f"{where}: messages[{end - 1}]",
        )
        for end in ends
    ]
    return _joined(turns, row.line)


def _joined(turns: Sequence[Turn], line: int) -> list[Rendered]:
    """Return as few examples as train every turn on the tokens that a server generates.

    A turn shares a later turn's example if the later prompt begins with the turn's own tokens.
    """
    examples: list[Rendered] = []
    left = list(turns)
    while left:
        last = left[-1]
        shared = [turn for turn in left if last.input_ids[: len(turn.input_ids)] == turn.input_ids]
        spans = tuple((turn.start, len(turn.input_ids)) for turn in shared)
        examples.insert(0, Rendered(last.input_ids, spans, line))
        left = [turn for turn in left if turn not in shared]
    return examples


def _plain_text(tokenizer: Any, row: Row, where: str) -> Rendered:
    """Return plain text with the tokenizer's end token. Nothing predicts the first token."""
    end = tokenizer.eos_token_id
    if end is None:
        raise ConfigError(
            f"{where}: is plain text, and the tokenizer has no end token",
            hint="Set eos_token in the base model's tokenizer_config.json.",
        )
    ids: list[int] = tokenizer(row.text)["input_ids"]
    begin = tokenizer.bos_token_id
    if begin is not None and ids[:2] == [begin, begin]:
        ids = ids[1:]  # the text has the token that the tokenizer puts in front
    ids = ids if ids and ids[-1] == end else [*ids, end]
    return Rendered(ids, ((min(1, len(ids) - 1), len(ids)),), row.line)
