"""Questions to an OpenAI-compatible server that refuses some of their fields."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import openai
import pytest

from training.evaluation.answerer import Question
from training.evaluation.endpoint import endpoint_answerer
from training.evaluation.forgetting.checkers import refuses
from tuneline.core import openai_client
from tuneline.core.endpoint import Endpoint
from tuneline.core.errors import ServerError

NUM_QUESTIONS = 4
TOOL = {"type": "function", "function": {"name": "book", "parameters": {"type": "object"}}}
CALL = '{"name": "book", "arguments": {"seats": 1}}'
QUESTION = Question(({"role": "user", "content": "Book it."},), (TOOL,))
Refusal = Callable[[dict[str, Any]], str | None]


@contextmanager
def _server(
    refusal: Refusal, message: dict[str, Any], status: int = 400
) -> Iterator[tuple[Endpoint, list[dict[str, Any]]]]:
    """Serve one message; the first questions are answered together, when all have arrived."""
    bodies: list[dict[str, Any]] = []
    all_here = threading.Barrier(NUM_QUESTIONS)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            bodies.append(body)
            if len(bodies) <= NUM_QUESTIONS:
                all_here.wait(10)
            words = refusal(body)
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            found = {
                "id": "1", "object": "chat.completion", "created": 0, "model": "m",
                "choices": [choice],
            }  # fmt: skip
            text = json.dumps(found if words is None else {"error": {"message": words}}).encode()
            self.send_response(200 if words is None else status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Retry-After-Ms", "1")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield Endpoint(f"http://127.0.0.1:{server.server_port}/v1", "m"), bodies
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _no_parser(body: dict[str, Any]) -> str | None:
    is_auto = "tools" in body and body.get("tool_choice") != "none"
    return "auto tool choice requires --enable-auto-tool-choice" if is_auto else None


def _no_penalty(body: dict[str, Any]) -> str | None:
    return "Unrecognized argument: repetition_penalty" if "repetition_penalty" in body else None


def _no_kwargs(body: dict[str, Any]) -> str | None:
    return "Unknown parameter: chat_template_kwargs" if "chat_template_kwargs" in body else None


@pytest.mark.parametrize("status", [400, 422])
@pytest.mark.parametrize(
    "refusal",
    [
        lambda _body: None,
        _no_parser,
        _no_penalty,
        _no_kwargs,
        lambda b: _no_kwargs(b) or _no_penalty(b) or _no_parser(b),
    ],
    ids=["nothing", "auto", "penalty", "template", "all"],
)
def test_a_server_is_asked_without_the_fields_that_it_refuses(
    refusal: Refusal, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    message = {"role": "assistant", "content": CALL}
    kwargs = {"date_string": "1 May"}
    with _server(refusal, message, status) as (endpoint, bodies):
        answerer = endpoint_answerer(endpoint, template_kwargs=kwargs)
        replies = answerer.answer([QUESTION] * NUM_QUESTIONS, 8)
    assert [reply.tool_calls for reply in replies] == [(json.loads(CALL),)] * NUM_QUESTIONS
    # Without it, a penalty of the model's generation_config.json changes greedy answers.
    assert bodies[0]["repetition_penalty"] == 1.0
    assert bodies[0]["chat_template_kwargs"] == kwargs
    is_refused = refusal({"chat_template_kwargs": kwargs}) is not None
    assert ("its chat template had no date_string" in caplog.text) == is_refused


def test_calls_of_a_question_are_sent_with_ids_and_text() -> None:
    call = {"type": "function", "function": {"name": "book", "arguments": {"seats": 1}}}
    asked = Question(
        (*QUESTION.messages, {"role": "assistant", "tool_calls": [call]},
         {"role": "tool", "content": "booked"}),
        (TOOL,),
    )  # fmt: skip
    with _server(lambda _body: None, {"role": "assistant", "content": "Done."}) as (url, bodies):
        endpoint_answerer(url).answer([asked] * NUM_QUESTIONS, 8)
    sent = bodies[0]["messages"]
    assert sent[1]["tool_calls"][0]["function"]["arguments"] == '{"seats": 1}'
    assert sent[2]["tool_call_id"] == sent[1]["tool_calls"][0]["id"]


def test_a_server_that_limits_the_rate_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_client, "LIMITED_PAUSE_S", 0.01)
    limited = iter(range(5 * NUM_QUESTIONS))  # The client of openai gives up after three tries.
    message = {"role": "assistant", "content": "x"}

    def refusal(_body: dict[str, Any]) -> str | None:
        return None if next(limited, None) is None else "Too many requests"

    with _server(refusal, message, 429) as (endpoint, bodies):
        replies = endpoint_answerer(endpoint).answer([QUESTION] * NUM_QUESTIONS, 8)
    assert [reply.text for reply in replies] == ["x"] * NUM_QUESTIONS
    assert len(bodies) == 6 * NUM_QUESTIONS


@pytest.mark.parametrize(("code", "over"), [("insufficient_quota", False), ("rate_limit", True)])
def test_a_spent_account_or_an_ended_evaluation_is_not_asked_again(code: str, over: bool) -> None:
    response: Any = httpx.Response(429, request=httpx.Request("POST", "http://x"))
    error = openai.RateLimitError("no", response=response, body={"code": code})
    asked = []

    def ask() -> None:
        asked.append(1)
        raise error

    is_over = threading.Event()
    if over:
        is_over.set()
    with pytest.raises(openai.RateLimitError):
        openai_client.wait_for_turn(ask, is_over)
    assert asked == [1]


def test_another_refusal_ends_the_evaluation() -> None:
    message = {"role": "assistant", "content": "x"}
    with (
        _server(lambda _body: "the maximum context length is 8", message) as (endpoint, _bodies),
        pytest.raises(ServerError, match="maximum context length is 8") as caught,
    ):
        endpoint_answerer(endpoint).answer([QUESTION] * NUM_QUESTIONS, 8)
    assert "evaluation.max_new_tokens" in str(caught.value.hint)


def test_a_call_with_broken_arguments_stays_a_call() -> None:
    functions = [{"name": "book", "arguments": text} for text in ('{"seats": 1}', '{"seats": ')]
    calls = [{"id": "1", "type": "function", "function": function} for function in functions]
    message = {"role": "assistant", "content": None, "tool_calls": calls}
    with _server(lambda _body: None, message) as (endpoint, _bodies):
        reply = endpoint_answerer(endpoint).answer([QUESTION] * NUM_QUESTIONS, 8)[0]
    assert [call["arguments"] for call in reply.tool_calls] == [{"seats": 1}, '{"seats": ']


@pytest.mark.parametrize("content", [None, ""])
def test_a_refusal_in_a_field_of_its_own_is_the_answer(content: str | None) -> None:
    declined = {"role": "assistant", "content": content, "refusal": "I can't help with that."}
    with _server(lambda _body: None, declined) as (endpoint, _):
        replies = endpoint_answerer(endpoint).answer([QUESTION] * NUM_QUESTIONS, 8)
    assert {reply.text for reply in replies} == {"I can't help with that."}
    assert all(refuses(reply) for reply in replies)
