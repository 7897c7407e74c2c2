"""Preference pairs as token ids: one prompt, a chosen and a rejected answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from training.data.row import Row
from training.rendering.chat import render_rows
from tuneline.core.errors import DataError


@dataclass(frozen=True)
class Pair:
    """One pair as the model is trained on it; both answers end with a stop token."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]

    @property
    def sequences(self) -> list[list[int]]:
        """Return both sides, each with the prompt."""
        return [self.prompt_ids + self.chosen_ids, self.prompt_ids + self.rejected_ids]

    @property
    def num_tokens(self) -> int:
        """Return the length of the longer side, prompt and answer."""
        return len(self.prompt_ids) + max(len(self.chosen_ids), len(self.rejected_ids))

    @property
    def num_trained_tokens(self) -> int:
        return len(self.chosen_ids) + len(self.rejected_ids)


def render_pairs(
    tokenizer: Any, rows: Sequence[Row], *, stop_ids: Sequence[int], max_length: int, file: str
) -> list[Pair]:
    """Render pairs through the code that renders single answers, with its checks of both sides.

    Raises:
        ConfigError, DataError: As `render_rows` does, or the two answers of a row are equal.
    """
    sides = [
        render_rows(
            tokenizer,
            side,
            stop_ids=stop_ids,
            max_length=max_length,
            file=file,
            train_on="last_turn",
        )
        for side in (
            [replace(row, rejected=()) for row in rows],
            [replace(row, completion=row.rejected, rejected=()) for row in rows],
        )
    ]
    pairs = []
    for row, chosen, rejected in zip(rows, *sides, strict=True):
        start = chosen.num_prompt_tokens
        pair = Pair(
            chosen.input_ids[:start],
            chosen.input_ids[start:],
            rejected.input_ids[rejected.num_prompt_tokens :],
        )
        if pair.chosen_ids == pair.rejected_ids:
            raise DataError(
                f"{file}: line {row.line}: chosen and rejected are the same answer",
                hint="Remove the row: it says nothing about which answer is better.",
            )
        pairs.append(pair)
    return pairs
