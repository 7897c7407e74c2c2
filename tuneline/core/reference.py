"""The reference: the answers of base model and adapter in float32, for comparison with every form.

An artifact of kind `reference` has one file, `reference.jsonl`, with a `Continuation` per line.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field

from tuneline.core.artifact import Artifact
from tuneline.core.config import StrictModel
from tuneline.core.messages import Messages

REFERENCE_FILE = "reference.jsonl"


class Continuation(StrictModel):
    """One prompt and the greedy answer that a form of the model gives to it."""

    # A broken form may give NaN. That is a finding, not an error in the file.
    model_config = ConfigDict(allow_inf_nan=True)

    messages: Messages
    """Chat messages, `role` and `content` each; the last is the user's."""
    prompt_token_ids: list[int]
    """The rendered chat template with the generation prompt."""
    token_ids: list[int]
    """The greedy answer, with the stop token if the model stopped by itself."""
    logprobs: list[float]
    """Natural-log probability of each token of `token_ids`."""
    top_logprobs: list[dict[int, float]]
    """For each position the most likely tokens, token id to log-probability."""
    text: str
    """The answer without special tokens."""
    finish_reason: Literal["stop", "length"]
    expected: str | None = None
    """The right answer, if the data gives one."""
    tools: list[dict[str, Any]] = Field(default=[])
    """The tools that the prompt shows to the model, as OpenAI's JSON."""


def write_continuations(path: Path, continuations: Sequence[Continuation]) -> None:
    """Write one JSON line per continuation."""
    lines = (
        one.model_dump_json(exclude=None if one.tools else {"tools"}) + "\n"
        for one in continuations
    )
    path.write_text("".join(lines), encoding="utf-8")


def read_reference(reference: Artifact) -> list[Continuation]:
    """Return the prompts and answers of a reference artifact, in order."""
    text = (reference.path / REFERENCE_FILE).read_text(encoding="utf-8")
    # Not splitlines(), which also splits at line separators inside a JSON string.
    return [Continuation.model_validate_json(line) for line in text.split("\n") if line]


def reference_noise(reference: Artifact) -> float | None:
    """Return the largest difference of two runs of the reference in nats; None if not measured."""
    noise = reference.manifest.metrics.get("repeat_max_logprob_difference")
    return None if noise is None else float(noise)


def reference_date(reference: Artifact) -> datetime.date | None:
    """Return the day that the reference's prompts have in place of today; None without a date."""
    day = reference.manifest.metrics.get("chat_template_date")
    return None if day is None else datetime.date.fromisoformat(day)


def comparable_settings(reference: Artifact) -> dict[str, Any]:
    """Return the settings that a form must share: `max_new_tokens`, `top_logprobs`."""
    config = reference.manifest.config
    return {name: config[name] for name in ("max_new_tokens", "top_logprobs")}
