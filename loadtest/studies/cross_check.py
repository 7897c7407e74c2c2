"""The same requests through the `openai` client: do its tokens and times agree with ours?

A cross-check of meaning, not of speed: the client that users call the model with must see the
answers that the load test counts. Times differ by what that client itself costs.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from loadtest.client.prepare import make_plan
from loadtest.client.processes import run_workers
from loadtest.client.records import SUCCEEDED
from loadtest.config import LoadTestConfig, Scenario
from loadtest.measure import judged
from loadtest.report.build import Result
from tuneline.core.endpoint import Endpoint
from tuneline.core.environment import require
from tuneline.core.messages import Messages
from tuneline.core.openai_client import async_openai_client


@dataclass(frozen=True)
class CrossCheck:
    """Both clients over one schedule."""

    num_requests: int
    num_succeeded: int
    """By the openai client."""
    num_equal_tokens: int
    """Requests whose usage both clients read alike; `extra_body` must make answers repeatable."""
    ttft_p50_s: float | None
    """By the openai client; null where no request succeeded."""
    our_ttft_p50_s: float | None
    result: Result
    """Ours."""


def cross_check(
    config: LoadTestConfig,
    scenario: Scenario,
    endpoint: Endpoint,
    *,
    prompts: Sequence[Messages],
) -> CrossCheck:
    """Run one open-loop scenario with our client, then with the openai client.

    Raises:
        MissingError: The openai package is not installed.
        ValueError: A closed loop, which has no schedule to share.
    """
    if scenario.loop == "closed":
        raise ValueError("the cross-check needs an open loop: a closed one has no schedule")
    openai = require("openai", "loadtest")
    plan, workload = make_plan(config, scenario, endpoint, prompts, seed=config.seed)
    result = judged(config, scenario, plan, workload, run_workers(plan, endpoint.api_key))
    assert plan.arrivals_s is not None  # noqa: S101 (an open loop has them)
    arrivals_s = plan.arrivals_s

    async def one(client: object, index: int, start_s: float) -> tuple[float, int] | None:
        body = json.loads(plan.bodies[plan.body_of[index % len(plan.body_of)]])
        known = {k: body.pop(k) for k in ("model", "messages", "max_tokens", "stream_options")}
        body.pop("stream")
        await asyncio.sleep(max(start_s + arrivals_s[index] - time.monotonic(), 0))
        sent_s = time.monotonic()
        first_s, tokens = None, None
        try:
            stream = await client.chat.completions.create(  # type: ignore[attr-defined]
                **known, stream=True, extra_body=body, timeout=config.timeout_s
            )
            async for event in stream:
                if first_s is None and event.choices and event.choices[0].delta.content:
                    first_s = time.monotonic()
                if event.usage is not None:
                    tokens = event.usage.completion_tokens
        except (openai.OpenAIError, ValueError):  # the latter: an event that is not JSON
            return None
        return None if first_s is None or tokens is None else (first_s - sent_s, tokens)

    async def all_of_them() -> list[tuple[float, int] | None]:
        async with async_openai_client(
            endpoint, timeout_s=config.timeout_s, max_retries=0, extra="loadtest"
        ) as client:
            start_s = time.monotonic() + 0.2
            return await asyncio.gather(
                *(one(client, index, start_s) for index in range(len(arrivals_s)))
            )

    answers = asyncio.run(all_of_them())
    seen = [answer for answer in answers if answer is not None]
    ours = {
        int(index): float(tokens)
        for index, tokens, state in zip(
            result.records.index, result.records.tokens, result.records.state, strict=True
        )
        if state == SUCCEEDED
    }
    equal = sum(
        answer is not None and ours.get(index) == answer[1] for index, answer in enumerate(answers)
    )
    ok = result.records.select(result.records.state == SUCCEEDED)
    return CrossCheck(
        num_requests=len(answers),
        num_succeeded=len(seen),
        num_equal_tokens=equal,
        ttft_p50_s=float(np.median([ttft for ttft, _ in seen])) if seen else None,
        our_ttft_p50_s=float(np.median(ok.first_token_s - ok.sent_s)) if len(ok) else None,
        result=result,
    )
