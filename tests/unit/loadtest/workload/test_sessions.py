"""Conversations from every format, and what a session sends turn by turn."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.client.plan import Plan
from loadtest.client.prepare import make_plan, plan_digest
from loadtest.config import LoadTestConfig
from loadtest.judging.sessions import prefix_reuse
from loadtest.workload.content import Wanted
from loadtest.workload.sessions.build import build_sessions
from loadtest.workload.sessions.conversation import (
    Conversation,
    Turn,
    cut_turns,
    follows_of,
    kept_shares,
    turns_of,
)
from loadtest.workload.sessions.table import READERS
from loadtest.workload_config import FILES
from tests.unit.loadtest.made_records import made_records
from tuneline.core.config import validate_config
from tuneline.core.endpoint import Endpoint
from tuneline.core.errors import ConfigError, DataError

ENDPOINT = Endpoint("http://127.0.0.1:1/v1", "m")


def says(role: str, text: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": text, **more}


TALK = [
    says("system", "be brief"), says("user", "q1"), says("assistant", "a1"), says("user", "q2"),
    says("assistant", "a2"), says("user", "q3"),
]  # fmt: skip


def config(**options: Any) -> LoadTestConfig:
    workload = {"sessions": {}, **options.pop("workload", {})}
    values = {"num_warmup_requests": 0, "workload": workload, **options}
    return validate_config(LoadTestConfig, values, "test")


def plan_of(given: list[Any], scenario: dict[str, Any] | None = None, **options: Any) -> Plan:
    one = {"name": "x", "rate_rps": 5.0, "num_requests": 6, **(scenario or {})}
    chosen = config(scenarios=[one], **options)
    plan, _ = make_plan(chosen, chosen.scenarios[0], ENDPOINT, given, seed=0)
    return plan


def read(source: str, text: str, tmp_path: Path, **sessions: Any) -> list[Conversation]:
    path = tmp_path / "trace"
    path.write_text(text, encoding="utf-8")
    workload = {"source": source, "path": str(path), "sessions": sessions}
    chosen = config(workload=workload).workload
    return READERS[source](Wanted(chosen, [], np.random.default_rng(0), None))


def body(plan: Plan, session: int, turn: int) -> dict[str, Any]:
    """Return the body that the client joins for a turn, with recorded answers."""
    sessions = plan.sessions
    assert sessions is not None
    history: list[str] = []
    for number in range(turn + 1):
        place = sessions.place(session, number)
        if sessions.is_fresh[place]:
            history.clear()
        history.append(plan.bodies[place])
        if number < turn and sessions.answers[place]:
            history.append(sessions.answers[place])
    number = sessions.conversation(session)
    close = sessions.closes[sessions.place(session, turn)]
    found: dict[str, Any] = json.loads(sessions.opens[number] + ", ".join(history) + close)
    return found


def test_a_conversation_is_cut_where_the_assistant_speaks() -> None:
    turns = turns_of(TALK)
    assert [turn.added for turn in turns] == [TALK[:2], TALK[3:4], TALK[5:]]
    assert [turn.answers for turn in turns] == [TALK[2:3], TALK[4:5], []]


@pytest.mark.parametrize(
    ("messages", "num_turns"),
    [
        ([], 0),
        ([says("system", "x")], 0),
        ([says("assistant", "hello"), says("user", "q")], 1),
        ([says("user", "q"), says("assistant", "a"), says("assistant", "b")], 1),
        ([says("user", "q"), says("user", "r"), says("assistant", "a")], 1),
        ([says("user", "q"), says("assistant", ""), says("tool", "t"), says("assistant", "a")], 2),
        ([says("user", "q"), says("assistant", "a"), says("system", "late")], 1),
    ],
)
def test_turns_of_odd_conversations(messages: list[Any], num_turns: int) -> None:
    turns = turns_of(messages)
    assert len(turns) == num_turns
    assert all(turn.added[-1]["role"] in ("user", "tool") for turn in turns)  # type: ignore[index]


def test_a_turn_sends_the_whole_history_with_recorded_answers() -> None:
    plan = plan_of([TALK])
    assert plan.sessions is not None and plan.sessions.stride == 3
    assert body(plan, 0, 0)["messages"] == TALK[:2]
    assert body(plan, 4, 2)["messages"] == TALK
    assert body(plan, 0, 1) | {"messages": None} == {
        "model": "m", "messages": None, "max_tokens": 64, "stream": True,
        "stream_options": {"include_usage": True}, "temperature": 0.0,
    }  # fmt: skip
    assert [plan.split(index) for index in (0, 2, 3, 7)] == [(0, 0), (0, 2), (1, 0), (2, 1)]


def test_conversations_repeat_and_keep_their_turns() -> None:
    short = [says("user", "only")]
    plan = plan_of([TALK, short])
    assert plan.sessions is not None
    lengths = [plan.sessions.num_turns(session) for session in range(4)]
    assert sorted(lengths[:2]) == [1, 3] and lengths[:2] == lengths[2:]
    assert [len(row) for row in plan.sessions.delays_s] == [*lengths, *lengths[:2]]
    assert Plan.from_json(json.loads(json.dumps(asdict(plan)))) == plan


@pytest.mark.parametrize(
    ("delay", "mean", "stddev"),
    [
        ({"mean": 2.0}, 2.0, 0.0),
        ({"distribution": "exponential", "mean": 2.0}, 2.0, 2.0),
        ({"distribution": "lognormal", "mean": 2.0, "stddev": 0.5}, 2.0, 0.5),
    ],
)
def test_think_times_follow_their_distribution(
    delay: dict[str, Any], mean: float, stddev: float
) -> None:
    plan = plan_of(
        [TALK], {"num_requests": 8000}, workload={"sessions": {"think_s": delay, "max_delay_s": 99}}
    )
    assert plan.sessions is not None
    rows = np.array(plan.sessions.delays_s)
    assert np.all(rows[:, 0] == 0) and rows.shape == (8000, 3)
    assert np.mean(rows[:, 1:]) == pytest.approx(mean, rel=0.05)
    assert np.std(rows[:, 1:]) == pytest.approx(stddev, rel=0.06)


def test_delays_are_the_seeds_and_decide_the_digest() -> None:
    chosen = config(
        scenarios=[{"name": "x", "rate_rps": 5.0, "num_requests": 6}],
        workload={"sessions": {"think_s": {"distribution": "exponential", "mean": 1.0}}},
    )
    plans = [make_plan(chosen, chosen.scenarios[0], ENDPOINT, [TALK], seed=n) for n in (1, 1, 2)]
    digests = [plan_digest(plan, workload) for plan, workload in plans]
    assert digests[0] == digests[1] != digests[2]


def test_a_delay_after_a_tool_is_its_own_and_long_delays_are_cut() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    agent = [
        says("user", "q"), {"role": "assistant", "tool_calls": [call]},
        says("tool", "result", tool_call_id="c"), says("assistant", "a"), says("user", "r"),
    ]  # fmt: skip
    sessions = {"think_s": {"mean": 100.0}, "tool_delay_s": {"mean": 0.25}, "max_delay_s": 3.0}
    plan = plan_of([agent], workload={"sessions": sessions})
    assert plan.sessions is not None
    assert plan.sessions.delays_s[0] == [0.0, 0.25, 3.0]
    assert body(plan, 0, 1)["messages"][1]["tool_calls"] == [call]


def test_a_nonce_begins_each_session_and_no_later_turn() -> None:
    plan = plan_of([TALK], workload={"sessions": {}, "unique_prompts": True})
    assert plan.sessions is not None and plan.sessions.nonce
    assert plan.sessions.nonce in plan.bodies[0]
    assert plan.sessions.nonce not in plan.bodies[1]


def test_a_nonce_begins_the_systems_message_of_a_route_that_has_it_apart() -> None:
    workload = {"sessions": {}, "unique_prompts": True, "route": "messages"}
    plan = plan_of([TALK], workload=workload)
    assert plan.sessions is not None and plan.sessions.nonce
    for turn in range(3):
        assert body(plan, 0, turn)["system"] == f"[{plan.sessions.nonce}] be brief"


def test_images_that_differ_from_run_to_run_leave_the_digest() -> None:
    workload = {"unique_prompts": True, "images": {"width": 4, "height": 4}}
    chosen = config(
        scenarios=[{"name": "x", "rate_rps": 5.0, "num_requests": 6}], workload=workload
    )
    plans = [make_plan(chosen, chosen.scenarios[0], ENDPOINT, [TALK], seed=0) for _ in range(2)]
    assert plans[0][0].bodies != plans[1][0].bodies
    assert plan_digest(*plans[0]) == plan_digest(*plans[1])
    without = config(scenarios=[{"name": "x", "rate_rps": 5.0, "num_requests": 6}])
    other = make_plan(without, without.scenarios[0], ENDPOINT, [TALK], seed=0)
    assert plan_digest(*other) != plan_digest(*plans[0])


@pytest.mark.parametrize("route", ["chat", "responses", "messages"])
def test_calls_without_arguments_are_sent_over_every_route(route: str, tmp_path: Path) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f"}}
    agent = [
        says("user", "q"), {"role": "assistant", "tool_calls": [call]},
        says("tool", "result", tool_call_id="c"),
    ]  # fmt: skip
    path = tmp_path / "talks.jsonl"
    path.write_text(json.dumps(agent), encoding="utf-8")
    plan = plan_of([], workload={"source": "messages", "path": str(path), "route": route})
    sent = json.dumps(body(plan, 0, 1))
    assert '"name": "f"' in sent and "{}" in sent


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workload": {"source": "synthetic", "input_tokens": {"mean": 8}}}, "synthetic has none"),
        ({"workload": {"multi_turn": True}}, "sessions send every turn"),
        ({"workload": {"min_repeat_ttft_share": 0.5}}, "not for sessions"),
        ({"workload": {"source": "otel"}}, "path goes with source"),
        (
            {"workload": {"sessions": {"think_s": {"distribution": "lognormal", "mean": 1}}}},
            "stddev",
        ),
        ({"workload": {"sessions": {"max_turns": 0}}}, "greater than or equal to 1"),
        ({"workload": {"sessions": None}, "slo": {"session_s": {"p90": 1}}}, "need sessions"),
        ({"workload": {"sessions": None, "source": "weka", "path": "x"}}, "needs sessions"),
    ],
)
def test_a_configuration_that_means_nothing_is_refused(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**options)


def test_recorded_delays_that_are_not_recorded_are_refused() -> None:
    with pytest.raises(ConfigError, match="the file has no time") as caught:
        plan_of([TALK], workload={"sessions": {"think_s": "recorded"}})
    assert "think_s.mean=1" in str(caught.value.hint)
    with pytest.raises(ConfigError, match="no conversations"):
        plan_of([[says("system", "x")]])


def test_messages_are_read_from_json_lines(tmp_path: Path) -> None:
    lines = [json.dumps({"messages": TALK, "id": 7}), "", json.dumps(TALK[1:4])]
    found = read("messages", "\n".join(lines), tmp_path)
    assert [len(one.turns) for one in found] == [3, 2]


def test_sharegpt_keeps_the_recorded_answers(tmp_path: Path) -> None:
    turns = [("human", "q1"), ("gpt", "a1"), ("human", "q2"), ("gpt", "a2")]
    entry = {"conversations": [{"from": who, "value": text} for who, text in turns]}
    (one,) = read("sharegpt", json.dumps([entry]), tmp_path)
    assert [turn.added for turn in one.turns] == [[says("user", "q1")], [says("user", "q2")]]
    assert one.turns[0].answers == [says("assistant", "a1")]


def mooncake_line(at_ms: float, length: int, hashes: list[int], out: int = 5) -> str:
    return json.dumps(
        {"timestamp": at_ms, "input_length": length, "output_length": out, "hash_ids": hashes}
    )


def test_a_mooncake_request_continues_the_prompt_that_it_begins_with(tmp_path: Path) -> None:
    lines = [
        mooncake_line(0, 1100, [1, 2, 3]),
        mooncake_line(500, 600, [9, 8]),
        mooncake_line(2000, 1700, [1, 2, 4, 5]),  # continues the first: 1 and 2 are whole
        mooncake_line(2500, 1700, [1, 2, 6, 7]),  # a branch: the first has its next turn
        mooncake_line(9000, 2600, [1, 2, 4, 10, 11, 12]),
    ]
    found = read("mooncake", "\n".join(lines), tmp_path, think_s="recorded")
    assert [len(one.turns) for one in found] == [3, 1, 1]
    assert [one.start_s for one in found] == [0.0, 0.5, 2.5]
    first = found[0].turns
    assert [turn.delay_s for turn in first] == [None, 2.0, 7.0]
    assert [len(turn.added) for turn in first] == [1100, 1700, 2600]
    assert first[0].added[:1024] == first[1].added[:1024]
    assert first[0].added[1024:1100] != first[1].added[1024:1100]
    assert all(turn.is_fresh and turn.max_tokens == 5 for turn in first)


def test_a_mooncake_session_sends_whole_prompts_of_token_ids(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(mooncake_line(0, 600, [1, 2]) + "\n" + mooncake_line(9, 1200, [1, 3, 4]))
    workload = {"source": "mooncake", "path": str(path), "sessions": {"think_s": "recorded"}}
    plan = plan_of([], {"arrival": "trace", "rate_rps": None, "num_requests": 1}, workload=workload)
    second = body(plan, 0, 1)
    assert len(second["prompt"]) == 1200 and second["max_tokens"] == 5
    assert second["prompt"][:512] == body(plan, 0, 0)["prompt"][:512]
    assert "POST /v1/completions" in plan.head
    assert plan.sessions is not None and plan.sessions.delays_s == [[0.0, 0.009]]


@pytest.mark.parametrize("sessions", [None, {}])
def test_a_mooncake_request_of_no_tokens_has_one(sessions: Any, tmp_path: Path) -> None:
    path = tmp_path / "trace"
    path.write_text(mooncake_line(0, 0, [], out=0) + "\n" + mooncake_line(9, 2, [1]))
    workload = {"source": "mooncake", "path": str(path), "sessions": sessions}
    plan = plan_of([], workload=workload)
    texts = plan.bodies if sessions is None else [f'{{"prompt": [{one}]}}' for one in plan.bodies]
    assert sorted(len(json.loads(text)["prompt"]) for text in texts) == [1, 2]


@pytest.mark.parametrize("sessions", [None, {}])
def test_a_trace_with_a_wrong_time_does_not_wait_for_years(sessions: Any, tmp_path: Path) -> None:
    path = tmp_path / "trace"
    path.write_text(mooncake_line(0, 2, [1]) + "\n" + mooncake_line(1.7e12, 2, [2]))
    workload = {"source": "mooncake", "path": str(path), "sessions": sessions}
    scenario = {"arrival": "trace", "rate_rps": None, "num_requests": 2}
    with pytest.raises(ConfigError, match=r"the trace ends 19,675\.9 days after its begin"):
        plan_of([], scenario, workload=workload)
    of_a_minute = {**scenario, "num_requests": None, "duration_s": 60.0}
    assert plan_of([], of_a_minute, workload=workload).arrivals_s == [0.0]


@pytest.mark.parametrize("form", ["{0}", "[{0}]", "{0}\n{0}"], ids=["one", "list", "lines"])
def test_a_weka_session_has_its_think_times_and_shared_blocks(form: str, tmp_path: Path) -> None:
    requests = [
        {"t": 0.0, "type": "s", "model": "x", "in": 100, "out": 10, "hash_ids": [1, 2]},
        {"t": 5.0, "type": "subagent", "agent_id": "a", "requests": []},
        {"t": 9.0, "type": "n", "model": "x", "in": 150, "out": 20, "hash_ids": [1, 2, 3],
         "think_time": 2.5, "api_time": 1.5},
    ]  # fmt: skip
    one = {"id": "s1", "models": ["x"], "block_size": 64, "hash_id_scope": "local"}
    text = json.dumps({**one, "requests": requests})
    found = read("weka", form.format(text), tmp_path, think_s="recorded")
    turns = found[0].turns
    assert [len(turn.added) for turn in turns] == [100, 150]
    assert [turn.delay_s for turn in turns] == [None, 2.5]
    assert [turn.max_tokens for turn in turns] == [10, 20]
    assert turns[0].added[:64] == turns[1].added[:64]


def weka_request(t: float, *, think: float | None = None, size: int = 64) -> dict[str, Any]:
    return {"t": t, "type": "n", "in": size, "out": 4, "hash_ids": [], "think_time": think}


def weka_agent(t: float, requests: list[Any], **more: Any) -> dict[str, Any]:
    return {"t": t, "type": "subagent", "agent_id": "a", "requests": requests, **more}


def test_sub_agents_of_a_weka_session_run_next_to_each_other(tmp_path: Path) -> None:
    nested = weka_agent(1.2, [weka_request(1.2, think=0.1)])
    two = [weka_request(1.0), weka_request(2.0, think=0.3), nested]
    requests = [
        weka_agent(0.0, [weka_request(0.0)]),  # before the first turn: nothing starts it
        weka_request(0.0),
        weka_agent(1.0, two, duration_ms=2000),
        weka_agent(1.5, [weka_request(1.5, think=0.2)]),
        weka_agent(4.0, [weka_request(4.0)], duration_ms=10),
        weka_agent(4.0, [weka_request(4.0)], status="async_launched"),
        weka_agent(5.0, []),
        weka_request(9.0, think=1.0),
        weka_request(11.0, think=1.0),
    ]  # fmt: skip
    text = json.dumps({"id": "s", "block_size": 64, "requests": requests})
    (found,) = read("weka", text, tmp_path, think_s="recorded")
    turns = found.turns
    assert [turn.lane for turn in turns] == [0, 0, 0, 1, 1, 1, 2, 3, 4]
    # The third sub-agent began when the first had ended; the second has no end.
    assert [list(turn.follows or ()) for turn in turns] == [
        [], [0, 5, 6, 7], [1], [0], [3], [4], [0], [5], [5],
    ]  # fmt: skip
    assert [turn.delay_s for turn in turns] == [None, 1.0, 1.0, 0.0, 0.3, 0.1, 0.2, 0.0, 0.0]
    assert len({tuple(turn.added) for turn in turns}) == len(turns)
    cut = cut_turns(found, 1)
    assert [turn.lane for turn in cut.turns] == [0, 1, 1, 1, 2, 3, 4]
    assert [list(turn.follows or ()) for turn in cut.turns] == [[], [0], [1], [2], [0], [3], [3]]
    assert cut_turns(found, 9).turns == turns


COUNTS = ("gen_ai.usage.output_tokens",)


def otel_span(
    start_s: float,
    end_s: float,
    messages: Any,
    answer: str = "",
    key: str = "c1",
    num_tokens: int | None = None,
) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        "gen_ai.operation.name": "chat", "gen_ai.conversation.id": key,
        "gen_ai.input.messages": json.dumps(messages),
    }  # fmt: skip
    if num_tokens is not None:
        attributes["gen_ai.usage.output_tokens"] = num_tokens
    if answer:
        said = [{"role": "assistant", "parts": [part(answer)], "finish_reason": "stop"}]
        attributes["gen_ai.output.messages"] = json.dumps(said)
    return {
        "traceId": "t", "name": "chat m", "startTimeUnixNano": str(round(start_s * 1e9)),
        "endTimeUnixNano": str(round(end_s * 1e9)),
        "attributes": [
            {"key": name, "value": {f"{'int' if name in COUNTS else 'string'}Value": str(value)}}
            for name, value in attributes.items()
        ],
    }  # fmt: skip


def part(text: str) -> dict[str, str]:
    return {"type": "text", "content": text}


def asks(text: str) -> dict[str, Any]:
    return {"role": "user", "parts": [part(text)]}


def called(**values: str) -> list[dict[str, Any]]:
    """A question, a tool call with these values, and its result."""
    call = {"type": "tool_call", "id": "c", "name": "f", "arguments": "{}", **values}
    result = {"type": "tool_call_response", "id": "c", "response": "rain"}
    return [
        asks("q"), {"role": "assistant", "parts": [call]}, {"role": "tool", "parts": [result]},
    ]  # fmt: skip


def otlp(*spans: Any) -> str:
    return json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": list(spans)}]}]})


@pytest.mark.parametrize("is_together", [True, False], ids=["one document", "lines"])
def test_otel_spans_of_a_conversation_are_its_turns(is_together: bool, tmp_path: Path) -> None:
    first = [asks("q1")]
    second = [*first, {"role": "assistant", "parts": [part("a1")]}, asks("q2")]
    fresh = [asks("summarize")]
    spans = [
        otel_span(107.5, 109.0, second, "a2"),
        otel_span(100.0, 104.0, first, "a1", num_tokens=12),
        otel_span(101.0, 102.0, first, "b1", key="c2"),
        otel_span(109.5, 110.0, fresh, "s"),
        {"traceId": "t", "name": "execute_tool", "attributes": []},
        # A null value has no kind, and JSON leaves out what is empty.
        {"traceId": "t", "name": "GET", "attributes": [{"key": "a", "value": {}}, {"key": "b"}]},
        {"traceId": "t", "name": "GET", "attributes": None},
    ]
    text = otlp(*spans) if is_together else "\n".join(otlp(span) for span in spans)
    found = read("otel", text, tmp_path, think_s="recorded")
    assert [one.start_s for one in found] == [0.0, 1.0]
    turns = found[0].turns
    assert [turn.delay_s for turn in turns] == [None, 3.5, 0.5]
    assert [turn.added for turn in turns] == [
        [says("user", "q1")], [says("user", "q2")], [says("user", "summarize")],
    ]  # fmt: skip
    assert [turn.is_fresh for turn in turns] == [True, False, True]
    assert [turn.max_tokens for turn in turns] == [12, None, None]


def said_by(text: str) -> dict[str, Any]:
    return {"role": "assistant", "parts": [part(text)]}


def test_otel_spans_that_overlap_are_branches(tmp_path: Path) -> None:
    first = [asks("q")]
    main = [*first, said_by("a"), asks("join")]
    branch = [asks("left")]
    spans = [
        otel_span(0, 1, first, "a"),
        otel_span(0.25, 1.25, [asks("title")], "t"),  # begins with the conversation
        otel_span(1.5, 3, branch, "l"),
        otel_span(1.75, 4, [asks("right")], "r"),
        otel_span(3.5, 5, [*branch, said_by("l"), asks("more")], "m"),
        otel_span(6, 7, main, "done"),
        # Holds the answer of the span before, which another machine's clock ends later.
        otel_span(6.5, 8, [*main, said_by("done"), asks("x")], "y"),
        otel_span(9, 10, [asks("again")]),
        otel_span(11, 12, [asks("again")], "z"),
    ]  # fmt: skip
    (found,) = read("otel", otlp(*spans), tmp_path, think_s="recorded")
    turns = found.turns
    asked = ["q", "left", "more", "join", "x", "again", "again", "title", "right"]
    assert [turn.added[-1]["content"] for turn in turns] == asked  # type: ignore[index]
    assert [turn.lane for turn in turns] == [0, 0, 0, 0, 0, 0, 0, 1, 1]
    assert [set(turn.follows or ()) for turn in turns] == [
        set(), {0, 7}, {1}, {2, 8}, {3}, {4}, {5}, set(), {0, 7},
    ]  # fmt: skip
    delays_s = [turn.delay_s for turn in turns]
    assert delays_s == [None, 0.25, 0.5, 1.0, 0.0, 1.0, 1.0, 0.25, 0.5]
    assert [turn.is_fresh for turn in turns] == [
        True, True, False, True, False, True, True, True, True,
    ]  # fmt: skip
    # A branch is kept with the turns that wait for it, whatever the order of their places.
    for num_turns, num_kept in ((1, 3), (2, 4), (3, 5), (7, 9)):
        assert len(cut_turns(found, num_turns).turns) == num_kept
    path = tmp_path / "trace"
    one = {"source": "otel", "path": str(path), "sessions": {"think_s": "recorded"}}
    plan = plan_of([], workload=one)
    assert plan.sessions is not None
    assert plan.sessions.other_first_turns(0) == [7]


@given(st.data())
@settings(derandomize=True, max_examples=200, deadline=None)
def test_every_span_is_sent_as_it_was_whatever_the_order_of_ends(data: Any) -> None:
    spans: list[Any] = []
    for _ in range(data.draw(st.integers(1, 9))):
        history = data.draw(st.sampled_from([[], *(one[2] for one in spans)]))
        said = [said_by("a")] if history and data.draw(st.booleans()) else []
        asked = [*history, *said, asks(data.draw(st.sampled_from("qr")))]
        start_s = data.draw(st.integers(0, 6))
        end_s = start_s + data.draw(st.integers(0, 5))
        spans.append((start_s, end_s, asked, data.draw(st.sampled_from(["", "a"]))))
    with tempfile.TemporaryDirectory() as folder:
        (one,) = read("otel", otlp(*(otel_span(*span) for span in spans)), Path(folder))
    follows = follows_of(one.turns)
    sent: dict[int, Any] = {}
    histories: dict[int, Any] = {}
    ended: set[int] = set()
    while len(ended) < len(spans):
        for place, turn in enumerate(one.turns):
            if place not in sent and ended.issuperset(follows[place]):
                history = [] if turn.is_fresh else histories[turn.lane]
                sent[place] = [*history, *turn.added]
                histories[turn.lane] = list(sent[place])
        place = data.draw(st.sampled_from(sorted(sent.keys() - ended)))
        ended.add(place)
        histories[one.turns[place].lane] += one.turns[place].answers
    wanted = [[says(m["role"], m["parts"][0]["content"]) for m in span[2]] for span in spans]
    assert sorted(sent.values(), key=str) == sorted(wanted, key=str)


@pytest.mark.parametrize(
    ("think_s", "delays_s"), [("recorded", [0.0, 2.0, 5.0]), ({"mean": 3.0}, [0.0, 3.0, 3.0])]
)
def test_a_faster_trace_has_shorter_recorded_delays(
    tmp_path: Path, think_s: Any, delays_s: list[float]
) -> None:
    second = [asks("q"), said_by("a"), asks("r")]
    spans = [
        otel_span(0, 1, [asks("q")], "a"),
        otel_span(9, 10, second),
        otel_span(99, 100, [asks("s")]),
    ]
    path = tmp_path / "trace"
    path.write_text(otlp(*spans), encoding="utf-8")
    scenario = {"arrival": "trace", "rate_rps": None, "num_requests": 1, "trace_speed": 4.0}
    sessions = {"think_s": think_s, "max_delay_s": 5.0}
    workload = {"source": "otel", "path": str(path), "sessions": sessions}
    plan = plan_of([], scenario, workload=workload)
    assert plan.sessions is not None and plan.sessions.delays_s == [delays_s]


def test_otel_images_are_sent_and_other_parts_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blob = {"type": "blob", "modality": "image", "mime_type": "image/png", "content": "aGk="}
    uri = {"type": "uri", "modality": "image", "uri": "https://example.com/a.png"}
    sound = {"type": "blob", "modality": "audio", "mime_type": "audio/wav", "content": "aGk="}
    thought = {"type": "reasoning", "content": "hm"}
    asked = {"role": "user", "parts": [part("look"), blob, part(""), uri, sound]}
    answered = {"role": "model", "parts": [thought, part("a")]}
    result = {"type": "tool_call_response", "id": "c", "response": "rain"}
    mixed = {"role": "user", "parts": [result, part("and")]}
    (one,) = read("otel", otlp(otel_span(0, 1, [asked, answered, mixed])), tmp_path)
    image, answer, tool, more = one.turns[0].added
    urls = ["data:image/png;base64,aGk=", "https://example.com/a.png"]
    assert image["content"] == [  # type: ignore[index]
        {"type": "text", "text": "look"},
        *({"type": "image_url", "image_url": {"url": url}} for url in urls),
    ]
    assert answer == says("assistant", "a") and more == says("user", "and")
    assert tool == says("tool", "rain", tool_call_id="c")
    assert "without parts of type blob (audio)" in caplog.text
    plan = plan_of([], workload={"source": "otel", "path": str(tmp_path / "trace"), "sessions": {}})
    assert "aGk=" in plan.bodies[0]


URI = {"type": "uri", "modality": "image", "uri": "file:///etc/passwd"}
PAGE = {"type": "blob", "modality": "image", "mime_type": "text/html", "content": "aGk="}


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"role": "user", "parts": [URI]}, "part 1 of content is not"),
        ({"role": "user", "parts": [PAGE]}, "part 1 of content is not"),
        ({"role": "bot", "parts": [part("x")]}, "role is 'bot'"),
    ],
    ids=["a file's address", "a page for an image", "an unknown role"],
)
def test_otel_messages_that_cannot_be_sent_are_named(
    tmp_path: Path, message: dict[str, Any], expected: str
) -> None:
    with pytest.raises(DataError, match=f"span 1: {expected}"):
        read("otel", otlp(otel_span(0, 1, [message])), tmp_path)


def test_otel_spans_that_no_request_can_repeat_are_left_out_by_reason(tmp_path: Path) -> None:
    first = [asks("q1")]
    # The span in the middle is missing, so the last turn brings its question, too.
    last = [*first, said_by("a1"), asks("q2"), said_by("a2"), asks("q3")]
    spans = [
        otel_span(0, 1, first, "a1"),
        otel_span(2, 3, [*first, said_by("a1"), {"role": "bot", "parts": []}], "a2"),
        otel_span(4, 5, last, "a3"),
        otel_span(6, 7, [asks("x"), said_by("a")], key="c2"),
        otel_span(8, 9, [asks("x"), said_by("a")], key="c3"),
        otel_span(8, 9, [{"role": "user"}], key="c4"),
    ]
    path = tmp_path / "trace"
    path.write_text(otlp(*spans), encoding="utf-8")
    configuration = config(workload={"source": "otel", "path": str(path), "sessions": {}})
    workload = build_sessions(configuration, "m", [], seed=0, num_sessions=None)
    assert workload.left_out == {
        "the input ends with neither a user nor a tool": 2,
        "role is 'bot'; expected system, developer, user, assistant, tool": 1,
        "the span or a part of it has no 'parts'": 1,
    }
    assert len(workload.bodies) == 2 and '"q2"' in workload.bodies[1]


def test_otel_tool_definitions_are_the_tools_of_the_conversation(tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}}}
    weather = {"type": "function", "name": "weather", "parameters": schema}
    now = {"type": "function", "function": {"name": "now", "description": "d"}}
    first, second = otel_span(0, 1, [asks("q")], "a"), otel_span(2, 3, [asks("r")])
    definitions = {"key": "gen_ai.tool.definitions"}
    first["attributes"].append({**definitions, "value": {"stringValue": json.dumps([weather])}})
    second["attributes"].append({**definitions, "value": {"stringValue": json.dumps([now])}})
    (one,) = read("otel", otlp(first, second), tmp_path)
    function = {"name": "weather", "parameters": schema}
    assert one.tools == [{"type": "function", "function": function}, now]
    path = tmp_path / "trace"
    plan = plan_of([], workload={"source": "otel", "path": str(path), "sessions": {}})
    assert plan.sessions is not None
    assert (
        '"tool_choice": "none"' in plan.sessions.closes[1] and "weather" in plan.sessions.closes[1]
    )
    first["attributes"][-1]["value"] = {"stringValue": '[{"type": "function"}]'}
    with pytest.raises(DataError, match=r"span 1: gen_ai\.tool\.definitions: tool 1"):
        read("otel", otlp(first), tmp_path)


def test_an_otel_tool_call_and_its_result_are_chat_messages(tmp_path: Path) -> None:
    call = {"type": "tool_call", "id": "c", "name": "f", "arguments": {"city": "Paris"}}
    result = {"type": "tool_call_response", "id": "c", "response": {"rain": True}}
    history = [
        asks("q"), {"role": "assistant", "parts": [call]}, {"role": "tool", "parts": [result]},
    ]  # fmt: skip
    (one,) = read("otel", otlp(otel_span(1, 2, history, "a")), tmp_path)
    _, called, answered = one.turns[0].added
    assert called["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"city": "Paris"}'}  # type: ignore[index]
    assert answered == {"role": "tool", "content": '{"rain": true}', "tool_call_id": "c"}


BAD = {
    "messages": [
        ("[1]", "line 1: message 1: expected an object"),
        ('{"messages": []}', "line 1: expected a list of messages"),
        ('[{"role": "user", "content": 5}]', "content is not text"),
        ('[{"role": "narrator", "content": "x"}]', "role is 'narrator'"),
        ('[{"role": "user", "content": "\\ud800"}]', "content is not text"),
        ('[{"role": "user", "content": []}]', "content is not text"),
        ('[{"role": "user", "content": [{"type": "audio"}]}]', "part 1 of content is not a text"),
        ('[{"role": "system", "content": "x"}]', "no message of a user"),
        ("{", "line 1: not valid JSON"),
        ("[" * 100_000, "line 1: not valid JSON"),
        ('[{"role": "assistant", "tool_calls": ["\\ud800"]}]', "tool_calls holds half of a surr"),
        ('[{"role": "user", "content": "x", "name": "\\ud800"}]', "name holds half of a surr"),
        ('[{"role": "assistant", "tool_calls": [{"name": "f"}]}]', "call 1 of tool_calls has no"),
        (
            '[{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": 5}}]}]',
            "arguments are neither text nor an object",
        ),
        ('[{"role": "tool", "tool_calls": [1]}]', "content is not text"),
    ],
    "otel": [
        ("{", "line 1: not valid JSON"),
        ("{}", "no span has gen_ai.input.messages"),
        (otlp(otel_span(2, 1, [asks("x")])), "span 1: the span ends before it starts"),
        (otlp(otel_span(1, 2, [{"role": "assistant", "parts": [part("x")]}])), "neither a user"),
        (otlp(5), "span 1: the span is not OTLP JSON"),
        (otlp({**otel_span(1, 2, [asks("x")]), "startTimeUnixNano": "soon"}), "invalid literal"),
        (otlp(otel_span(1, 2, [asks("x")]))[:-5], "not valid JSON"),
        (otlp(otel_span(1, 2, [{"role": "user"}])), "a part of it has no 'parts'"),
        (otlp(otel_span(1, 2, called(arguments="\ud800"))), "half of a surrogate pair"),
        (otlp(otel_span(1, 2, called(name="\udc00"))), "half of a surrogate pair"),
        (otlp(otel_span(1, 2, called(id="\ud800"))), "half of a surrogate pair"),
    ],
    "weka": [
        ("{", "line 1"),
        ("{}", "missing required field"),
        ('{"id": "a", "block_size": 0, "requests": []}', "block_size"),
        ('{"id": "a", "block_size": 64, "requests": [{"t": -1, "type": "n"}]}', "requests"),
        ('{"id": "a", "block_size": 64, "requests": [{"t": 1, "type": "x"}]}', "requests"),
        ('{"id": "a", "block_size": 64, "requests": [{"t": 1, "type": "n", "in": 1e99}]}', "in"),
    ],
    "mooncake": [
        ("{", "line 1"),
        ('{"timestamp": 1}', "line 1"),
        ('{"timestamp": -1, "input_length": 1, "output_length": 1}', "line 1"),
    ],
    "sharegpt": [
        ("{", "not valid JSON"),
        ("[{}]", "entry 0"),
        ("[]", "holds no human turn"),
        ("[" * 100_000, "not valid JSON"),
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("source", "text", "message"),
    [(source, text, message) for source, cases in BAD.items() for text, message in cases],
)
def test_a_damaged_trace_is_refused_by_place(
    source: str, text: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError) as caught:
        read(source, text, tmp_path)
    assert message in str(caught.value)
    assert str(tmp_path / "trace") in str(caught.value)
    assert caught.value.exit_code == 2
    assert len(str(caught.value)) < 5000


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 10**12)
    | st.floats(allow_nan=False)
    | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            ["messages", "role", "content", "resourceSpans", "scopeSpans", "spans", "attributes",
             "key", "value", "requests", "id", "block_size", "t", "type", "in", "timestamp",
             "input_length", "output_length", "hash_ids", "conversations", "from", "parts"]
        ),
        inner, max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip


WHOLE: dict[str, Any] = {
    "messages": {"messages": TALK},
    "sharegpt": [{"conversations": [
        {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"},
    ]}],
    "mooncake": json.loads(mooncake_line(0, 600, [1, 2])),
    "weka": {"id": "s", "block_size": 64, "requests": [
        {"t": 0.0, "type": "n", "in": 100, "out": 10, "hash_ids": [1, 2]},
    ]},
    "otel": json.loads(otlp(otel_span(1, 2, [asks("q")], "a"))),
    "recorded": {
        "route": "/v1/chat/completions", "time": 1.5, "seconds": 0.5,
        "request": {"model": "m", "messages": [{"role": "user", "content": "q"}]},
        "answer": {"choices": [{"message": {"role": "assistant", "content": "a"}}]},
    },
}  # fmt: skip


def places(value: Any) -> list[tuple[Any, Any]]:
    """Return every list or object in a document with each key that it has."""
    here = value.items() if isinstance(value, dict) else enumerate(value)
    inner = [item for _, item in here if isinstance(item, dict | list)]
    keys = list(value) if isinstance(value, dict) else range(len(value))
    return [*((value, key) for key in keys), *(place for item in inner for place in places(item))]


@pytest.mark.parametrize("source", FILES)
def test_a_file_with_one_other_value_is_read_or_refused(source: str, tmp_path: Path) -> None:
    num_read = num_refused = 0

    @settings(max_examples=100, derandomize=True, deadline=None)
    @given(
        place=st.integers(0, 99), cut=st.sampled_from([0, 0, 0, 1, 7]),
        value=st.text(max_size=6) | st.integers(0, 128) | JSON,
    )  # fmt: skip
    def try_one(place: int, value: Any, cut: int) -> None:
        nonlocal num_read, num_refused
        document = json.loads(json.dumps(WHOLE[source]))
        found_places = places(document)
        holder, key = found_places[place % len(found_places)]
        holder[key] = value
        text = json.dumps(document)
        try:
            found = read(source, text[: len(text) - cut], tmp_path)
        except DataError:
            num_refused += 1
            return
        # A file without a conversation is refused when the load is planned.
        num_read += bool(found)
        assert all(one.turns for one in found)

    assert read(source, json.dumps(WHOLE[source]), tmp_path)
    try_one()
    assert num_read > 0 and num_refused > 0


def test_weka_sessions_whose_ids_end_alike_share_no_block(tmp_path: Path) -> None:
    lines = [
        json.dumps({"id": f"{name}-000001", "block_size": 64, "requests": [
            {"t": 0.0, "type": "n", "in": 64, "out": 1, "hash_ids": [1]}]})
        for name in ("a", "b")
    ]  # fmt: skip
    one, other = read("weka", "\n".join(lines), tmp_path)
    assert one.turns[0].added != other.turns[0].added


def test_own_answers_are_refused_for_conversations_with_tools() -> None:
    agent = [says("user", "q"), says("assistant", "a"), says("tool", "t", tool_call_id="c")]
    with pytest.raises(ConfigError, match="has tools") as caught:
        plan_of([agent], workload={"sessions": {"history": "own"}})
    assert "history=recorded" in str(caught.value.hint)


def test_a_turn_that_starts_anew_keeps_what_it_shares_with_the_prompt_before() -> None:
    tokens = [
        Turn([1, 2, 3, 4], [], is_fresh=True),
        Turn([1, 2, 3, 4, 5, 6, 7, 8], [], is_fresh=True),
        Turn([1, 2, 9, 9, 9, 9, 9, 9], [], is_fresh=True),
        Turn([7], [], is_fresh=True),
    ]
    assert kept_shares(Conversation(tokens)) == [0.0, 1.0, 0.25, 0.0]
    chat = [
        Turn([says("system", "s" * 100), says("user", "q1")], [says("assistant", "a1")]),
        Turn([says("user", "q2")], [says("assistant", "a2")]),
        Turn([says("system", "s" * 100), says("user", "other")], [], is_fresh=True),
        Turn([says("user", "more")], []),
    ]
    first, second, third, fourth = kept_shares(Conversation(chat))
    assert (first, second, fourth) == (0.0, 1.0, 1.0)
    # The system message is most of the prompt before.
    assert 0.4 < third < 0.9


def test_reuse_of_the_prefix_counts_only_what_a_turn_keeps() -> None:
    given = [[says("user", "q1"), says("assistant", "a"), says("user", "q2")]]
    sessions = plan_of(given).sessions
    assert sessions is not None
    assert [sessions.kept_share(4, turn) for turn in range(2)] == [0.0, 1.0]
    turns = made_records(4)
    turns = replace(
        turns,
        session=np.array([0, 0, 1, 1]),
        turn=np.array([0, 1, 0, 1]),
        prompt_tokens=np.array([10.0, 30.0, 10.0, 30.0]),
    )
    assert prefix_reuse(turns, lambda _session, _turn: 1.0) == pytest.approx(20 / 80)
    assert prefix_reuse(turns, lambda session, _: 0.5 * session) == pytest.approx(5 / 80)
