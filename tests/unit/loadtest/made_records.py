"""Records of a run that never happened, with answers worked out by a queue of known rules."""

from typing import Any

import numpy as np

from loadtest.client.records import CANCELLED, FAILED, SUCCEEDED, Records


def made_records(
    num_requests: int,
    *,
    seed: int = 0,
    rate_rps: float = 20.0,
    num_warmup: int = 0,
    failed: float = 0.0,
    left: float = 0.0,
    tokens: int = 6,
    drift_per_s: float = 0.0,
) -> Records:
    """Return requests of a Poisson process whose TTFT is a correlated series."""
    rng = np.random.default_rng(seed)
    intended = np.cumsum(rng.exponential(1 / rate_rps, num_requests))
    noise = rng.exponential(0.05, num_requests + 9)
    slow = np.convolve(noise, np.ones(10) / 10, "valid")[:num_requests]
    ttft = 0.1 + slow + drift_per_s * intended
    gaps = rng.uniform(0.01, 0.03, (num_requests, tokens - 1))
    events = (
        intended[:, None]
        + ttft[:, None]
        + np.concatenate([np.zeros((num_requests, 1)), np.cumsum(gaps, axis=1)], axis=1)
    )
    draw = rng.uniform(size=num_requests)
    state = np.full(num_requests, SUCCEEDED, np.uint8)
    state[draw < failed] = FAILED
    state[draw > 1 - left] = CANCELLED
    nothing = np.full(num_requests, np.nan)
    values: dict[str, Any] = {
        "index": np.arange(num_requests),
        "session": np.arange(num_requests),
        "turn": np.zeros(num_requests, np.int64),
        "warmup": np.arange(num_requests) < num_warmup,
        "state": state,
        "error": np.where(state == FAILED, "http_500", "").astype("U32"),
        "intended_s": intended,
        "sent_s": intended + 0.0001,
        "connect_s": np.where(draw < 0.01, 0.005, 0.0),
        "first_byte_s": events[:, 0],
        "first_token_s": events[:, 0],
        "last_token_s": events[:, -1],
        "end_s": events[:, -1],
        "tokens": np.full(num_requests, float(tokens)),
        "first_tokens": np.ones(num_requests),
        "prompt_tokens": np.full(num_requests, 10.0),
        "cached_tokens": nothing,
        "retry_after_s": nothing,
        "resent": np.zeros(num_requests, np.bool_),
        "without_done": np.zeros(num_requests, np.bool_),
        "merged_events": np.zeros(num_requests, np.int64),
        "num_events": np.full(num_requests, tokens),
        "event_s": events.ravel(),
        "event_tokens": np.ones(num_requests * tokens),
    }
    return Records(**values)
