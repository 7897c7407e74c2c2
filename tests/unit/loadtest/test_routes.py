"""The events and the bodies of the routes next to chat."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.client.form import schemas_of
from loadtest.client.prepare import make_plan
from loadtest.client.sse import parse_response
from loadtest.config import LoadTestConfig
from loadtest.routes.table import ROUTES
from tuneline.core.config import validate_config
from tuneline.core.endpoint import Endpoint
from tuneline.core.errors import ConfigError

TEXT = "the text"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
TOOL = {
    "type": "function",
    "function": {"name": "f", "description": "d", "parameters": {"type": "object"}},
}
TALK = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "q"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
        ],
    },
    {"role": "tool", "content": "rain", "tool_call_id": "c1"},
]


def event(**document: Any) -> bytes:
    data = json.dumps(document).encode()
    body = b"event: " + str(document.get("type", "message")).encode() + b"\ndata: " + data + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(body), body)


END = b"0\r\n\r\n"


def responses(*deltas: bytes, usage: Any = None) -> list[bytes]:
    response = {"model": "m", "status": "completed", "usage": usage}
    return [
        HEAD + event(type="response.created", response={"model": "m", "usage": None}),
        event(type="response.output_item.added", item={"type": "message"}),
        *deltas,
        event(type="response.output_text.done", text="ab") + event(
            type="response.completed", response=response
        ) + END,
    ]  # fmt: skip


def messages(*deltas: bytes, usage: Any = None) -> list[bytes]:
    start = {"model": "m", "usage": {"input_tokens": 9, "output_tokens": 1}}
    return [
        HEAD + event(type="message_start", message=start) + event(type="ping"),
        event(type="content_block_start", index=0, content_block={"type": "text", "text": ""}),
        *deltas,
        event(type="content_block_stop", index=0) + event(
            type="message_delta", delta={"stop_reason": "end_turn"}, usage=usage
        ) + event(type="message_stop") + END,
    ]  # fmt: skip


def text_delta(**delta: Any) -> bytes:
    return event(type="content_block_delta", index=0, delta=delta)


RESPONSES = responses(
    event(type="response.reasoning_text.delta", delta="hm"),
    event(type="response.output_text.delta", delta=""),
    event(type="response.output_text.delta", delta="a"),
    event(type="response.function_call_arguments.delta", delta='{"x"'),
    usage={"input_tokens": 5, "output_tokens": 3, "input_tokens_details": {"cached_tokens": 4}},
)
MESSAGES = messages(
    text_delta(type="thinking_delta", thinking="hm"),
    text_delta(type="signature_delta", signature="zz"),
    text_delta(type="text_delta", text="a"),
    text_delta(type="input_json_delta", partial_json='{"x"'),
    usage={"input_tokens": 1, "cache_read_input_tokens": 4, "output_tokens": 3},
)


@pytest.mark.parametrize(("route", "reads"), [("responses", RESPONSES), ("messages", MESSAGES)])
def test_only_deltas_with_text_are_tokens(route: str, reads: list[bytes]) -> None:
    found = parse_response(range(len(reads)), reads, keep_text=True, route=route)
    assert found.error is None, found.message
    # Reads 0 and 1 open the answer; of four deltas one has no text.
    assert found.token_times == [2, 4, 5]
    assert found.finish_time == len(reads) - 1
    assert (found.completion_tokens, found.prompt_tokens, found.cached_tokens) == (3, 5, 4)
    assert (found.text, found.content, found.model) == ('hma{"x"', "a", "m")


CALL = {"type": "function_call", "name": "f", "arguments": '{"x": 1}'}
CALLS = {
    "responses": responses(
        event(type="response.function_call_arguments.delta", delta='{"x": 1}'),
        event(type="response.output_item.done", item={"type": "message"})
        + event(type="response.output_item.done", item=CALL)
        + event(type="response.output_item.done", item={**CALL, "arguments": ""}),
        usage={"input_tokens": 5, "output_tokens": 3},
    ),
    "messages": messages(
        event(type="content_block_start", index=1, content_block={
            "type": "tool_use", "id": "c", "name": "f", "input": {},
        }),
        event(type="content_block_delta", index=1, delta={
            "type": "input_json_delta", "partial_json": '{"x"'}),
        event(type="content_block_delta", index=1, delta={
            "type": "input_json_delta", "partial_json": ": 1}"}),
        event(type="content_block_start", index=2, content_block={
            "type": "tool_use", "id": "d", "name": "f", "input": {},
        }),
        usage={"input_tokens": 5, "output_tokens": 3},
    ),
}  # fmt: skip


@pytest.mark.parametrize("route", CALLS)
def test_calls_of_tools_are_read_on_every_route(route: str) -> None:
    reads = CALLS[route]
    found = parse_response(range(len(reads)), reads, keep_text=True, route=route)
    assert found.error is None and found.calls == [("f", '{"x": 1}'), ("f", "")]
    assert parse_response(range(len(reads)), reads, route=route).calls == []


@pytest.mark.parametrize(("route", "reads"), [("responses", RESPONSES), ("messages", MESSAGES)])
@given(data=st.data())
@settings(derandomize=True, max_examples=60, deadline=None)
def test_cuts_of_the_bytes_change_nothing(route: str, reads: list[bytes], data: Any) -> None:
    whole = b"".join(reads)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=9)))
    parts = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True) if b > a]
    found = parse_response(range(len(parts)), parts, keep_text=True, route=route)
    assert (found.error, found.text, found.completion_tokens) == (None, 'hma{"x"', 3)
    short = parse_response(range(1), [whole[: cuts[0]] if cuts else b""], closed=True, route=route)
    assert (short.error is None) == bool(cuts and cuts[0] == len(whole))


@pytest.mark.parametrize("route", ["responses", "messages"])
@given(payload=st.binary(max_size=80) | st.text(max_size=60).map(json.dumps).map(str.encode))
@settings(derandomize=True, max_examples=100, deadline=None)
def test_hostile_events_are_judged(route: str, payload: bytes) -> None:
    body = b"data: " + payload.replace(b"\n", b" ") + b"\n\n"
    reads = [HEAD + b"%x\r\n%b\r\n" % (len(body), body) + END]
    assert parse_response([0], reads, keep_text=True, route=route).error is not None


@pytest.mark.parametrize(
    ("route", "broken", "error"),
    [
        ("responses", event(type="error", message="died", code="x"), "error_event"),
        ("responses", event(type="response.failed", response={"error": {"message": "died"}}),
         "error_event"),
        ("responses", event(type="response.output_text.delta", delta=5), None),
        ("messages", event(type="error", error={"type": "x", "message": "died"}), "error_event"),
        ("messages", event(type="content_block_delta", delta=[]), "invalid_sse"),
        ("messages", event(error={"message": "died"}), "error_event"),
    ],
)  # fmt: skip
def test_errors_inside_of_a_stream_are_named(route: str, broken: bytes, error: str | None) -> None:
    made = responses if route == "responses" else messages
    good = {
        "responses": event(type="response.output_text.delta", delta="a"),
        "messages": text_delta(type="text_delta", text="a"),
    }[route]
    reads = made(good, broken)
    found = parse_response(range(len(reads)), reads, route=route)
    assert found.error == error
    if error == "error_event":
        assert "died" in found.message


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")], ids=["tight", "loose"])
@pytest.mark.parametrize(
    ("route", "document"),
    [
        ("chat", {"choices": [{"delta": {"content": TEXT}}]}),
        ("completions", {"choices": [{"index": 0, "text": TEXT}]}),
        ("responses", {"type": "response.output_text.delta", "delta": TEXT}),
        (
            "messages",
            {"type": "content_block_delta", "delta": {"type": "text_delta", "text": TEXT}},
        ),
    ],
)
@pytest.mark.parametrize(("text", "count"), [("a", 1), ('"content": ""', 1), ("", 0)])
def test_clients_that_leave_count_events_with_text(
    route: str, document: dict[str, Any], separators: tuple[str, str], text: str, count: int
) -> None:
    mark, *without_text = ROUTES[route].marks
    data = json.dumps(document, separators=separators).replace(TEXT, json.dumps(text)[1:-1])
    event = f"event: {document.get('type')}\ndata: {data}\n\n".encode()
    assert event.count(mark) - sum(map(event.count, without_text)) == count


def test_token_ids_ask_the_route_of_completions() -> None:
    workload = {"source": "synthetic", "input_tokens": {"mean": 5}}
    chosen = validate_config(LoadTestConfig, {"workload": workload}, "test")
    endpoint = Endpoint("http://127.0.0.1:1/v1", "m")
    plan, _ = make_plan(chosen, chosen.scenarios[0], endpoint, [], seed=0)
    assert plan.route == "completions"


@pytest.mark.parametrize(("route", "reads"), [("responses", RESPONSES), ("messages", MESSAGES)])
def test_a_stream_without_its_last_event_is_truncated(route: str, reads: list[bytes]) -> None:
    cut = [*reads[:-1], END]
    assert parse_response(range(len(cut)), cut, route=route).error == "truncated_stream"


def bodies(route: str, talk: list[Any], **workload: Any) -> Any:
    values = {
        "scenarios": [{"name": "x", "concurrency": 1, "num_requests": 2}],
        "num_warmup_requests": 0, "max_tokens": 7,
        "workload": {"route": route, "tools": [TOOL], **workload},
    }  # fmt: skip
    chosen = validate_config(LoadTestConfig, values, "test")
    return make_plan(
        chosen, chosen.scenarios[0], Endpoint("http://127.0.0.1:1/v1", "m"), [talk], seed=0
    )[0]


@pytest.mark.parametrize("route", ["chat", "responses", "messages"])
def test_a_talk_with_tools_takes_the_form_of_its_route(route: str) -> None:
    plan = bodies(route, TALK)
    assert f"POST /v1/{ROUTES[route].path} HTTP/1.1" in plan.head
    body = json.loads(plan.bodies[0])
    assert body["stream"] is True and body["temperature"] == 0.0
    if route == "chat":
        assert body["messages"] == TALK and body["tools"] == [TOOL]
        assert body["max_tokens"] == 7
    elif route == "responses":
        assert body["input"] == [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "q"},
            {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"a": 1}'},
            {"type": "function_call_output", "call_id": "c1", "output": "rain"},
        ]
        assert body["tools"] == [{"type": "function", **TOOL["function"]}]  # type: ignore[dict-item]
        assert body["max_output_tokens"] == 7 and body["store"] is False
    else:
        assert body["system"] == "be brief"
        assert [one["role"] for one in body["messages"]] == ["user", "assistant", "user"]
        (call,) = body["messages"][1]["content"]
        assert call == {"type": "tool_use", "id": "c1", "name": "f", "input": {"a": 1}}
        assert body["messages"][2]["content"][0]["tool_use_id"] == "c1"
        assert body["tools"][0]["input_schema"] == {"type": "object"}
        assert body["max_tokens"] == 7


@pytest.mark.parametrize("sessions", [None, {}])
@pytest.mark.parametrize("route", ["chat", "responses", "messages"])
def test_the_schemas_of_a_prompts_own_tools_are_known(route: str, sessions: Any) -> None:
    own = {"messages": [{"role": "user", "content": "q"}], "tools": [TOOL]}
    values = {
        "scenarios": [{"name": "x", "concurrency": 1, "num_requests": 2}],
        "extra_body": {"tool_choice": "auto"}, "workload": {"route": route, "sessions": sessions},
    }  # fmt: skip
    chosen = validate_config(LoadTestConfig, values, "test")
    endpoint = Endpoint("http://127.0.0.1:1/v1", "m")
    plan, _ = make_plan(chosen, chosen.scenarios[0], endpoint, [own], seed=0)
    assert plan.form == {"has_own_tools": True}
    assert schemas_of(plan.tools_asked(1)) == {"f": {"type": "object"}}


@pytest.mark.parametrize("route", ["responses", "messages"])
def test_the_turns_of_a_session_take_the_form_of_the_route(route: str) -> None:
    talk = [
        {"role": "system", "content": "s"}, {"role": "user", "content": "q1"},
        {"role": "assistant", "content": "a1"}, {"role": "user", "content": "q2"},
    ]  # fmt: skip
    plan = bodies(route, talk, sessions={})
    sessions = plan.sessions
    assert sessions is not None
    said = ", ".join([plan.bodies[0], sessions.answers[0], plan.bodies[1]])
    body = json.loads(sessions.opens[0] + said + sessions.closes[1])
    found = body[ROUTES[route].key]
    assert [one["content"] for one in found][-3:] == ["q1", "a1", "q2"]
    assert body.get("system") == ("s" if route == "messages" else None)
    assert len(found) == (3 if route == "messages" else 4)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"workload": {"route": "responses", "source": "synthetic", "input_tokens": {"mean": 9}}},
         "route: responses takes messages; synthetic has token ids"),
        ({"workload": {"route": "messages"}, "ignore_eos": True}, "not a parameter of route"),
        ({"workload": {"route": "responses"}, "answers": {}}, "answers are compared over route"),
        ({"workload": {"tools": [TOOL], "source": "synthetic", "input_tokens": {"mean": 9}}},
         "tools go with messages; synthetic has token ids"),
        ({"workload": {"tools": [{"type": "function"}]}}, "tool 1 has no type: function with a"),
        ({"workload": {"route": "responses"}, "extra_body": {"input": "x"}}, "may not set input"),
        ({"workload": {"tools": [TOOL]}, "extra_body": {"tools": []}}, "may not set tools"),
        ({"workload": {"route": "score", "source": "synthetic", "input_tokens": {"mean": 9}}},
         "route: score takes messages; synthetic has token ids"),
        ({"workload": {"route": "embeddings", "sessions": {}}}, "sessions is not for route"),
        ({"workload": {"route": "classify"}, "slo": {"ttft_s": {"p90": 1}}, "ignore_eos": True},
         "answers without tokens: remove slo.ttft_s, ignore_eos"),
        ({"workload": {"route": "rerank"}, "cancellations": {"after_tokens": 2}},
         "remove cancellations.after_tokens"),
        ({"workload": {"route": "rerank"}, "extra_body": {"query": "x"}}, "may not set query"),
    ],
)  # fmt: skip
def test_routes_refuse_what_they_cannot_send(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as error:
        validate_config(LoadTestConfig, values, "test")
    assert error.value.exit_code == 2


PAIR = [{"role": "user", "content": text} for text in ("q", "a", "b")]


@pytest.mark.parametrize(
    ("route", "path", "body"),
    [
        ("embeddings", "/gate/v1/embeddings", {"input": "q\na\nb"}),
        ("pooling", "/gate/pooling", {"input": "q\na\nb"}),
        ("classify", "/gate/classify", {"input": "q\na\nb"}),
        ("score", "/gate/score", {"text_1": "q", "text_2": ["a", "b"]}),
        ("rerank", "/gate/v1/rerank", {"query": "q", "documents": ["a", "b"]}),
    ],
)
def test_a_request_for_vectors_or_scores_has_its_path_and_its_texts(
    route: str, path: str, body: dict[str, Any]
) -> None:
    values = {
        "scenarios": [{"name": "x", "concurrency": 1, "num_requests": 2}],
        "workload": {"route": route}, "extra_body": {"temperature": 0.0, "user": "u"},
    }  # fmt: skip
    chosen = validate_config(LoadTestConfig, values, "test")
    endpoint = Endpoint("http://127.0.0.1:1/gate/v1", "m")
    plan, _ = make_plan(chosen, chosen.scenarios[0], endpoint, [PAIR], seed=0)
    assert json.loads(plan.bodies[0]) == {"model": "m", "user": "u", **body}
    assert plan.head.startswith(f"POST {path} HTTP/1.1\r\n")
    assert "\r\nAccept: application/json\r\n" in plan.head


@pytest.mark.parametrize("route", ["pooling", "classify", "embeddings"])
def test_a_conversation_with_an_answer_is_rendered_by_the_server_of_scores(route: str) -> None:
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    values = {
        "scenarios": [{"name": "x", "concurrency": 1, "num_requests": 2}],
        "workload": {"route": route},
    }
    chosen = validate_config(LoadTestConfig, values, "test")
    endpoint = Endpoint("http://127.0.0.1:1/v1", "m")
    plan, _ = make_plan(chosen, chosen.scenarios[0], endpoint, [chat], seed=0)
    said = {"input": "q\na"} if route == "embeddings" else {"messages": chat}
    assert json.loads(plan.bodies[0]) == {"model": "m", **said}


def test_token_ids_are_embedded_as_they_are() -> None:
    values = {"scenarios": [{"name": "x", "concurrency": 1, "num_requests": 2}],
              "workload": {"route": "embeddings", "source": "synthetic",
                           "input_tokens": {"mean": 9}}}  # fmt: skip
    chosen = validate_config(LoadTestConfig, values, "test")
    endpoint = Endpoint("http://127.0.0.1:1/v1", "m")
    plan, _ = make_plan(chosen, chosen.scenarios[0], endpoint, [], seed=0)
    body = json.loads(plan.bodies[0])
    assert plan.route == "embeddings"
    assert [type(one) for one in body["input"]] == [int] * 9


def test_a_query_without_documents_is_named() -> None:
    values = {"scenarios": [{"name": "x", "concurrency": 1, "num_requests": 2}],
              "workload": {"route": "rerank"}}  # fmt: skip
    chosen = validate_config(LoadTestConfig, values, "test")
    endpoint = Endpoint("http://127.0.0.1:1/v1", "m")
    with pytest.raises(ConfigError, match="1 of 2 prompts have one text"):
        make_plan(chosen, chosen.scenarios[0], endpoint, [PAIR, PAIR[:1]], seed=0)


USAGE = b', "usage": {"prompt_tokens": 3}}'
TOTAL = b', "usage": {"total_tokens": 3}}'


def document(body: bytes) -> list[bytes]:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    data = head % len(body) + body
    return [data[:-1], data[-1:]]


@pytest.mark.parametrize(
    ("route", "body", "num_values", "error"),
    [
        ("embeddings", b'{"data": [{"embedding": [1, 0.5]}]' + USAGE, 1, None),
        ("embeddings", b'{"data": [{"embedding": "AAAA"}]' + USAGE, 1, None),
        ("embeddings", b'{"data": [{"embedding": []}]}', None, "malformed_answer"),
        ("embeddings", b'{"data": [{"embedding": [1, null]}]}', None, "malformed_answer"),
        ("embeddings", b'{"data": [{"embedding": [NaN]}]}', None, "malformed_answer"),
        ("embeddings", b"<html>busy</html>", None, "malformed_answer"),
        ("embeddings", b"", None, "malformed_answer"),
        ("pooling", b'{"data": [{"data": [[1.0], [2.0]]}]' + USAGE, 1, None),
        ("classify", b'{"data": [{"probs": [0.5]}]' + USAGE, 1, None),
        ("score", b'{"data": [{"score": 0.0}, {"score": 1}]' + TOTAL, 2, None),
        ("rerank", b'{"results": [{"relevance_score": 0.1}]' + TOTAL, 1, None),
        ("rerank", b'{"results": []}', None, "malformed_answer"),
        ("rerank", b'{"error": {"message": "no engine"}}', None, "error_event"),
    ],
)  # fmt: skip
def test_a_document_is_read_as_a_whole(
    route: str, body: bytes, num_values: int | None, error: str | None
) -> None:
    answer = parse_response([5, 9], document(body), route=route)
    assert (answer.num_values, answer.error) == (num_values, error), answer.message
    if error is None:
        assert (answer.finish_time, answer.prompt_tokens, answer.completion_tokens) == (9, 3, 0)


def test_a_document_that_is_cut_is_truncated() -> None:
    cut = parse_response([5], document(b'{"data": []}')[:1], route="score", closed=True)
    assert cut.error == "truncated_stream"
    assert cut.message == "the connection ended before the answer did"
