"""The reference: what base + adapter answer in float32, the one truth later forms are held against.

An artifact of kind `reference` holds one file, `reference.jsonl`, a `Continuation` per line.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict

from tuneline.core.artifact import Artifact
from tuneline.core.config import StrictModel

REFERENCE_FILE = "reference.jsonl"


class Continuation(StrictModel):
    """One prompt and the greedy answer that a form of the model gives to it."""

    # A broken form may give NaN: that is a finding, not a fault of the file.
    model_config = ConfigDict(allow_inf_nan=True)

    messages: list[dict[str, str]]
    """Chat messages, `role` and `content` each; the last is the user's."""
    prompt_token_ids: list[int]
    """The rendered chat template with the generation prompt."""
    token_ids: list[int]
    """The greedy answer, with the stop token where it stopped by itself."""
    logprobs: list[float]
    """Natural-log probability of each token of `token_ids`."""
    top_logprobs: list[dict[int, float]]
    """For each position the most likely tokens, token id to log-probability."""
    text: str
    """The answer without special tokens."""
    finish_reason: Literal["stop", "length"]
    expected: str | None = None
    """The right answer, where the data gives one."""


def write_continuations(path: Path, continuations: Sequence[Continuation]) -> None:
    lines = (continuation.model_dump_json() + "\n" for continuation in continuations)
    path.write_text("".join(lines), encoding="utf-8")


def read_reference(reference: Artifact) -> list[Continuation]:
    """The prompts and golden answers of a reference artifact, in order."""
    text = (reference.path / REFERENCE_FILE).read_text(encoding="utf-8")
    # Not splitlines(), which also splits at line separators inside a JSON string.
    return [Continuation.model_validate_json(line) for line in text.split("\n") if line]


def reference_noise(reference: Artifact) -> float | None:
    """What two runs of the reference differ by at most, in nats; None where it was not measured."""
    noise = reference.manifest.metrics.get("repeat_max_logprob_difference")
    return None if noise is None else float(noise)


def comparable_settings(reference: Artifact) -> dict[str, Any]:
    """What a candidate must do alike: `max_new_tokens`, `top_logprobs`."""
    config = reference.manifest.config
    return {name: config[name] for name in ("max_new_tokens", "top_logprobs")}
