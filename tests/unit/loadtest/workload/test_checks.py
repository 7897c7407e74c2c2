"""Where the reference's prompts are among the requests."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from loadtest.client.greedy import greedy_answer
from loadtest.client.prepare import make_plan
from loadtest.config import LoadTestConfig
from loadtest.judging.answers import judge_answers
from loadtest.judging.server_metrics import ABORTED, parse
from loadtest.workload.checks import Checks, check_bodies, check_places
from tuneline.core.config import validate_config
from tuneline.core.endpoint import Endpoint
from tuneline.core.errors import ConfigError
from tuneline.core.reference import Continuation
from tuneline.core.tolerances import Tolerances

ENDPOINT = Endpoint("http://127.0.0.1:1/v1", "m")
PROMPTS = [[{"role": "user", "content": f"question {number}"}] for number in range(10)]


def checks(share: float = 0.2) -> Checks:
    right = [
        Continuation(
            messages=[{"role": "user", "content": f"reference {number}"}], prompt_token_ids=[1],
            token_ids=[2], logprobs=[-0.1], top_logprobs=[{2: -0.1}], text="x",
            finish_reason="stop",
        )
        for number in range(3)
    ]  # fmt: skip
    settings = {"max_new_tokens": 24, "top_logprobs": 5}
    return Checks(right, settings, {"date_string": "1 May"}, Tolerances(), share, 0.1)


def plan_of(scenario: dict[str, Any], asked: Checks | None = None, **options: Any) -> Any:
    values = {"scenarios": [{"name": "x", **scenario}], "num_warmup_requests": 0, **options}
    chosen = validate_config(LoadTestConfig, values, "test")
    asked = asked or checks()
    plan, _ = make_plan(chosen, chosen.scenarios[0], ENDPOINT, PROMPTS, seed=0, checks=asked)
    return plan


@pytest.mark.parametrize(("share", "count"), [(0.05, 1000), (0.3, 77), (1.0, 9), (0.001, 5)])
def test_every_stretch_of_arrivals_has_its_check(share: float, count: int) -> None:
    places = check_places(share, count, np.random.default_rng(1))
    assert len(places) == pytest.approx(share * count, abs=1)
    assert all(0 <= one < count for one in places)
    for number, place in enumerate(places):
        assert number / share - 1 <= place < (number + 1) / share


@pytest.mark.parametrize(
    "scenario", [{"rate_rps": 5, "num_requests": 50}, {"concurrency": 4, "duration_s": 5}]
)
def test_requests_are_the_workloads_and_the_references(scenario: dict[str, Any]) -> None:
    plan = plan_of(scenario)
    bodies = [json.loads(plan.bodies[plan.body_place(index)]) for index in range(50)]
    numbers = [plan.check_of(index) for index in range(50)]
    asked = [number for number in numbers if number is not None]
    assert len(asked) == 10 and asked[:4] == [0, 1, 2, 0]
    for body, number in zip(bodies, numbers, strict=True):
        text = body["messages"][0]["content"]
        assert text.startswith("question" if number is None else f"reference {number}")
        if number is not None:
            assert body | {"messages": 0} == {
                "model": "m", "messages": 0, "max_tokens": 24, "stream": True,
                "stream_options": {"include_usage": True}, "temperature": 0.0, "logprobs": True,
                "top_logprobs": 5, "return_token_ids": True, "return_tokens_as_token_ids": True,
                "repetition_penalty": 1.0, "chat_template_kwargs": {"date_string": "1 May"},
            }  # fmt: skip


def test_a_check_sends_the_tools_and_the_calls_of_its_prompt() -> None:
    call = {"type": "function", "function": {"name": "look", "arguments": {"n": 1}}}
    messages = [{"role": "user", "content": "Look."},
                {"role": "assistant", "tool_calls": [call]},
                {"role": "tool", "content": "seen"}]  # fmt: skip
    tool = {"type": "function", "function": {"name": "look", "parameters": {}}}
    found = checks()
    found.expected[0] = found.expected[0].model_copy(update={"messages": messages, "tools": [tool]})
    first, second, _ = (json.loads(body) for body in check_bodies(found, "m"))
    assert (first["tools"], first["tool_choice"]) == ([tool], "none")
    assert first["messages"][1]["tool_calls"][0]["function"]["arguments"] == '{"n": 1}'
    assert first["messages"][2]["tool_call_id"] == first["messages"][1]["tool_calls"][0]["id"]
    assert "tools" not in second


def test_a_check_of_sessions_sends_its_tools_and_its_calls_as_text() -> None:
    call = {"type": "function", "function": {"name": "look", "arguments": {"n": 1}}}
    messages = [{"role": "user", "content": "Look."},
                {"role": "assistant", "tool_calls": [call]},
                {"role": "tool", "content": "seen"}]  # fmt: skip
    tool = {"type": "function", "function": {"name": "look", "parameters": {}}}
    found = checks()
    found.expected[0] = found.expected[0].model_copy(update={"messages": messages, "tools": [tool]})
    plan = plan_of({"rate_rps": 5, "num_requests": 50}, found, workload={"sessions": {}})
    (place,) = {
        plan.sessions.place(number, 0)
        for number in range(50)
        if plan.check_of(number * plan.sessions.stride) == 0
    }
    close = json.loads("{" + plan.sessions.closes[place].removeprefix("], "))
    assert (close["tools"], close["tool_choice"]) == ([tool], "none")
    sent = json.loads(f"[{plan.bodies[place]}]")
    assert sent[1]["tool_calls"][0]["function"]["arguments"] == '{"n": 1}'
    assert sent[2]["tool_call_id"] == sent[1]["tool_calls"][0]["id"]


def test_sessions_of_the_reference_have_one_turn() -> None:
    plan = plan_of({"rate_rps": 5, "num_requests": 50}, workload={"sessions": {}})
    indices = [session * plan.sessions.stride for session in range(50)]
    numbers = [plan.check_of(index) for index in indices]
    assert sum(number is not None for number in numbers) == 10
    for session, number in enumerate(numbers):
        if number is not None:
            assert plan.sessions.num_turns(session) == 1
            close = plan.sessions.closes[plan.sessions.place(session, 0)]
            assert json.loads("{" + close.removeprefix("], "))["top_logprobs"] == 5


def test_a_workload_of_token_ids_has_no_checks() -> None:
    workload = {"source": "synthetic", "input_tokens": {"mean": 8}}
    with pytest.raises(ConfigError, match="needs a workload of chats"):
        plan_of({"rate_rps": 5, "num_requests": 50}, workload=workload)


def test_a_greedy_answer_has_its_ids_and_log_probabilities() -> None:
    def step(token: int, text: str, finish: str | None = None) -> bytes:
        top = [{"token": f"token_id:{token}", "logprob": -0.5}, {"token": "odd", "logprob": -1}]
        content = [{"token": f"token_id:{token}", "logprob": -0.5, "top_logprobs": top}]
        choice = {
            "index": 0, "delta": {"content": text}, "token_ids": [token],
            "logprobs": {"content": content}, "finish_reason": finish,
        }  # fmt: skip
        first = {"prompt_token_ids": [9, 8]} if token == 5 else {}
        return b"data: " + json.dumps({**first, "choices": [choice]}).encode() + b"\n\n"

    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    body = step(5, "a") + step(6, "b", "stop") + b"data: [DONE]\n\n"
    stream = head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    for cut in (1, len(head) + 3, len(stream) // 2):
        found = greedy_answer([stream[:cut], stream[cut:]])
        assert found == {
            "finish_reason": "stop", "prompt_token_ids": [9, 8], "text": "ab", "token_ids": [5, 6],
            "logprobs": [-0.5, -0.5], "top_logprobs": [{"5": -0.5}, {"6": -0.5}],
        }, cut  # fmt: skip


def test_aborted_requests_are_read_by_their_label() -> None:
    text = (
        'vllm:request_success_total{finished_reason="abort",model_name="m"} 3\n'
        'vllm:request_success_total{finished_reason="stop",model_name="m"} 5\n'
    )
    values = parse(text).values
    assert values[ABORTED] == 3 and values["vllm:request_success_total"] == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cancellations": {"share": 0.5}}, "give either after_s or after_tokens"),
        ({"cancellations": {"after_s": 1, "after_tokens": 2}}, "give either after_s or after"),
        ({"cancellations": {"share": 1.0, "after_s": 1}}, "less than 1"),
        ({"answers": {"share": 0}}, "greater than 0"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate_config(LoadTestConfig, options, "test")


@pytest.mark.parametrize(
    ("num_right", "num_asked", "problem"),
    [(0, 0, "ask no prompt"), (0, 9, "none of 9"), (4, 9, "only 4 of 9"), (5, 9, None)],
)
def test_answers_need_prompts_that_were_answered(
    num_right: int, num_asked: int, problem: str | None
) -> None:
    answers = [(number, 0, {"text": "x", "finish_reason": "stop"}) for number in range(num_right)]
    found = judge_answers(checks(), answers, num_asked)
    assert found.num_compared == num_right
    if problem is None:
        assert found.problems == []
    else:
        assert problem in found.problems[0]


@pytest.mark.parametrize(
    "broken",
    [
        {"logprobs": {"content": [{"token": "a", "logprob": None}]}},
        {"logprobs": {"content": [{"token": "a"}]}},
        {"logprobs": {"content": [5]}},
        {"logprobs": {"content": [{"logprob": 0, "top_logprobs": [
            {"token": "token_id:x", "logprob": 0}]}]}},
        {"token_ids": ["a"]},
    ],
)  # fmt: skip
def test_a_broken_log_probability_leaves_the_text(broken: dict[str, Any]) -> None:
    choice = {"delta": {"content": "a"}, "token_ids": [5], "finish_reason": "stop", **broken}
    body = b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\ndata: [DONE]\n\n"
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
    found = greedy_answer([head + body])
    assert found == {"finish_reason": "stop", "prompt_token_ids": None, "text": "a"}


def test_clients_leave_by_a_hash_and_not_by_a_remainder() -> None:
    plan = plan_of(
        {"rate_rps": 5, "num_requests": 50}, cancellations={"share": 0.25, "after_s": 1.0}
    )
    # Second turns of sessions of 1000: every index has the same remainder.
    leave = [plan.leaves(number * 1000 + 1) for number in range(2000)]
    assert np.mean(leave) == pytest.approx(0.25, abs=0.04)
