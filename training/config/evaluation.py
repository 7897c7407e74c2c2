"""The `evaluation` and `reference` sections."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from training.config.types import PositiveInt
from tuneline.core.config import StrictModel


class EvaluationConfig(StrictModel):
    """Greedy answers to held-out prompts, compared with the expected ones."""

    max_new_tokens: PositiveInt = 256
    batch_size: PositiveInt | None = None
    """Prompts answered at once, in this process or as concurrent requests. If not given, as many as
    fit into memory, at most 64; 16 as requests."""
    num_rows: PositiveInt | None = None
    """The first rows of the held-out set; all if not given."""
    fields: Literal["lines", "json"] | None = None
    """How an answer splits into fields that are scored separately: `Name: value` lines, or the
    keys of a JSON object. None scores whole answers only."""


class ReferenceConfig(StrictModel):
    """The recorded answers of base + adapter in float32."""

    num_prompts: PositiveInt = 64
    """The first prompts of the held-out set."""
    max_new_tokens: PositiveInt = 128
    top_logprobs: Annotated[int, Field(ge=1, le=20)] = 10
    """Most likely tokens recorded for each position; OpenAI's API gives at most 20."""
