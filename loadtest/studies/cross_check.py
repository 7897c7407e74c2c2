"""The same requests through the `openai` client: do its tokens agree with the load client's?

A cross-check of meaning, not of speed: the client that users call the model with must see the
answers that the load test counts. Times differ by the cost of that client.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from loadtest.client.headers import header_values, with_headers
from loadtest.client.plan import Plan
from loadtest.client.prepare import make_plan
from loadtest.client.processes import run_workers
from loadtest.client.records import SUCCEEDED
from loadtest.config import LoadTestConfig, Scenario
from loadtest.measure import judged
from loadtest.report.build import Result
from loadtest.run import check_served
from tuneline.core.endpoint import Endpoint
from tuneline.core.environment import require
from tuneline.core.messages import ChatPrompt
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
    """By the openai client; null if no request succeeded."""
    our_ttft_p50_s: float | None
    result: Result
    """Ours."""


def cross_check(
    config: LoadTestConfig,
    scenario: Scenario,
    endpoint: Endpoint,
    *,
    prompts: Sequence[ChatPrompt],
) -> CrossCheck:
    """Run one open-loop scenario with our client, then with the openai client.

    Raises:
        MissingError: The openai package is not installed.
        ServerError: The endpoint cannot be reached, or does not serve the model.
        ValueError: A closed loop, which has no schedule to share.
    """
    if scenario.loop == "closed":
        raise ValueError("the cross-check needs an open loop: a closed one has no schedule")
    endpoint = with_headers(config, endpoint)
    check_served(config, endpoint, ())
    plan, workload = make_plan(config, scenario, endpoint, prompts, seed=config.seed)
    result = judged(config, scenario, plan, workload, run_workers(plan, endpoint.api_key))
    answers = asyncio.run(_send_all(plan, endpoint, config.timeout_s))
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


async def _send_all(
    plan: Plan, endpoint: Endpoint, timeout_s: float
) -> list[tuple[float, int] | None]:
    """Send a schedule with the openai client; return TTFT and tokens of each request, None if it
    failed."""
    openai = require("openai", "loadtest")
    arrivals_s = plan.arrivals_s or []
    headers = header_values(endpoint.headers)

    async def send(client: Any, index: int, start_s: float) -> tuple[float, int] | None:
        body = json.loads(plan.bodies[plan.body_of[index % len(plan.body_of)]])
        known = {k: body.pop(k) for k in ("model", "messages", "max_tokens", "stream_options")}
        body.pop("stream")
        await asyncio.sleep(max(start_s + arrivals_s[index] - time.monotonic(), 0))
        sent_s = time.monotonic()
        first_s, tokens = None, None
        try:
            stream = await client.chat.completions.create(
                **known, stream=True, extra_body=body, timeout=timeout_s, extra_headers=headers
            )
            async for event in stream:
                if first_s is None and event.choices and event.choices[0].delta.content:
                    first_s = time.monotonic()
                if event.usage is not None:
                    tokens = event.usage.completion_tokens
        except (openai.OpenAIError, ValueError):  # a ValueError: an event that is not JSON
            return None
        return None if first_s is None or tokens is None else (first_s - sent_s, tokens)

    async with async_openai_client(
        endpoint, timeout_s=timeout_s, max_retries=0, extra="loadtest"
    ) as client:
        start_s = time.monotonic() + 0.2
        return await asyncio.gather(
            *(send(client, index, start_s) for index in range(len(arrivals_s)))
        )
