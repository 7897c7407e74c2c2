"""The form of an answer: JSON by a schema, choices, expressions and calls of tools."""

import json
from typing import Any

import pytest

from loadtest.client.answer import Answer
from loadtest.client.form import asked_form, form_problem, is_whole
from loadtest.client.sse import parse_response
from tuneline.core.errors import ConfigError

SCHEMA = {
    "type": "object", "required": ["city"], "properties": {"city": {"type": "string"}},
}  # fmt: skip
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "now"}},
]
ULM = '{"city": "Ulm"}'
BY_SCHEMA = {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}}
BY_VLLM = {"structured_outputs": {"json": json.dumps(SCHEMA)}}
BY_RESPONSES = {"text": {"format": {"type": "json_schema", "schema": SCHEMA}}}


@pytest.mark.parametrize("body", [BY_SCHEMA, BY_VLLM, BY_RESPONSES], ids=["chat", "vllm", "text"])
@pytest.mark.parametrize(
    ("content", "says"),
    [
        (' {"city": "Ulm"}\n', None),
        ('{"city": "Ulm"', "not JSON"),
        ('```json {"city": "Ulm"}```', "not JSON"),
        ('{"city": 3}', "at $.city: 3 is not of type"),
        ("{}", "at $: 'city' is a required property"),
    ],
)
def test_content_is_checked_against_the_schema(
    body: dict[str, Any], content: str, says: str | None
) -> None:
    form = asked_form(body, None)
    assert form is not None
    found = form_problem(form, Answer(content=content, finish_reason="stop"))
    if says is None:
        assert found is None
    else:
        assert found is not None and found[0] == "malformed_answer" and says in found[1]


@pytest.mark.parametrize(
    ("outputs", "content", "is_right"),
    [
        ({"choice": ["yes", "no"]}, "no", True),
        ({"choice": ["yes", "no"]}, "no.", False),
        ({"regex": "[0-9]+"}, "42", True),
        ({"regex": "[0-9]+"}, "42 ", False),
    ],
)
def test_choices_and_expressions_are_checked(
    outputs: dict[str, Any], content: str, is_right: bool
) -> None:
    form = asked_form({"structured_outputs": outputs}, None)
    assert form is not None
    assert (form_problem(form, Answer(content=content)) is None) == is_right


def answer_with(*deltas: dict[str, Any], finish: str = "tool_calls") -> Answer:
    choices: list[dict[str, Any]] = [{"delta": one, "finish_reason": None} for one in deltas]
    choices.append({"delta": {}, "finish_reason": finish})
    body = b"".join(b"data: %b\n\n" % json.dumps({"choices": [one]}).encode() for one in choices)
    body += b"data: [DONE]\n\n"
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
    return parse_response([0], [head + body], keep_text=True)


def call(index: int, name: str | None, arguments: str) -> dict[str, Any]:
    function: dict[str, Any] = {"name": name, "arguments": arguments}
    return {"tool_calls": [{"index": index, "function": function}]}


@pytest.mark.parametrize(
    ("deltas", "says"),
    [
        ([call(0, "weather", ""), call(0, None, '{"city"'), call(0, None, ': "Ulm"}')], None),
        ([call(0, "weather", ULM), call(1, "weather", ULM)], None),
        ([call(0, "now", "")], None),
        ([call(0, "weather", '{"city": "Ul')], "weather: the arguments are not JSON"),
        ([call(0, "weather", "[]")], "expected an object"),
        (
            [call(0, "weather", '{"city": 3}')],
            "weather: the arguments are not as their schema asks",
        ),
        ([call(0, "weather", ULM), call(1, "weather", "{}")], "'city' is a required property"),
        ([call(0, "wether", "{}")], "no tool of the request has that name"),
        ([{"content": "It rains."}], "the answer holds no call"),
    ],
)
def test_calls_are_put_together_and_checked(deltas: list[dict[str, Any]], says: str | None) -> None:
    form = asked_form({}, TOOLS)
    assert form is not None
    answer = answer_with(*deltas)
    assert answer.error is None
    found = form_problem(form, answer)
    if says is None:
        assert found is None and {name for name, _ in answer.calls} <= {"weather", "now"}
        assert answer.calls
    else:
        assert found is not None and found[0] == "malformed_call" and says in found[1]


def test_a_schema_that_points_to_nothing_fetches_nothing_and_says_so() -> None:
    elsewhere = {"properties": {"city": {"$ref": "http://127.0.0.1:1/city.json"}}}
    form = asked_form({"response_format": {"type": "json_schema", "schema": elsewhere}}, None)
    assert form is not None
    found = form_problem(form, Answer(content=ULM))
    assert found is not None and "a reference to nothing" in found[1]


def test_an_answer_that_a_limit_cut_is_not_judged() -> None:
    assert not is_whole(answer_with({"content": "{"}, finish="length"))
    assert is_whole(answer_with({"content": "{"}, finish="stop"))
    assert asked_form({"temperature": 0.0}, None) is None


def test_parameters_that_are_not_a_schema_are_an_error() -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "objekt"}}}
    with pytest.raises(ConfigError, match=r"workload\.tools: the parameters of f is not"):
        asked_form({}, [tool])


@pytest.mark.parametrize(
    "body",
    [
        {"structured_outputs": {"json": "{"}},
        {"structured_outputs": {"json": {"type": "objekt"}}},
        {"structured_outputs": {"regex": "["}},
    ],
    ids=str,
)
def test_a_form_that_cannot_be_read_is_an_error(body: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"^loadtest\.extra_body: the"):
        asked_form(body, None)
