"""The `evaluation` and `reference` sections."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from training.config.types import PositiveInt
from tuneline.core.config import StrictModel
from tuneline.core.secrets import variable_name

MetricName = Literal[
    "exact_match", "fields", "classes", "chrf", "rouge_l", "nats", "json_schema", "python", "judge"
]
NOT_KEYED: dict[str, Any] = {"keyed": False}


class JudgeConfig(StrictModel):
    """A model behind an OpenAI-compatible endpoint that compares answers with the expected ones."""

    url: str
    """The server, up to and with `/v1`."""
    model: str
    """The model's name on that server."""
    api_key_env: Annotated[str, AfterValidator(variable_name)] = Field(
        default="JUDGE_API_KEY", json_schema_extra=NOT_KEYED
    )
    """The environment variable with the key."""
    criteria: str = "Prefer the answer that is more correct, complete and to the point."
    """The judge's question: the property of a better answer."""
    num_rows: PositiveInt = 50
    """The first rows that are judged; each takes two requests."""
    max_new_tokens: PositiveInt = 512
    """Most tokens of a judgement."""
    concurrency: PositiveInt = Field(default=4, json_schema_extra=NOT_KEYED)
    """Requests in flight."""
    timeout_s: Annotated[float, Field(gt=0)] = Field(default=120.0, json_schema_extra=NOT_KEYED)
    """For one request."""


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
    metrics: tuple[MetricName, ...] | None = None
    """Metrics besides exact match. If not given, the data chooses: `fields` if `fields` is set;
    `classes` if answers or fields have few distinct values; `chrf`, `rouge_l` and `nats` for free
    text; `python` and `judge` if they are set; `json_schema` if it is set or fields are JSON."""
    json_schema: str | None = Field(default=None, json_schema_extra=NOT_KEYED)
    """A JSON schema file that answers must fit, relative to this file."""
    python: str | None = None
    """A metric of your own, `file.py:function`, relative to this file."""
    judge: JudgeConfig | None = None
    forgetting: bool = Field(default=False, json_schema_extra=NOT_KEYED)
    """Whether the base and the tuned model also answer the forgetting suite: about 300 questions on
    skills that fine-tuning can damage."""


class ReferenceConfig(StrictModel):
    """The recorded answers of base + adapter in float32."""

    num_prompts: PositiveInt = 64
    """The first prompts of the held-out set."""
    max_new_tokens: PositiveInt = 128
    top_logprobs: Annotated[int, Field(ge=1, le=20)] = 10
    """Most likely tokens recorded for each position; OpenAI's API gives at most 20."""
