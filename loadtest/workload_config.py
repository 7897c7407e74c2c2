"""The section `loadtest.workload` of run.yaml: the content of the requests."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from tuneline.core.config import StrictModel

FILES = ("sharegpt", "mooncake", "messages", "otel", "weka", "recorded")
"""Sources that read a file."""
TOKEN_IDS = ("synthetic", "mooncake", "weka")
"""Sources of token ids."""
POOLED = ("embeddings", "pooling", "classify", "score", "rerank")
"""Routes that answer with vectors or scores, not with tokens."""
OF_CHATS = ("output_tokens", "prefix_hit_rate", "sessions", "tools", "images")
"""Keys that need a route of chats."""
ONLY_SESSIONS = ("messages", "otel", "weka")
"""Sources that only hold conversations."""


class Delay(StrictModel):
    """A distribution of seconds between the end of a turn and the next turn."""

    distribution: Literal["fixed", "exponential", "lognormal"] = "fixed"
    mean: float = Field(ge=0)
    """Mean of the seconds themselves, also for a lognormal distribution."""
    stddev: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if (self.distribution == "lognormal") != (self.stddev is not None):
            raise ValueError("lognormal needs stddev; fixed and exponential have none")
        if self.distribution != "fixed" and self.mean == 0:
            raise ValueError(f"{self.distribution} needs a mean above 0")
        return self


class SessionsConfig(StrictModel):
    """Conversations as the unit of arrival. `rate_rps` then counts conversations per second,
    `concurrency` conversations in flight, and `num_requests` and `num_warmup_requests` count
    conversations. The next turn is due when its delay has passed since the end of the last one."""

    history: Literal["recorded", "own"] = "recorded"
    """`recorded`: the history has the answers of the file, so that two servers get the same work.
    `own`: it has the server's own answers."""
    think_s: Delay | Literal["recorded"] = Delay(mean=1.0)
    """Time before a turn of the user. `recorded`: as in the trace."""
    tool_delay_s: Delay | Literal["recorded"] | None = None
    """Time before a turn that begins with the result of a tool; without it, as `think_s`."""
    max_delay_s: float = Field(default=60.0, gt=0)
    """A longer delay is cut to this."""
    max_turns: int | None = Field(default=None, ge=1)
    """A longer conversation is cut after this many turns."""


class Length(StrictModel):
    """A distribution of token counts."""

    distribution: Literal["fixed", "normal", "lognormal"] = "fixed"
    mean: float = Field(gt=0)
    """Mean of the counts themselves, also for a lognormal distribution."""
    stddev: float | None = Field(default=None, gt=0)
    min: int = Field(default=1, ge=1)
    """A draw below `min` or above `max` is drawn again."""
    max: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if (self.distribution == "fixed") == (self.stddev is not None):
            raise ValueError("normal and lognormal need stddev; fixed has none")
        if self.mean < self.min or (self.max is not None and self.mean > self.max):
            raise ValueError("the mean lies outside min and max")
        return self


class ImagesConfig(StrictModel):
    """Images that each request brings: PNG files of random squares, as data URLs."""

    width: int = Field(ge=1, le=8192)
    """In pixels."""
    height: int = Field(ge=1, le=8192)
    count: int = Field(default=1, ge=1, le=100)
    """Images per request; of a conversation, in its first turn."""


class WorkloadConfig(StrictModel):
    """The content of the requests."""

    source: Literal[
        "prompts", "synthetic", "sharegpt", "mooncake", "messages", "otel", "weka", "recorded"
    ] = "prompts"
    """`prompts`: the prompts given to the load test, such as the held-out rows. `synthetic`: random
    token ids of exact lengths through `/v1/completions`. `sharegpt`: a JSON file of conversations.
    `mooncake`: a JSONL trace with timestamps, lengths and prefix blocks. `recorded`: the chats that
    a server recorded, each at its own time with `arrival: trace`; with `sessions` their
    conversations. With `sessions` also
    `messages`: JSON Lines with `messages`; `otel`: OpenTelemetry GenAI spans as OTLP JSON; `weka`:
    a trace of an agent with blocks, think times and sub-agents."""
    path: Path | None = Field(default=None, json_schema_extra={"keyed": False})
    """The file of a source that reads one, or the folder of recorded requests; relative to the
    current directory."""
    input_tokens: Length | None = None
    """`synthetic`: prompt lengths, shared prefix included."""
    output_tokens: Length | None = None
    """Answer lengths, in place of the common `max_tokens`; `ignore_eos` makes them exact."""
    max_token_id: int = Field(default=1000, ge=256)
    """`synthetic` and `mooncake`: token ids are drawn from 100 up to this one; keep it below the
    vocabulary's size."""
    shared_prefix_tokens: int | None = Field(default=None, ge=1)
    """`synthetic`: number of first tokens that the requests of a group share."""
    num_prefix_groups: int | None = Field(default=None, ge=1)
    unique_prompts: bool = False
    """Begin each prompt with a nonce, so that no prefix cache holds it."""
    prefix_hit_rate: float | None = Field(default=None, ge=0, le=1)
    """The share of prompt tokens that the server is expected to find in its cache; a run that
    differs by more than 0.05 is INVALID."""
    min_repeat_ttft_share: float | None = Field(default=None, gt=0, le=1)
    """The least TTFT of a repeated prompt, as a share of the TTFT of its first sending. A run whose
    repeats are faster is INVALID: a cache answers them."""
    multi_turn: bool = False
    """Send every user turn of a conversation as a request of its own, with the recorded answers
    as history. Otherwise a request holds a whole conversation (`sharegpt`: its first turn)."""
    sessions: SessionsConfig | None = None
    """Conversations as the unit of arrival."""
    route: Literal[
        "chat", "responses", "messages", "embeddings", "pooling", "classify", "score", "rerank"
    ] = "chat"
    """The route that is asked: `/v1/chat/completions`, `/v1/responses` or `/v1/messages`; for
    vectors and scores `/v1/embeddings`, `/pooling`, `/classify`, `/score` or `/v1/rerank`. Sources
    of token ids ask `/v1/completions`, or one of the routes that take an `input`."""
    tools: list[dict[str, Any]] | None = None
    """Tools of every request, in the form of OpenAI's chat route; other routes get their own
    form."""
    images: ImagesConfig | None = None
    """Images in the first message of the user of each request, after its text. With
    `unique_prompts`, each single request has images of its own."""
    models: dict[str, float] | None = None
    """Served names (adapters) and their weights in the traffic, in place of a single model."""

    @model_validator(mode="after")
    def _sound(self) -> Self:
        problems = []
        if (self.source in FILES) != (self.path is not None):
            problems.append(f"path goes with source: {', '.join(FILES)}")
        if self.source in ONLY_SESSIONS and self.sessions is None:
            problems.append(
                f"source: {self.source} needs sessions, such as sessions.think_s=recorded"
            )
        if self.sessions is not None:
            problems += self._problems_of_sessions()
        if (self.source == "synthetic") != (self.input_tokens is not None):
            problems.append("input_tokens goes with source: synthetic")
        if (self.shared_prefix_tokens is None) != (self.num_prefix_groups is None):
            problems.append("shared_prefix_tokens and num_prefix_groups go together")
        if self.shared_prefix_tokens is not None and self.source != "synthetic":
            problems.append("shared_prefix_tokens is for source: synthetic")
        shared, length = self.shared_prefix_tokens, self.input_tokens
        if shared is not None and length is not None and shared >= length.mean:
            problems.append(
                f"shared_prefix_tokens is {shared}; expected less than input_tokens.mean, "
                f"{length.mean:g}, or the prompts of a group are equal"
            )
        takes_ids = self.route in ("chat", "embeddings", "pooling", "classify")
        if self.source in TOKEN_IDS and not takes_ids:
            problems.append(f"route: {self.route} takes messages; {self.source} has token ids")
        if self.route in POOLED:
            unfit = [name for name in OF_CHATS if getattr(self, name) is not None]
            problems += [f"{name} is not for route: {self.route}" for name in unfit]
        if self.tools is not None and self.source in TOKEN_IDS:
            problems.append(f"tools go with messages; {self.source} has token ids")
        problems += tool_problems(self.tools or [])
        if self.images is not None and self.source in TOKEN_IDS:
            problems.append(f"images go with messages; {self.source} has token ids")
        if self.multi_turn and self.source not in ("prompts", "sharegpt"):
            problems.append("multi_turn is for source: prompts and source: sharegpt")
        if self.models is not None and not (
            self.models and all(weight > 0 for weight in self.models.values())
        ):
            problems.append("models needs at least one name, each with a weight above 0")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _problems_of_sessions(self) -> list[str]:
        problems = []
        if self.source == "synthetic":
            problems.append("sessions need a source of conversations; synthetic has none")
        if self.multi_turn:
            problems.append("sessions send every turn; multi_turn is for single requests")
        if self.min_repeat_ttft_share is not None:
            problems.append("min_repeat_ttft_share is for single requests, not for sessions")
        if self.unique_prompts and self.source in ("mooncake", "weka"):
            problems.append(
                f"source: {self.source} draws its own tokens; unique_prompts has no use"
            )
        return problems


def tool_problems(tools: list[dict[str, Any]]) -> list[str]:
    """Return which tools do not have the form of OpenAI's chat route."""
    problems = []
    for number, tool in enumerate(tools, start=1):
        function = tool.get("function")
        name = function.get("name") if isinstance(function, dict) else None
        if tool.get("type") != "function" or not isinstance(name, str) or not name:
            problems.append(f"tool {number} has no type: function with a function.name")
    return problems
