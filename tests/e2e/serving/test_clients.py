"""Each client that people use, on one real vLLM: the openai and anthropic clients by call, and the
scripts of examples/clients as they are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import anthropic
import openai
import pytest
from pydantic import BaseModel

from serving.supervisor.process import RunningServer

EXAMPLES = Path(__file__).resolve().parents[3] / "examples" / "clients"
QUESTION = "I want a refund."
ANSWER = "Category: billing. Pay it back."
MESSAGES: Any = [{"role": "user", "content": QUESTION}]
GREEDY: Any = {"model": "tickets", "messages": MESSAGES, "temperature": 0, "max_tokens": 24}
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "hours",
            "parameters": {
                "type": "object", "properties": {"team": {"enum": ["billing", "access"]}},
                "required": ["team"], "additionalProperties": False,
            },
            "strict": True,
        },
    }
]  # fmt: skip


class Ticket(BaseModel):
    team: Literal["billing", "access"]
    urgent: bool


@pytest.fixture(scope="module")
def claude(merged_server: RunningServer) -> Iterator[anthropic.Anthropic]:
    url = merged_server.endpoint.url.removesuffix("/v1")
    with anthropic.Anthropic(base_url=url, api_key="none") as client:
        yield client


def test_openai_chat_with_log_probabilities(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**GREEDY, logprobs=True, top_logprobs=3)
    choice = answer.choices[0]
    assert choice.message.content == ANSWER
    assert choice.finish_reason == "stop"
    assert choice.logprobs is not None
    steps = choice.logprobs.content or []
    assert "".join(step.token for step in steps).startswith(ANSWER)
    assert {len(step.top_logprobs) for step in steps} == {3}
    assert answer.usage is not None
    assert answer.usage.completion_tokens == len(steps)
    assert answer._request_id


def test_openai_stream_with_usage(client: openai.OpenAI) -> None:
    options: Any = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(client.chat.completions.create(**GREEDY, **options))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == ANSWER
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert sum(chunk.usage is not None for chunk in chunks) == 1


def test_openai_completions(client: openai.OpenAI) -> None:
    prompts = ["Category:", "Category: b"]
    answer = client.completions.create(
        model="tickets", prompt=prompts, max_tokens=4, temperature=0, echo=True
    )
    assert len(answer.choices) == 2
    for choice, prompt in zip(answer.choices, prompts, strict=True):
        assert choice.text.startswith(prompt)
    short = client.completions.create(model="tickets", prompt="one two", temperature=0,
                                      extra_body={"ignore_eos": True})  # fmt: skip
    assert short.usage is not None
    assert short.usage.completion_tokens == 16  # vLLM's default, as OpenAI's


def test_openai_several_answers_and_seeds(client: openai.OpenAI) -> None:
    sampled: Any = {**GREEDY, "temperature": 1.0, "max_tokens": 8}
    several = client.chat.completions.create(**sampled, n=3, seed=1)
    assert [choice.index for choice in several.choices] == [0, 1, 2]
    seeded = {
        client.chat.completions.create(**sampled, seed=7).choices[0].message.content
        for _ in range(2)
    }
    assert len(seeded) == 1


def test_openai_stop(client: openai.OpenAI) -> None:
    choice = client.chat.completions.create(**GREEDY, stop=["."]).choices[0]
    assert choice.message.content == "Category: billing"
    assert choice.finish_reason == "stop"


def test_openai_answers_follow_a_schema(client: openai.OpenAI) -> None:
    options: Any = {**GREEDY, "max_tokens": 64}
    answer = client.chat.completions.parse(**options, response_format=Ticket)
    parsed = answer.choices[0].message.parsed
    assert isinstance(parsed, Ticket)
    schema: Any = {
        "type": "json_schema",
        "json_schema": {"name": "ticket", "schema": Ticket.model_json_schema(), "strict": True},
    }
    plain = client.chat.completions.create(**options, response_format=schema)
    assert Ticket.model_validate_json(plain.choices[0].message.content or "") == parsed


@pytest.mark.parametrize("choice", ["auto", "none"])
def test_openai_tools_that_the_model_does_not_call(client: openai.OpenAI, choice: Any) -> None:
    answer = client.chat.completions.create(**GREEDY, tools=TOOLS, tool_choice=choice)
    assert answer.choices[0].message.content == ANSWER
    assert not answer.choices[0].message.tool_calls


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "hours"}}]
)
def test_openai_tools_that_the_model_must_call(client: openai.OpenAI, choice: Any) -> None:
    """The model has learnt no calls: without a limit of blanks it writes them to `max_tokens`."""
    options: Any = {
        **GREEDY, "max_tokens": 150, "tools": TOOLS, "tool_choice": choice,
        "parallel_tool_calls": False,
    }  # fmt: skip
    answer = client.chat.completions.create(**options)
    (call,) = answer.choices[0].message.tool_calls or []
    assert call.type == "function"
    arguments = json.loads(call.function.arguments)
    assert call.function.name == "hours" and arguments["team"] in ("billing", "access")
    deltas = [
        delta
        for chunk in client.chat.completions.create(**options, stream=True)
        for delta in chunk.choices[0].delta.tool_calls or []
        if delta.function is not None
    ]
    streamed = "".join(delta.function.arguments or "" for delta in deltas if delta.function)
    assert json.loads(streamed) == arguments


def test_openai_responses_with_a_tool_that_the_model_must_call(client: openai.OpenAI) -> None:
    tool = {"type": "function", **TOOLS[0]["function"]}
    options: Any = {
        "model": "tickets", "input": QUESTION, "temperature": 0, "max_output_tokens": 150,
        "tools": [tool], "tool_choice": "required", "parallel_tool_calls": False,
    }  # fmt: skip
    answer = client.responses.create(**options)
    (call,) = answer.output
    assert call.type == "function_call" and call.name == "hours"
    assert json.loads(call.arguments)["team"] in ("billing", "access")


def test_openai_responses_with_log_probabilities_and_a_schema(client: openai.OpenAI) -> None:
    options: Any = {"model": "tickets", "input": QUESTION, "temperature": 0}
    answer = client.responses.create(
        **options, max_output_tokens=24, include=["message.output_text.logprobs"], top_logprobs=3
    )
    (message,) = answer.output
    assert message.type == "message"
    (content,) = message.content
    assert content.type == "output_text" and content.text == ANSWER
    logprobs = content.logprobs or []
    assert "".join(step.token for step in logprobs).startswith(ANSWER)
    assert {len(step.top_logprobs) for step in logprobs} == {3}
    parsed = client.responses.parse(**options, max_output_tokens=64, text_format=Ticket)
    assert isinstance(parsed.output_parsed, Ticket)
    short = client.responses.create(**options, max_output_tokens=4)
    assert short.status == "incomplete" and short.incomplete_details is not None
    assert short.incomplete_details.reason == "max_output_tokens"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"background": True}, "background: The server keeps no responses"),
        ({"conversation": "conv_1"}, "conversation: The server keeps no conversations"),
        ({"tools": [{"type": "web_search"}]}, "tools: A tool of this type runs at OpenAI"),
        ({"prompt": {"id": "p"}}, "prompt template is not supported"),
    ],
)
def test_openai_responses_that_need_a_store_are_refused(
    client: openai.OpenAI, changes: Any, problem: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=problem):
        client.responses.create(model="tickets", input=QUESTION, **changes)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve("resp_1")


def test_openai_responses(client: openai.OpenAI) -> None:
    options: Any = {"model": "tickets", "input": QUESTION, "temperature": 0}
    answer = client.responses.create(**options, max_output_tokens=24)
    assert answer.output_text == ANSWER
    assert answer.status == "completed"
    events = list(client.responses.create(**options, max_output_tokens=24, stream=True))
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == ANSWER
    assert events[-1].type == "response.completed"


def test_openai_models(client: openai.OpenAI, merged_server: RunningServer) -> None:
    assert [model.id for model in client.models.list()] == merged_server.served_names
    for name in merged_server.served_names:
        assert client.models.retrieve(name).id == name
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("other")
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"model": "other"}, openai.NotFoundError),
        ({"max_tokens": 5000}, openai.BadRequestError),
        ({"messages": [{"role": "user", "content": "word " * 400}]}, openai.BadRequestError),
        ({"temperature": -1}, openai.BadRequestError),
        ({"n": 17, "temperature": 1}, openai.BadRequestError),
        ({"n": 2}, openai.BadRequestError),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {
            "type": "nonsense"}}}}, openai.BadRequestError),
    ],
)  # fmt: skip
def test_openai_errors_are_their_classes(
    client: openai.OpenAI, changes: Any, error: type[openai.APIStatusError]
) -> None:
    with pytest.raises(error) as caught:
        client.chat.completions.create(**{**GREEDY, **changes})
    assert caught.value.body is not None
    assert caught.value.request_id


def test_openai_fields_that_vllm_ignores(client: openai.OpenAI) -> None:
    """Clients that need these fields get no error and no effect; docs/serving.md says so."""
    answer = client.chat.completions.create(
        **GREEDY, store=True, metadata={"a": "b"}, user="u", service_tier="flex",
        prompt_cache_key="k", reasoning_effort="low", verbosity="low", extra_body={"max_token": 1},
    )  # fmt: skip
    assert answer.choices[0].message.content == ANSWER


def test_anthropic_messages(claude: anthropic.Anthropic) -> None:
    options: Any = {
        "model": "tickets", "messages": MESSAGES, "max_tokens": 24,
        "extra_body": {"temperature": 0},
    }  # fmt: skip
    message = claude.messages.create(**options)
    assert [block.text for block in message.content if block.type == "text"] == [ANSWER]
    assert message.stop_reason == "end_turn"
    with claude.messages.stream(**options) as stream:
        assert "".join(stream.text_stream) == ANSWER
    counted = claude.messages.count_tokens(model="tickets", messages=MESSAGES)
    assert counted.input_tokens == message.usage.input_tokens


def test_anthropic_errors_are_their_classes(claude: anthropic.Anthropic) -> None:
    options: Any = {"messages": MESSAGES, "max_tokens": 4}
    with pytest.raises(anthropic.NotFoundError):
        claude.messages.create(model="other", **options)
    with pytest.raises(anthropic.BadRequestError):
        claude.messages.create(model="tickets", messages=MESSAGES, max_tokens=5000)


@pytest.mark.parametrize(
    ("script", "lines"),
    [
        ("openai_chat", [f"whole: {ANSWER}", f"stream: {ANSWER}", "schema: team="]),
        ("anthropic_messages", [f"whole: {ANSWER}", f"stream: {ANSWER}", "tokens: "]),
        ("langchain_chat", [f"whole: {ANSWER}", f"stream: {ANSWER}", "schema: team="]),
        ("agents_sdk", [f"chat: {ANSWER}", f"responses: {ANSWER}"]),
    ],
)
def test_the_examples_run(merged_server: RunningServer, script: str, lines: list[str]) -> None:
    url = merged_server.endpoint.url
    env = os.environ | {
        "OPENAI_BASE_URL": url, "OPENAI_API_KEY": "none",
        "ANTHROPIC_BASE_URL": url.removesuffix("/v1"), "ANTHROPIC_API_KEY": "none",
    }  # fmt: skip
    ran = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{script}.py"), "tickets", QUESTION], env=env,
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    printed = ran.stdout.splitlines()
    assert len(printed) == len(lines)
    for line, expected in zip(printed, lines, strict=True):
        assert line.startswith(expected)
