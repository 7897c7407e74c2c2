from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest

from training.config.data import ShapeName, SourceConfig
from training.data.problem import RowProblem
from training.data.row import Row
from training.data.rows import read_rows
from training.data.shapes import SHAPES, read_shape

Q: dict[str, Any] = {"role": "user", "content": "Is it on?"}
A: dict[str, Any] = {"role": "assistant", "content": "Yes."}
NO: dict[str, Any] = {"role": "assistant", "content": "No."}
SYSTEM: dict[str, Any] = {"role": "system", "content": "Be brief."}
FUNCTION = {"name": "ping", "parameters": {}}
TOOL = {"type": "function", "function": FUNCTION}
CALL = {"type": "function", "function": {"name": "ping", "arguments": {"n": 1}}}
CALLS: dict[str, Any] = {"role": "assistant", "tool_calls": [CALL]}
RESULT: dict[str, Any] = {"role": "tool", "content": "on"}
OPENAI_CALLS = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {"id": "c", "type": "function", "function": {"name": "ping", "arguments": '{"n": 1}'}}
    ],
}
ANSWER = Row((Q,), (A,))

READ: list[tuple[dict[str, Any], Row]] = [
    # Rows as pandas writes them, and logs with other columns.
    ({"instruction": "Is it on?", "input": None, "output": "Yes."}, ANSWER),
    (
        {"id": 0, "source": "desk", "messages": [Q, A]},
        Row((Q,), (A,), fields={"id": 0, "source": "desk"}),
    ),
    ({"instruction": "Is it on?", "output": "Yes.", "system": "Be brief.", "history": []},
     Row((SYSTEM, Q), (A,))),
    ({"instruction": "Is it on?", "output": "Yes.", "history": [["1", "2"]]},
     Row(({"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}, Q), (A,))),
    ({"instruction": "Is it on?", "output": "Yes.", "text": "### Instruction", "label": "None"},
     Row((Q,), (A,), fields={"text": "### Instruction", "label": "None"})),
    # OpenAI's fine-tuning files.
    (
        {"messages": [Q, OPENAI_CALLS, {**RESULT, "tool_call_id": "c"}, A], "tools": [TOOL]},
        Row(
            (Q, {"role": "assistant", "tool_calls": [{"id": "c", **CALL}]},
             {**RESULT, "tool_call_id": "c"}),
            (A,),
            tools=(TOOL,),
        ),
    ),
    ({"messages": [Q, CALLS], "tools": [TOOL], "parallel_tool_calls": False},
     Row((Q,), (CALLS,), tools=(TOOL,), fields={"parallel_tool_calls": False})),
    (
        {
            "messages": [
                Q,
                {"role": "assistant", "content": None,
                 "function_call": {"name": "ping", "arguments": '{"n": 1}'}},
                {"role": "function", "name": "ping", "content": "on"},
                A,
            ],
            "functions": [FUNCTION],
        },
        Row((Q, CALLS, {**RESULT, "name": "ping"}), (A,), tools=(TOOL,)),
    ),
    ({"messages": [Q, {**A, "weight": 0}, Q, {**NO, "weight": 1}]},
     Row((Q, A, Q), (NO,), untrained=(1,))),
    ({"messages": [SYSTEM, Q, A, Q, {**NO, "weight": 0}]}, Row((SYSTEM, Q), (A,))),
    ({"messages": [Q, {**A, "weight": 0}, Q, NO], "system": "Be brief."},
     Row((SYSTEM, Q, A, Q), (NO,), untrained=(2,))),
    ({"messages": [{"role": "developer", "content": "Be brief."}, Q, A]}, Row((SYSTEM, Q), (A,))),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": "Is it"},
                                                {"type": "text", "text": "on?"}]}, A]},
     Row(({"role": "user", "content": "Is it\non?"},), (A,))),
    ({"messages": [Q, {**A, "reasoning_content": "The lamp is lit."}]},
     Row((Q,), ({**A, "reasoning_content": "The lamp is lit."},))),
    ({"messages": [Q, {**A, "thinking": "The lamp is lit."}]},
     Row((Q,), ({**A, "reasoning_content": "The lamp is lit."},))),
    ({"messages": [Q, {**A, "reasoning_content": ""}]},
     Row((Q,), ({**A, "reasoning_content": ""},))),
    ({"messages": [Q, {**A, "reasoning": "", "thinking": "The lamp is lit."}]},
     Row((Q,), ({**A, "reasoning_content": "The lamp is lit."},))),
    ({"messages": [Q, {**A, "reasoning_content": None}]}, ANSWER),
    ({"messages": [Q, A], "tools": [{"type": "function", **FUNCTION}]},
     Row((Q,), (A,), tools=(TOOL,))),
    ({"messages": [Q, A], "tools": [{**TOOL, "function": {**FUNCTION, "parameters": "{}"}}]},
     Row((Q,), (A,), tools=(TOOL,))),
    # ShareGPT and its relatives.
    ({"conversations": [{"from": "human", "value": "Is it on?"}, {"from": "gpt", "value": "Yes."}]},
     ANSWER),
    ({"conversations": [Q, A]}, ANSWER),
    ({"messages": [{"from": "user", "value": "Is it on?"}, {"from": "model", "value": "Yes."}]},
     ANSWER),
    (
        {
            "conversations": [
                {"from": "human", "value": "Is it on?"},
                {"from": "function_call", "value": '{"name": "ping", "arguments": {"n": 1}}'},
                {"from": "observation", "value": "on"},
                {"from": "gpt", "value": "Yes.", "weight": None},
            ],
            "system": "Be brief.",
            "tools": json.dumps([FUNCTION]),
        },
        Row((SYSTEM, Q, CALLS, RESULT), (A,), tools=(TOOL,)),
    ),
    # Roles in capitals, and what logs note about a message.
    ({"messages": [{"role": "User", "content": "Is it on?", "id": "m1", "timestamp": 1.5},
                   {"role": "Chatbot", "content": "Yes.", "model": "m", "prefix": False}]}, ANSWER),
    ({"messages": [{"role": "system", "content": ""}, Q, A]},
     Row(({"role": "system", "content": ""}, Q), (A,))),
    ({"messages": [Q, {"role": "assistant", "content": None, "refusal": "No."}]},
     Row((Q,), (NO,))),
    ({"messages": [Q, {**A, "reasoning": "Lit.", "reasoning_details": [{"text": "Lit."}]}]},
     Row((Q,), ({**A, "reasoning_content": "Lit."},))),
    ({"messages": [Q, {**A, "tool_calls": [], "function_call": CALL["function"]}]},
     Row((Q,), ({**CALLS, **A},))),
    # Turns that Axolotl and ms-swift exclude, and ms-swift's calls in messages of their own.
    *(({"messages": [Q, {**A, name: value}, Q, NO]}, Row((Q, A, Q), (NO,), untrained=(1,)))
      for name, value in {"training": False, "loss": False, "loss_scale": 0.0}.items()),
    ({"messages": [Q, A, {"role": "tool_call", "content": json.dumps(CALL["function"])},
                   {"role": "tool_call", "content": json.dumps(CALL["function"])},
                   {"role": "tool_response", "content": "on"},
                   {"role": "tool_response", "content": "on"}, {**NO, "loss": 0}, Q, A]},
     Row((Q, {**A, "tool_calls": [CALL, CALL]}, RESULT, RESULT, NO, Q), (A,), untrained=(4,))),
    *(({"messages": [Q, {"role": "assistant", "tool_calls": [{"name": "ping", key: {"n": 1}}]}]},
       Row((Q,), (CALLS,))) for key in ("parameters", "args", "input")),
    # Anthropic's blocks of content, and the name that it and MCP give to a schema.
    (
        {
            "system": [{"type": "text", "text": "Be brief."}],
            "tools": [{"name": "ping", "input_schema": {}}],
            "messages": [
                Q,
                {"role": "assistant", "content": [
                    {"type": "thinking", "thinking": "Look.", "signature": "s"},
                    {"type": "text", "text": "Yes."},
                    {"type": "tool_use", "id": "c", "name": "ping", "input": {"n": 1}}]},
                {"role": "user", "content": [
                    {"type": "tool_result", "tool_use_id": "c",
                     "content": [{"type": "text", "text": "on"}]}]},
                A,
            ],
        },
        Row(
            (SYSTEM, Q,
             {**A, "reasoning_content": "Look.", "tool_calls": [{"id": "c", **CALL}]},
             {**RESULT, "tool_call_id": "c"}),
            (A,),
            tools=(TOOL,),
        ),
    ),
    ({"messages": [Q, A], "tools": [{"name": "ping", "inputSchema": {}}]},
     Row((Q,), (A,), tools=(TOOL,))),
    # LLaMA-Factory's newer messages.
    (
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "value": "Is it on?"}],
                 "loss_weight": 0.0},
                {"role": "assistant", "loss_weight": 0.0, "content": [
                    {"type": "reasoning", "value": "Look."},
                    {"type": "tool_call", "value": json.dumps(CALL["function"])},
                    {"type": "tool_call", "value": json.dumps(CALL["function"])}]},
                {"role": "tool", "content": [{"type": "text", "value": "on"}]},
                {"role": "tool", "content": [{"type": "text", "value": "on"}]},
                {"role": "assistant", "content": [{"type": "text", "value": "Yes."}],
                 "loss_weight": 1.0},
            ],
        },
        Row((Q, {"role": "assistant", "tool_calls": [CALL, CALL], "reasoning_content": "Look."},
             RESULT, RESULT), (A,), untrained=(1,)),
    ),
    # Gemini's and Vertex AI's contents.
    (
        {
            "systemInstruction": {"parts": [{"text": "Be brief."}]},
            "contents": [
                {"role": "user", "parts": [{"text": "Is it "}, {"text": "on?"}]},
                {"role": "model", "parts": [{"functionCall": {"name": "ping", "args": {"n": 1}}}]},
                {"role": "user", "parts": [
                    {"functionResponse": {"name": "ping", "response": {"is": "on"}}}]},
                {"role": "model", "parts": [{"text": "Lit.", "thought": True}, {"text": "Yes."}]},
            ],
            "tools": [{"functionDeclarations": [
                {"name": "ping", "parameters": {"type": "OBJECT"}}]}],
        },
        Row(
            (SYSTEM, Q, CALLS, {"role": "tool", "name": "ping", "content": '{"is": "on"}'}),
            ({**A, "reasoning_content": "Lit."},),
            tools=({**TOOL, "function": {"name": "ping", "parameters": {"type": "object"}}},),
        ),
    ),
    # Reasoning in a column of its own, and an answer of several messages.
    ({"prompt": "Is it on?", "completion": "Yes.", "reasoning_content": "Lit."},
     Row((Q,), ({**A, "reasoning_content": "Lit."},))),
    ({"instruction": "Is it on?", "output": "Yes.", "reasoning_content": "Lit."},
     Row((Q,), ({**A, "reasoning_content": "Lit."},))),
    ({"prompt": [Q], "completion": [A], "reasoning_content": "Lit."},
     Row((Q,), ({**A, "reasoning_content": "Lit."},))),
    ({"prompt": [Q], "completion": [{**CALLS, "weight": 0}, RESULT, A]},
     Row((Q, CALLS, RESULT), (A,), untrained=(1,))),
    # Good and bad answers of LLaMA-Factory and ms-swift, and ms-swift's pairs.
    ({"messages": [Q, NO], "label": False}, Row((Q,), (NO,), label=False)),
    ({"instruction": "Is it on?", "output": "Yes.", "kto_tag": True}, Row((Q,), (A,), label=True)),
    ({"messages": [Q, A], "label": "billing"}, Row((Q,), (A,), fields={"label": "billing"})),
    ({"messages": [SYSTEM, Q, A], "rejected_response": "No."}, Row((SYSTEM, Q), (A,), (NO,))),
    ({"messages": [Q, A], "rejected_response": None},
     Row((Q,), (A,), fields={"rejected_response": None})),
    # Rows as `datasets` makes them of a list of structures, and lists written as JSON text.
    ({"messages": {"role": ["user", "assistant"], "content": ["Is it on?", "Yes."],
                   "name": [None, None]}}, ANSWER),
    ({"messages": json.dumps([Q, A]), "tools": "[]"}, ANSWER),
    ({"messages": [json.dumps(Q), json.dumps(A)], "tools": [json.dumps(TOOL)]},
     Row((Q,), (A,), tools=(TOOL,))),
    ({"prompt": json.dumps([Q]), "completion": json.dumps([A])}, ANSWER),
    ({"prompt": json.dumps([SYSTEM, Q])}, Row((SYSTEM, Q))),
    ({"prompt": "Is it on?", "chosen": json.dumps([Q, A]), "rejected": json.dumps([Q, NO])},
     Row((Q,), (A,), (NO,))),
    ({"prompt": "Write messages.", "completion": json.dumps([Q])},
     Row(({"role": "user", "content": "Write messages."},),
         ({"role": "assistant", "content": json.dumps([Q])},))),
    ({"prompt": [Q], "completion": "Yes.", "label": True}, Row((Q,), (A,), label=True)),
    ({"prompt": "Is it on?", "completion": [A]}, ANSWER),
    ({"prompt": [Q], "completion": A}, ANSWER),
    # A CSV file has optional columns as empty cells, and lists as JSON text.
    ({"instruction": "Is it on?", "output": "Yes.", "history": "", "system": ""}, ANSWER),
    ({"instruction": "Is it on?", "output": "Yes.", "history": '[["1", "2"]]'},
     Row(({"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}, Q), (A,))),
    ({"prompt": "", "chosen": [Q, A], "rejected": [Q, NO]}, Row((Q,), (A,), (NO,))),
    ({"messages": [Q, A], "tools": "null"}, ANSWER),
    # Preference pairs.
    ({"prompt": "Is it on?", "chosen": "Yes.", "rejected": "No."}, Row((Q,), (A,), (NO,))),
    ({"prompt": [SYSTEM, Q], "chosen": [A], "rejected": [NO]}, Row((SYSTEM, Q), (A,), (NO,))),
    ({"prompt": "Is it on?", "chosen": [Q, A], "rejected": [Q, NO], "messages": [Q, A],
      "score_chosen": 8.5}, Row((Q,), (A,), (NO,), fields={"score_chosen": 8.5})),
    ({"prompt": "Is it on? \n", "chosen": [Q, A], "rejected": [Q, NO]},
     Row(({"role": "user", "content": "Is it on? \n"},), (A,), (NO,))),
    ({"chosen": [Q, A, Q, A], "rejected": [Q, A, Q, NO]}, Row((Q, A, Q), (A,), (NO,))),
    ({"chosen": "\n\nHuman: Is it on?\n\nAssistant: Yes.",
      "rejected": "\n\nHuman: Is it on?\n\nAssistant: No."}, Row((Q,), (A,), (NO,))),
    # A prompt with marks of turns, and answers with one.
    ({"prompt": "\n\nHuman: Is it on?\n\nAssistant:", "chosen": " Yes.", "rejected": " No."},
     Row((Q,), (A,), (NO,))),
    ({"prompt": "\n\nHuman: Is it on?\n\nAssistant: Yes.\n\nHuman: Is it on?\n\nAssistant:",
      "chosen": " Yes.", "rejected": " No."}, Row((Q, A, Q), (A,), (NO,))),
    ({"prompt": "\n\nHuman: Is it on?", "chosen": "\n\nAssistant: Yes.",
      "rejected": "\n\nAssistant: No."}, Row((Q,), (A,), (NO,))),
    ({"prompt": "Human: Is it on?\n\nAssistant:", "chosen": "Assistant: Yes.",
      "rejected": "No."}, Row((Q,), (A,), (NO,))),
    ({"prompt": "Is it on?", "chosen": " Yes.", "rejected": "Human: No."},
     Row((Q,), ({"role": "assistant", "content": " Yes."},),
         ({"role": "assistant", "content": "Human: No."},))),
    ({"prompt": "Human: Is it on?", "chosen": "Yes.", "rejected": "No."},
     Row(({"role": "user", "content": "Human: Is it on?"},), (A,), (NO,))),
    ({"prompt": "\n\nHuman: Is it on?\n\nAssistant:", "completion": " Yes."}, ANSWER),
    ({"prompt": "\n\nHuman: Is it on?\n\nAssistant:", "completion": " Yes.", "label": True},
     Row((Q,), (A,), label=True)),
    ({"prompt": "\n\nHuman: Is it on?\n\nAssistant:"}, Row((Q,))),
    ({"instruction": "Is it", "input": "on?", "chosen": "Yes.", "rejected": "No."},
     Row(({"role": "user", "content": "Is it\n\non?"},), (A,), (NO,))),
    ({"conversations": [{"from": "human", "value": "Is it on?"}],
      "chosen": {"from": "gpt", "value": "Yes."}, "rejected": {"from": "gpt", "value": "No."}},
     Row((Q,), (A,), (NO,))),
    ({"input": {"messages": [Q], "tools": [TOOL]}, "preferred_output": [A],
      "non_preferred_output": [NO]}, Row((Q,), (A,), (NO,), tools=(TOOL,))),
    ({"prompt": "Is it on?", "response_a": "No.", "response_b": "Yes.", "winner": "B"},
     Row((Q,), (A,), (NO,))),
    ({"conversation_a": [Q, A], "conversation_b": [Q, NO], "winner": "model_a", "turn": 1},
     Row((Q,), (A,), (NO,), fields={"turn": 1})),
    # Unpaired, with a label.
    ({"prompt": "Is it on?", "completion": "Yes.", "label": True}, Row((Q,), (A,), label=True)),
    ({"prompt": [Q], "completion": [NO], "label": "FALSE"}, Row((Q,), (NO,), label=False)),
    # One column.
    ({"prompt": "Is it on?", "answer": "Yes."}, Row((Q,), fields={"answer": "Yes."})),
    ({"prompt": [SYSTEM, Q], "text": "-"}, Row((SYSTEM, Q), fields={"text": "-"})),
    ({"text": "Once upon a time.", "id": None}, Row(text="Once upon a time.", fields={"id": None})),
]  # fmt: skip


@pytest.mark.parametrize(("columns", "row"), READ)
def test_each_shape_is_read(columns: dict[str, Any], row: Row) -> None:
    assert read_shape(columns) == row
    assert Row.from_json(json.loads(json.dumps(row.as_json())), 0) == row


REFUSED = [
    ({"question": "a", "reply": "b"}, "no shape has the columns 'question', 'reply'"),
    ({"ticket": "a", "answer_text": "b"}, "no shape has the columns 'ticket', 'answer_text'"),
    ({"instruction": "a", "output": "b", "inptu": "c"}, "'inptu' (did you mean input?)"),
    ({"instruction": "a", "output": "b", "messages": [Q, A]}, "fit 2 shapes: alpaca, messages"),
    ({"messages": str([Q, A])}, "field 'messages': the list is in Python's notation; expected"),
    ({"prompt": str([Q]), "completion": "a"}, "field 'prompt': the list is in Python's notation"),
    ({"prompt": "a", "response": "b"}, "missing field 'completion'"),
    ({"text": "a", "label": "good"}, "columns 'text' and 'label': plain text has no label"),
    ({"text": "a", "Intent": "good"}, "columns 'text' and 'Intent': plain text has no Intent"),
    ({"messages": None, "id": 1}, "field 'messages': expected a list of messages, found null"),
    ({"messages": [Q, {**A, "mood": "good"}]}, "messages[1]: expected role and content, found "
     "mood"),
    ({"messages": [Q, {**A, "content": None}]}, "messages[1]: expected role and content"),
    ({"messages": [Q, Q, A]}, "messages[1]: user after user"),
    ({"messages": [A, Q, A]}, "messages[0]: assistant at the start"),
    ({"messages": [Q, SYSTEM, Q, A]}, "messages[1]: system after user"),
    ({"messages": [Q, CALLS, A]}, "messages[2]: assistant after assistant"),
    ({"messages": [Q, RESULT, A]}, "messages[1]: tool after user"),
    ({"messages": [Q, CALLS, RESULT]}, "expected an optional system message"),
    ({"messages": [Q, {**A, "weight": 0}]}, "every assistant message has weight 0"),
    ({"messages": [Q, {**A, "weight": 0.5}]}, "messages[1].weight: expected 0 or 1, found 0.5"),
    ({"messages": "[1"}, "field 'messages': column 3: not valid JSON"),
    ({"messages": [Q, {**CALLS, "tool_calls": [{"function": {"arguments": "{}"}}]}]},
     "messages[1].tool_calls[0]: expected a function with name and arguments"),
    ({"messages": [Q, {"role": "assistant", "function_call": {"name": "a", "arguments": "{1"}}]},
     "messages[1].tool_calls[0].arguments: column 2: not valid JSON"),
    ({"messages": [Q, {"role": "assistant", "function_call": {"name": "a", "arguments": "[]"}}]},
     "tool_calls[0].arguments: expected an object, found a list"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}, A]},
     "messages[0].content[0]: expected a part with text, found image_url"),
    ({"messages": [Q, {"role": "assistant", "tool_calls": [{"name": "ping", "n": 1}]}]},
     "tool_calls[0]: expected a function with name and arguments, found n"),
    ({"messages": [{**Q, "tool_calls": [CALL]}, A]},
     "messages[0]: has tool_calls; expected it in an assistant's message"),
    ({"messages": [Q, {**A, "loss": 0}, {"role": "tool_call", "content": "{}"}]},
     "tool_calls[0]: expected a function with name and arguments"),
    ({"messages": [Q, {**A, "loss": 0}, {"role": "tool_call", "content": '{"name": "ping"}'}]},
     "messages[2]: is trained otherwise than the call or text before it"),
    ({"messages": [Q, A], "label": 1}, "field 'label': 1 may say whether the answer is good, or"),
    ({"messages": [Q, A], "rejected_messages": [Q, NO]}, "field 'rejected_messages': is a second"),
    ({"messages": [Q, A], "images": ["a.png"]}, "field 'images': has media, and only text is"),
    ({"messages": [Q, A], "chat_template_kwargs": {"a": 1}}, "rows have no variables of their own"),
    ({"prompt": "a", "responses": ["b", "c"]}, "missing field 'completion'"),
    ({"text": "a", "role": "prompter"}, "columns 'text' and 'role': a row is one message"),
    ({"contents": [{"role": "user", "parts": [{"inlineData": {}}]}]},
     "contents[0].parts[0]: expected text or a function's call, found inlineData"),
    ({"contents": [{"role": "user", "text": "a"}]}, "contents[0]: expected an object with parts"),
    ({"messages": [Q, A], "tools": "ping"}, "field 'tools': expected a list of tools, found text"),
    ({"messages": [Q, A], "tools": [{"type": "function"}]}, "tools[0]: expected a function with a"),
    ({"messages": [Q, A], "tools": [{**FUNCTION, "parameters": "none"}]},
     "tools[0].parameters: expected an object, found text"),
    ({"messages": [SYSTEM, Q, A], "system": "Other."}, "have a system message of their own"),
    ({"instruction": "a", "output": "b", "history": [["a"]]}, "history[0]: expected a question"),
    ({"prompt": "a", "completion": "b", "label": "billing"},
     "field 'label': expected true or false, found 'billing'"),
    ({"prompt": "a", "completion": "b", "label": 2}, "field 'label': expected true or false"),
    ({"prompt": [Q, A]}, "prompt: ends with assistant; expected a user's message"),
    ({"prompt": "a", "chosen": "b", "rejected": "b"}, "'chosen' and 'rejected' are equal"),
    ({"chosen": "b", "rejected": "c"}, "missing field 'prompt': chosen and rejected do not begin"),
    ({"chosen": [Q, A, Q, A], "rejected": [Q, NO, Q, A]},
     "field 'chosen': after the prompt come assistant, user, assistant; expected one answer"),
    ({"prompt": "a", "chosen": "b"}, "missing field 'rejected'"),
    ({"prompt": "a", "completion": None}, "field 'completion': expected text, found null"),
    ({"prompt": "a", "response_a": "b", "response_b": "c", "winner": "tie (bothbad)"},
     "field 'winner': 'tie (bothbad)': no answer is better"),
    ({"prompt": "a", "response_a": "b", "response_b": "c", "winner": 1},
     "field 'winner': 1: expected a, b, model_a, model_b or tie"),
    ({"prompt": "a", "response_a": "b", "response_b": "c"}, "missing field 'winner'"),
    ({"input": "a", "preferred_output": [A], "non_preferred_output": [NO]},
     "field 'input': expected an object with messages"),
]  # fmt: skip


@pytest.mark.parametrize(("columns", "problem"), REFUSED)
def test_each_bad_row_is_refused(columns: dict[str, Any], problem: str) -> None:
    with pytest.raises(RowProblem) as caught:
        read_shape(columns)
    assert problem in str(caught.value)


def test_a_shape_that_is_named_settles_which_columns_count() -> None:
    columns = {"instruction": "Is it on?", "output": "Yes.", "messages": [Q, NO]}
    assert read_shape(columns, "messages").answer == "No."
    assert read_shape(columns, "alpaca").fields == {"messages": [Q, NO]}
    with pytest.raises(RowProblem, match="missing field 'conversations'"):
        read_shape(columns, "sharegpt")


def test_a_named_shape_says_whether_a_label_is_a_verdict() -> None:
    columns = {"messages": [Q, NO], "label": 0}
    assert read_shape(columns, "label") == Row((Q,), (NO,), label=False)
    assert read_shape(columns, "messages") == Row((Q,), (NO,), fields={"label": 0})
    with pytest.raises(RowProblem, match="missing field 'label'"):
        read_shape({"messages": [Q, A]}, "label")


def test_the_configuration_names_every_shape() -> None:
    assert tuple(SHAPES) == get_args(ShapeName)


def test_columns_are_read_under_our_names(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    row = {"question": "Is it on?", "reply": "Yes.", "label": "None", "text": "x"}
    path.write_text(json.dumps(row) + "\n")
    config = SourceConfig(
        path="rows.jsonl",
        columns={"prompt": "question", "completion": "reply", "class": "label", "text": None},
    )
    [read] = read_rows(path, config=config)
    assert (read.prompt, read.answer) == ((Q,), "Yes.")
    assert read.fields == {"class": "None"}


def test_a_mapped_column_that_is_missing_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"question": "a"}\n')
    config = SourceConfig(path="rows.jsonl", columns={"prompt": "query"})
    with pytest.raises(Exception, match=r"missing field 'query', which data\.columns names"):
        read_rows(path, config=config)


def _calling(call_id: Any, *, calls: Any = None) -> dict[str, Any]:
    call = {"id": call_id, "function": {"name": "look", "arguments": {}}}
    asks = {"role": "assistant", "content": "", "tool_calls": [call] if calls is None else calls}
    result = {"role": "tool", "content": "sun", "tool_call_id": call_id}
    return {"messages": [{"role": "user", "content": "W?"}, asks, result,
                         {"role": "assistant", "content": "Sun."}]}  # fmt: skip


def test_a_number_as_the_id_of_a_call_is_text() -> None:
    row = read_shape(_calling(1))
    assert row.prompt[1]["tool_calls"][0]["id"] == row.prompt[2]["tool_call_id"] == "1"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (_calling({"a": 1}), r"messages\[1\].tool_calls\[0\].id: "),
        (_calling(True), r"messages\[1\].tool_calls\[0\].id: "),
        (_calling("a", calls="[]"), r"messages\[1\].content: is empty"),
    ],
)
def test_a_call_without_a_usable_id_or_without_a_call_is_refused(
    row: dict[str, Any], message: str
) -> None:
    with pytest.raises(RowProblem, match=message):
        read_shape(row)
