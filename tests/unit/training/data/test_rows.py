from __future__ import annotations

import json
from pathlib import Path

import pytest

from training.config.data import SourceConfig
from training.data.rows import NUM_PROBLEMS_SHOWN, read_rows
from tuneline.core.errors import DataError

GOOD = {"instruction": "Sort.", "input": "b a", "output": "a b"}


def _file(tmp_path: Path, *lines: object) -> Path:
    path = tmp_path / "rows.jsonl"
    texts = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    path.write_bytes(b"\n".join(texts) + b"\n")
    return path


@pytest.mark.parametrize(
    ("row", "prompt", "answer"),
    [
        (GOOD, [("user", "Sort.\n\nb a")], "a b"),
        ({"instruction": "Hi", "output": "Ho"}, [("user", "Hi")], "Ho"),
        ({"instruction": "Hi", "input": "", "output": "Ho"}, [("user", "Hi")], "Ho"),
        ({"prompt": "Hi", "completion": "Ho"}, [("user", "Hi")], "Ho"),
        (
            {
                "prompt": [{"role": "user", "content": "Hi"}],
                "completion": [{"role": "assistant", "content": "Ho"}],
            },
            [("user", "Hi")],
            "Ho",
        ),
        (
            {
                "messages": [
                    {"role": "system", "content": "Be brief."},
                    {"role": "user", "content": "1"},
                    {"role": "assistant", "content": "2"},
                    {"role": "user", "content": "3"},
                    {"role": "assistant", "content": "4"},
                ]
            },
            [("system", "Be brief."), ("user", "1"), ("assistant", "2"), ("user", "3")],
            "4",
        ),
    ],
)
def test_each_shape_is_read(
    tmp_path: Path, row: object, prompt: list[tuple[str, str]], answer: str
) -> None:
    [read] = read_rows(_file(tmp_path, row))
    assert [(m["role"], m["content"]) for m in read.prompt] == prompt
    assert read.answer == answer


def test_the_system_prompt_goes_before_rows_without_their_own(tmp_path: Path) -> None:
    own = {
        "messages": [
            {"role": "system", "content": "own"},
            {"role": "user", "content": "1"},
            {"role": "assistant", "content": "2"},
        ]
    }
    first, second = read_rows(_file(tmp_path, GOOD, own), system_prompt="given")
    assert first.prompt[0] == {"role": "system", "content": "given"}
    assert second.prompt[0] == {"role": "system", "content": "own"}


def test_a_byte_order_mark_blank_lines_and_windows_line_ends_are_accepted(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    line = json.dumps(GOOD).encode()
    path.write_bytes(b"\xef\xbb\xbf" + line + b"\r\n\r\n" + line + b"\r\n")
    assert [row.line for row in read_rows(path)] == [1, 3]


def test_line_separators_inside_text_do_not_end_a_line(tmp_path: Path) -> None:
    row = {"instruction": "a\u2028b\u0085c", "output": "d"}
    [read] = read_rows(_file(tmp_path, json.dumps(row, ensure_ascii=False).encode()))
    assert read.prompt[0]["content"] == "a\u2028b\u0085c"


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"instruction": "a", }', "line 2: column 22: not valid JSON"),
        (b'{"instruction": "a"', "line 2: column 20: not valid JSON"),
        (b"[" * 100_000, "line 2: not valid JSON"),
        (b'{"instruction": ' + b"9" * 5000 + b"}", "line 2: not valid JSON"),
        (b"[1, 2]", "line 2: expected a JSON object, found a list"),
        (b"null", "line 2: expected a JSON object, found null"),
        (b'"text"', "line 2: expected a JSON object, found text"),
        (b'{"instruction": "caf\xe9", "output": "b"}', "line 2: byte 21: not UTF-8 text"),
        (b'{"output": "a", "output": "b"}', "line 2: field 'output' appears twice"),
        ({"instruction": "a"}, "line 2: missing field 'output'"),
        ({}, "line 2: missing field 'instruction'; missing field 'output'"),
        (
            {"instruction": "a", "ouput": "b"},
            "line 2: unknown field 'ouput' (did you mean output?); missing field 'output'",
        ),
        ({"promt": "a", "completion": "b"}, "unknown field 'promt' (did you mean prompt?)"),
        ({**GOOD, "sytem": "b"}, "unknown field 'sytem' (did you mean system?)"),
        ({"instruction": "a", "output": " \n"}, "line 2: field 'output': is empty"),
        ({"instruction": "", "output": "b"}, "line 2: field 'instruction': is empty"),
        ({"instruction": "a", "output": 5}, "field 'output': expected text, found a number"),
        ({"instruction": "a", "output": None}, "field 'output': expected text, found null"),
        ({"instruction": ["a"], "output": "b"}, "'instruction': expected text, found a list"),
        (b'{"instruction": "a", "output": "\\ud800"}', "half a surrogate pair"),
        ({"messages": "hi"}, "field 'messages': expected a list of messages, found text"),
        ({"messages": []}, "field 'messages': expected a list"),
        ({"messages": [5]}, "messages[0]: expected an object, found a number"),
        ({"messages": [{"role": "user"}]}, "messages[0]: expected role and content"),
        (
            {"messages": [{"role": "narrator", "content": "a"}]},
            "messages[0]: role 'narrator'; expected system, user, assistant or tool",
        ),
        (
            {"messages": [{"role": "user", "content": "a"}]},
            "messages: has no answer; expected the assistant last",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": "a"},
                    {"role": "assistant", "content": ""},
                ]
            },
            "messages[1].content: is empty",
        ),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: object, problem: str) -> None:
    path = _file(tmp_path, GOOD, line)
    with pytest.raises(DataError) as caught:
        read_rows(path)
    assert caught.value.problems[0].startswith(f"{path}: line 2: ")
    assert problem in caught.value.problems[0]
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ({"input": "a", "output": "b"}, "Try: data.columns: {instruction: input}, or --column"),
        (
            {"Prompt": "a", "Completion": "b"},
            "--column prompt=Prompt --column completion=",
        ),
        ({"messages": [{"role": "user", "content": "a"}]}, "--column prompt=messages --column com"),
        (
            {"data": {}, "annotations": []},
            "Export it as JSON-MIN or CSV, or name the places",
        ),
        ({"the question": "a", "chosen": "b", "rejected": "c"}, "--column prompt=NAME"),
        (
            {"question": "a", "context": "b", "response": "c"},
            "--column instruction=question --column output=response --column input=context",
        ),
        ({"problem": "a", "reasoning": "b", "answer": "c"}, "--column reasoning_content=reasoning"),
        ({**GOOD, "images": ["a.png"]}, "data.columns: {images: null}, or --column images="),
        (
            {"messages": [{"role": "user", "content": "a", "mood": "b"}]},
            ".messages |= map(del(.mood))' FILE",
        ),
        (
            {"messages": [{"author": {"role": "user"}, "content": {"parts": ["a"]}}]},
            ".messages |= map({role: .author.role, content: .content.parts[0]})' FILE > NEW.jsonl",
        ),
        (
            {"conversations": [{"from": "Agent", "value": "a"}]},
            '.conversations |= map(if .from == "Agent" then .from = "assistant" else . end)',
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": "a"},
                    {"role": "assistant", "content": "b"},
                    {"role": "user", "content": "c"},
                ]
            },
            "To leave out what follows the last answer: jq -c",
        ),
        (
            {"문의 내용": "a", "답변": "b"},
            """--column 'prompt=문의 내용' --column 'completion=답변'""",
        ),
        ({"mapping": {}, "current_node": "a", "title": "b"}, "ChatGPT's export: a tree of"),
        ({"Q": "a", "A": "b", "label": 2}, "--column prompt=Q --column completion=A."),
        ({"source": "a", "target": "b"}, "--column prompt=source --column completion=target."),
        ({"text": "a", "category": "b"}, "--column prompt=text --column completion=category; or"),
        ({"chosen_messages": [], "rejected_messages": []}, "--column chosen=chosen_messages "),
        (
            {"question": "a", "choice0": "b", "choice1": "c", "label": 1},
            r"""{prompt: ([.question, "0. \(.choice0)", "1. \(.choice1)"] | join("\n")), """
            "completion: (.label | tostring)}' FILE > NEW.jsonl",
        ),
        (
            {"question": "a", "choices": {"text": ["b"], "label": ["A"]}, "answerKey": "A"},
            r"""transpose[] | "\(.[0]). \(.[1])")] | join("\n")), completion: (.answerKey | """,
        ),
        ({"title": "a", "paragraphs": []}, "SQuAD's articles. Write a row for each question: jq"),
        ({"train": [["a", "b"]], "test": []}, "jq -c '.train[] | {prompt: .[0], completion: .[1]}"),
        ({"pn1": "a", "0": "b", "Good.": "c"}, "The first line is taken for the names of the"),
        ({"instruction": "a", "output": 5}, 'Write numbers as text, such as "42"'),
        (b'{"instruction": "a", }', "Mend these rows, or drop and count them: data.bad_rows: drop"),
    ],
)
def test_a_refusal_of_rows_says_what_to_do(tmp_path: Path, line: object, hint: str) -> None:
    with pytest.raises(DataError) as caught:
        read_rows(_file(tmp_path, GOOD, line))
    assert hint in (caught.value.hint or "")
    with pytest.raises(DataError) as caught:  # no row is left to train on
        read_rows(_file(tmp_path, line))
    assert "bad_rows" not in (caught.value.hint or "")


@pytest.mark.parametrize(
    "message",
    [{"role": "x'; rm y; '", "content": "a"}, {"role": "user", "content": "a", "x'; rm y; '": 1}],
)
def test_a_command_to_type_has_no_text_of_the_file_that_a_shell_reads(
    tmp_path: Path, message: dict[str, str]
) -> None:
    with pytest.raises(DataError) as caught:
        read_rows(_file(tmp_path, GOOD, {"messages": [message]}))
    assert "rm y" not in (caught.value.hint or "")


def test_a_column_that_data_columns_names_wrongly_is_changed_there(tmp_path: Path) -> None:
    config = SourceConfig(path="rows.jsonl", columns={"instruction": "question"})
    with pytest.raises(DataError, match=r"missing field 'question', which data.columns names") as e:
        read_rows(_file(tmp_path, {"frage": "a", "output": "b"}), config=config)
    assert e.value.hint == (
        "Change the value 'question' in data.columns, or in --column, to the name of a column of "
        "the file."
    )


def test_all_problems_are_shown_then_counted(tmp_path: Path) -> None:
    bad = [{f"column{chr(97 + number)}": "a"} for number in range(NUM_PROBLEMS_SHOWN + 5)]
    path = _file(tmp_path, GOOD, *bad)
    with pytest.raises(DataError) as caught:
        read_rows(path)
    problems = caught.value.problems
    assert len(problems) == NUM_PROBLEMS_SHOWN + 1
    assert [f"line {n}:" in p for n, p in enumerate(problems[:-1], start=2)] == [True] * 20
    assert problems[-1] == "… and 5 more lines with problems"


@pytest.mark.parametrize(
    ("row", "num_shown", "hint"),
    [
        ({"question": "a", "reply": "b"}, 1, "--column prompt=question --column completion=NAME"),
        ({"prompt": "a", "completion": 5}, 3, "Write numbers as text"),
    ],
    ids=["columns", "values"],
)
def test_one_problem_of_every_line_is_shown_a_few_times(
    tmp_path: Path, row: dict[str, object], num_shown: int, hint: str
) -> None:
    with pytest.raises(DataError) as caught:
        read_rows(_file(tmp_path, *[row] * 300))
    *shown, more = caught.value.problems
    assert ["line 1:" in shown[0], len(shown)] == [True, num_shown]
    assert more == f"… and {300 - num_shown} more lines with problems"
    assert hint in (caught.value.hint or "")


def test_a_column_may_be_a_place_inside_another(tmp_path: Path) -> None:
    row = {
        "data": {"text": "a"},
        "annotations": [{"result": [{"value": {"choices": ["b"]}}]}],
        "response.responses": ["c"],
    }
    columns: dict[str, str | None] = {
        "prompt": "data.text",
        "completion": "annotations.0.result.0.value.choices.0",
        "other": "response.responses.0",
        "response.responses": None,
    }
    path = _file(tmp_path, row)
    [read] = read_rows(path, config=SourceConfig(path="rows.jsonl", columns=columns))
    assert (read.prompt[0]["content"], read.answer, read.fields["other"]) == ("a", "b", "c")
    with pytest.raises(DataError, match=r"missing field 'data\.title', which data.columns names"):
        read_rows(path, config=SourceConfig(path="", columns={"prompt": "data.title"}))


@pytest.mark.parametrize(
    ("name", "message"),
    [("none.jsonl", "no such file"), ("empty.jsonl", "is empty"), (".", "is a directory")],
)
def test_a_path_without_rows_is_refused(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n \n")
    with pytest.raises(DataError, match=message):
        read_rows(tmp_path / name)


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_one_json_array_is_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text(json.dumps([GOOD, GOOD], indent=1))
    assert [row.answer for row in read_rows(path)] == ["a b", "a b"]
