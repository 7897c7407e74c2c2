"""The routes next to chat against the server of known delays."""

import json
from typing import Any

import anthropic
import numpy as np
import openai
import pytest
from anthropic.types.message_create_params import MessageCreateParamsStreaming
from openai.types.responses.response_create_params import ResponseCreateParamsStreaming
from pydantic import TypeAdapter

from loadtest.client.prepare import make_plan
from loadtest.client.processes import run_workers
from loadtest.measure import judged
from tests.integration.loadtest.small import config

pytestmark = pytest.mark.usefixtures("shared_host")

FAULTS = {
    "500": "http_500", "reset": "connection_reset", "cut": "truncated_stream",
    "no-done": "truncated_stream", "invalid-sse": "invalid_sse", "error-event": "error_event",
    "empty": "empty_answer", "not-stream": "not_a_stream", "split": None, "multi": None,
    "length": None, "crlf": None, "close": None, "no-usage": None,
}  # fmt: skip


@pytest.mark.parametrize("route", ["responses", "messages"])
def test_times_and_tokens_of_a_route_are_the_servers(known: Any, route: str) -> None:
    settings = config(
        scenarios=[{"name": "x", "concurrency": 8, "num_requests": 80}],
        workload={"route": route}, num_warmup_requests=0,
    )  # fmt: skip
    before = len(known.truths())
    plan, workload = make_plan(
        settings, settings.scenarios[0], known.endpoint, [[{"role": "user", "content": "q"}]],
        seed=0,
    )  # fmt: skip
    measured = run_workers(plan, None)
    result = judged(settings, settings.scenarios[0], plan, workload, measured)
    assert result.stats.num_succeeded == 80, result.stats.errors
    records = result.records
    truths = sorted(known.truths()[before:], key=lambda one: int(one["request_id"]))
    assert len(truths) == 80
    assert records.tokens.tolist() == [one["num_tokens"] for one in truths]
    assert records.num_events.tolist() == [len(one["token_write_ns"]) for one in truths]
    assert (records.prompt_tokens == 7).all()
    first_s = [(one["token_write_ns"][0] - one["received_ns"]) / 1e9 for one in truths]
    assert abs(np.median(records.first_token_s - records.sent_s - first_s)) < 0.003
    last_s = [(one["token_write_ns"][-1] - one["token_write_ns"][0]) / 1e9 for one in truths]
    assert abs(np.median(records.last_token_s - records.first_token_s - last_s)) < 0.003


@pytest.mark.parametrize("route", ["responses", "messages"])
def test_faults_of_a_route_have_their_classes(known: Any, route: str) -> None:
    prompts = [[{"role": "user", "content": f"fault:{name}"}] for name in FAULTS]
    settings = config(
        scenarios=[{"name": "x", "concurrency": 4, "num_requests": len(FAULTS)}],
        workload={"route": route}, num_warmup_requests=0, timeout_s=5.0,
    )  # fmt: skip
    plan, workload = make_plan(settings, settings.scenarios[0], known.endpoint, prompts, seed=0)
    result = judged(settings, settings.scenarios[0], plan, workload, run_workers(plan, None))
    # `message_delta` has the stop reason: a whole body without `message_stop` is a whole answer.
    is_whole = route == "messages"
    expected = sorted(
        error for name, error in FAULTS.items() if error and not (is_whole and name == "no-done")
    )
    found = sorted(name for name, count in result.stats.errors.items() for _ in range(count))
    assert found == expected
    assert result.stats.tokens.num_without_done == int(is_whole)
    assert result.stats.num_succeeded == len(FAULTS) - len(expected)


TOOL = {
    "type": "function",
    "function": {"name": "f", "description": "d", "parameters": {"type": "object"}},
}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
TALK: list[Any] = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "q"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "rain", "tool_call_id": "c1"},
]


def body_of(known: Any, route: str) -> dict[str, Any]:
    """Return the body that a load test sends for a talk with tools."""
    settings = config(workload={"route": route, "tools": [TOOL]}, num_warmup_requests=0)
    plan, _ = make_plan(settings, settings.scenarios[0], known.endpoint, [TALK], seed=0)
    body: dict[str, Any] = json.loads(plan.bodies[0])
    return body


def test_openais_client_sends_the_same_body_and_reads_the_same_answer(known: Any) -> None:
    body = body_of(known, "responses")
    TypeAdapter(ResponseCreateParamsStreaming).validate_python(body)
    client = openai.OpenAI(base_url=known.endpoint.url, api_key="none")
    events = list(client.responses.create(**body))
    texts = [one.delta for one in events if one.type == "response.output_text.delta"]
    assert events[-1].type == "response.completed"
    assert len(texts) == events[-1].response.usage.output_tokens == body["max_output_tokens"]
    assert known.truths()[-1]["num_tokens"] == len(texts)


def test_anthropics_client_sends_the_same_body_and_reads_the_same_answer(known: Any) -> None:
    body = body_of(known, "messages")
    TypeAdapter(MessageCreateParamsStreaming).validate_python(body)
    root = known.endpoint.url.removesuffix("/v1")
    client = anthropic.Anthropic(base_url=root, api_key="none")
    # The route takes a temperature; this version of the client does not name it.
    extra = {"temperature": body.pop("temperature")}
    events = list(client.messages.create(**body, extra_body=extra))
    texts = [
        one.delta.text
        for one in events
        if one.type == "content_block_delta" and one.delta.type == "text_delta"
    ]
    (end,) = [one for one in events if one.type == "message_delta"]
    assert events[-1].type == "message_stop"
    assert len(texts) == end.usage.output_tokens == body["max_tokens"]
    assert known.truths()[-1]["num_tokens"] == len(texts)
