"""`source: synthetic`: random token ids of exact lengths. Pure."""

from __future__ import annotations

import numpy as np

from loadtest.workload.content import Content, Prompt, Wanted, token_ids
from loadtest.workload.lengths import draw_lengths
from loadtest.workload_config import WorkloadConfig

MAX_PROMPTS = 2000


def read(wanted: Wanted) -> Content:
    """Return a prompt per request, up to MAX_PROMPTS."""
    count = min(wanted.num_requests or MAX_PROMPTS, MAX_PROMPTS)
    return Content(synthetic(wanted.workload, wanted.rng, count))


def synthetic(workload: WorkloadConfig, rng: np.random.Generator, count: int) -> list[Prompt]:
    """Return random token ids of exact lengths; the prompts of a group share their first tokens."""
    assert workload.input_tokens is not None  # noqa: S101 (the config requires it)
    lengths = draw_lengths(workload.input_tokens, rng, count)
    num_shared = workload.shared_prefix_tokens or 0
    prefixes = [
        token_ids(rng, num_shared, workload) for _ in range(workload.num_prefix_groups or 1)
    ]
    return [
        Prompt((prefixes[number % len(prefixes)] + token_ids(rng, size, workload))[:size])
        for number, size in enumerate(lengths)
    ]
