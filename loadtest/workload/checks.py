"""The reference's prompts among the requests: what is asked, and which arrivals ask it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tuneline.core.artifact import Artifact
from tuneline.core.messages import as_request
from tuneline.core.reference import Continuation, comparable_settings, read_reference
from tuneline.core.tolerances import Tolerances

CYCLE = 10_000
"""Arrivals after which the places of the checks repeat, if their number is not known."""


@dataclass(frozen=True)
class Checks:
    """The prompts of a reference, with their right answers."""

    expected: list[Continuation]
    settings: Mapping[str, int]
    """`max_new_tokens` and `top_logprobs` of the reference."""
    template_kwargs: Mapping[str, str]
    tolerances: Tolerances
    share: float
    max_length_drift: float


def read_checks(
    reference: Artifact, tolerances: Tolerances, share: float, max_length_drift: float
) -> Checks:
    """Return the checks of a reference artifact."""
    kwargs = reference.manifest.metrics.get("chat_template_date_variable") or {}
    return Checks(
        read_reference(reference),
        comparable_settings(reference),
        kwargs,
        tolerances,
        share,
        max_length_drift,
    )


def options_of(checks: Checks, tools: Sequence[Any]) -> dict[str, Any]:
    """Return the body of a check with these tools, without its model and its messages.

    The keys beyond OpenAI's are vLLM's, for the ids of tokens; a server that ignores them is
    compared by its texts.
    """
    kwargs = dict(checks.template_kwargs)
    return {
        "max_tokens": checks.settings["max_new_tokens"],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.0,
        "logprobs": True,
        "top_logprobs": checks.settings["top_logprobs"],
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
        "repetition_penalty": 1.0,
        **({"chat_template_kwargs": kwargs} if kwargs else {}),
        **({"tools": list(tools), "tool_choice": "none"} if tools else {}),
    }


def check_bodies(checks: Checks, model: str) -> list[str]:
    """Return the request bodies of the reference's prompts."""
    return [
        json.dumps(
            {
                "model": model,
                "messages": as_request(one.messages),
                **options_of(checks, one.tools),
            },
            ensure_ascii=False,
        )
        for one in checks.expected
    ]


def check_places(share: float, count: int, rng: np.random.Generator) -> list[int]:
    """Return which of `count` arrivals are checks: one in each stretch of 1/share arrivals, at a
    random place, so that every part of a run has its share."""
    period = 1 / share
    starts = np.arange(0, count, period)
    places = np.floor(starts + rng.uniform(0, period, len(starts))).astype(np.int64)
    return sorted({int(one) for one in places if one < count})


def with_checks(
    body_of: list[int], num_bodies: int, checks: Checks, count: int | None, seed: int
) -> list[int]:
    """Return the body of each arrival, if some arrivals are checks.

    Args:
        body_of: The order of the other bodies, which repeats.
        num_bodies: The number of other bodies; body `num_bodies + k` is check k.
        checks: For their number and their share.
        count: How many arrivals there are; None if only the server decides.
        seed: Of the places.
    """
    count = count or CYCLE
    chosen = set(check_places(checks.share, count, np.random.default_rng([seed, 3])))
    found: list[int] = []
    num_others = 0
    for place in range(count):
        if place in chosen:
            number = place - num_others
            found.append(num_bodies + number % len(checks.expected))
        else:
            found.append(body_of[num_others % len(body_of)])
            num_others += 1
    return found
