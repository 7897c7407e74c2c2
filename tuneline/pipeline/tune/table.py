"""The flags that a tuning tries: a row for each, in the order in which they are likely to gain.

A row gives the settings to try as keys of run.yaml with their values, and says why it does not suit
a run. To add a flag is to add a row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serving.config import ServingConfig

Settings = Mapping[str, Any]
"""Values by the path of their key in run.yaml."""

SEQS, BATCHED = "serving.max_num_seqs", "serving.max_num_batched_tokens"
PREFIX_CACHING = "serving.extra_args.enable_prefix_caching"
CHUNKED_PREFILL = "serving.extra_args.enable_chunked_prefill"
SPECULATION = "serving.extra_args.speculative_config"
STREAM_INTERVAL = "serving.extra_args.stream_interval"


@dataclass(frozen=True)
class Facts:
    """The parts of a run that decide which flags suit it.

    Attributes:
        forms: Quantized forms that the line has exported, by their scheme.
        prunes: Whether the run has the section `export.prune`.
        drafter: The folder of a smaller model of the same vocabulary.
    """

    serving: ServingConfig
    has_gpu: bool
    forms: Sequence[str] = ()
    drafter: Path | None = None
    prunes: bool = False


@dataclass(frozen=True)
class Knob:
    """A row of the table.

    Attributes:
        reason: How the flag may gain.
        values: Returns the settings to try, the likely gains first.
        unsuited: Returns why the flag does not suit a run; None if it does.
    """

    name: str
    reason: str
    values: Callable[[Facts], Sequence[Settings]]
    unsuited: Callable[[Facts], str | None] = field(default=lambda _: None)


def _weights(facts: Facts) -> list[Settings]:
    # vLLM's INT8 product on a CPU takes no float32.
    needs_bfloat16 = not facts.has_gpu and facts.serving.dtype == "float32"
    # Forms are made of an unquantized merge, so the tuned run has none.
    without_forms: dict[str, Any] = {"export.forms": []}
    if facts.prunes:
        without_forms["export.prune"] = None
    return [
        {"export.merge.quantize": scheme}
        | without_forms
        | ({"serving.dtype": "bfloat16"} if scheme == "int8" and needs_bfloat16 else {})
        for scheme in facts.forms
    ]


def _why_no_weights(facts: Facts) -> str | None:
    if facts.serving.mode == "adapter":
        return "serving.mode: adapter serves the base model's own weights"
    if not facts.forms:
        return (
            "the line has exported no quantized form "
            "(export.forms: quantized-fp8, quantized-int8, quantized-w4a16)"
        )
    return None


def _whole_prefill(facts: Facts) -> list[Settings]:
    # Without chunks, a step must hold the longest prompt.
    longest = facts.serving.max_model_len or 0
    return [{CHUNKED_PREFILL: False, BATCHED: max(longest, 2048)}]


def _drafted(facts: Facts) -> list[Settings]:
    return [
        {SPECULATION: {"model": str(facts.drafter), "num_speculative_tokens": number}}
        for number in (3, 5)
    ]


def _given(*names: str) -> Callable[[Facts], str | None]:
    """Return the reason against a flag that run.yaml sets already in `extra_args`."""

    def unsuited(facts: Facts) -> str | None:
        found = sorted(set(names) & facts.serving.given_args)
        return f"run.yaml sets serving.extra_args.{found[0]}" if found else None

    return unsuited


KNOBS: tuple[Knob, ...] = (
    Knob(
        "compilation",
        "compiled graphs answer faster; the start takes longer",
        lambda _: [{"serving.enforce_eager": False}],
        lambda facts: None if facts.serving.enforce_eager else "run.yaml compiles already",
    ),
    Knob(
        "quantized weights",
        "fewer bytes are read for each token",
        _weights,
        _why_no_weights,
    ),
    Knob(
        "batched tokens",
        "a larger step prefills more prompts at once; a smaller one holds up running answers less",
        lambda _: [{BATCHED: tokens} for tokens in (4096, 1024, 8192, 512)],
    ),
    Knob(
        "sequences",
        "more requests share a step; fewer keep a step short",
        lambda _: [{SEQS: number} for number in (64, 256, 32, 512)],
    ),
    Knob(
        "prefix caching",
        "without common beginnings of prompts, the hashes of the cache cost time",
        lambda _: [{PREFIX_CACHING: False}],
        _given("enable_prefix_caching", "no_enable_prefix_caching"),
    ),
    Knob(
        "stream interval",
        "an event of a stream has several tokens, so the HTTP server and its clients do less",
        lambda _: [{STREAM_INTERVAL: number} for number in (8, 4)],
        _given("stream_interval"),
    ),
    Knob(
        "drafter",
        "a small model proposes tokens, and the model checks several in one step",
        _drafted,
        lambda facts: "no --drafter is given"
        if facts.drafter is None
        else _given("speculative_config")(facts),
    ),
    Knob(
        "n-gram speculation",
        "tokens that repeat the prompt are proposed from it, and checked several in one step",
        lambda _: [
            {SPECULATION: {"method": "ngram", "num_speculative_tokens": number,
                           "prompt_lookup_max": 4}}
            for number in (3, 5)
        ],
        _given("speculative_config"),
    ),
    Knob(
        "whole prefill",
        "a prompt is prefilled in one step",
        _whole_prefill,
        _given("enable_chunked_prefill", "no_enable_chunked_prefill"),
    ),
)  # fmt: skip


def is_own(settings: Settings, serving: ServingConfig) -> bool:
    """Return whether a run has all of these settings already."""
    section = {f"serving.{name}": value for name, value in serving.model_dump().items()}
    section |= {f"serving.extra_args.{name}": value for name, value in serving.extra_args.items()}
    return all(key in section and section[key] == value for key, value in settings.items())


def is_impossible(settings: Settings, serving: ServingConfig) -> str | None:
    """Return why vLLM's engine refuses settings that its parser takes; None if it does not."""
    seqs = settings.get(SEQS, serving.max_num_seqs)
    batched = settings.get(BATCHED, serving.max_num_batched_tokens)
    if seqs is not None and batched is not None and batched < seqs:
        return f"{batched} batched tokens are fewer than {seqs} sequences"
    longest = serving.max_model_len
    is_whole = settings.get(CHUNKED_PREFILL) is False
    if is_whole and batched is not None and longest is not None and batched < longest:
        return f"{batched} batched tokens hold no prompt of {longest} tokens without chunks"
    return None
