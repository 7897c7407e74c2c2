from __future__ import annotations

import csv
import gzip
import io
import json
import subprocess
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from training.config.data import SourceConfig
from training.data.formats import FORMATS
from training.data.formats.json_array import CHUNK_BYTES
from training.data.problem import RowProblem
from training.data.rows import read_rows
from tuneline.core.errors import DataError

# Values that readers with type guessing lose or change.
KEPT = ["None", "NA", "n/a", "null", "nan", "00123", "12345678901234567890", "2024-01-31", "1e5",
        "TRUE", " a ", "1.50", "é\u2028b", 'say "x", y', "two\nlines"]  # fmt: skip
ROWS = [{"instruction": f"Say {n}.", "output": text} for n, text in enumerate(KEPT)]


def as_csv(rows: list[dict[str, str]], delimiter: str = ",") -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def as_parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    return sink.getvalue()


def as_json_lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


FILES = {
    "rows.jsonl": as_json_lines(ROWS),
    "rows.json": json.dumps(ROWS).encode(),
    "indented.json": b"\xef\xbb\xbf" + json.dumps(ROWS, indent=2).encode(),
    "wrapped.json": json.dumps({"data": ROWS}).encode(),
    "lines.json": as_json_lines(ROWS),
    "rows.csv": as_csv(ROWS),
    "marked.csv": b"\xef\xbb\xbf" + as_csv(ROWS),
    "rows.tsv": as_csv(ROWS, "\t"),
    "rows.parquet": as_parquet(ROWS),
    "rows.jsonl.gz": gzip.compress(as_json_lines(ROWS)),
    "rows.csv.zst": pyarrow.compress(as_csv(ROWS), "zstd", asbytes=True),
    "rows.ndjson": as_json_lines(ROWS),
}


@pytest.mark.parametrize("name", FILES)
def test_every_format_keeps_the_text_of_every_row(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(FILES[name])
    read = read_rows(path)
    assert [row.answer for row in read] == KEPT
    assert [row.prompt[0]["content"] for row in read] == [row["instruction"] for row in ROWS]


def test_a_long_whole_number_keeps_every_digit(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "completion": "b", "id": 12345678901234567890123}\n')
    assert read_rows(path)[0].fields == {"id": 12345678901234567890123}


def test_the_line_of_a_csv_row_is_where_it_begins(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b'prompt,completion\r\n"a\nb",c\r\n\r\nd,e\r\n')
    assert [row.line for row in read_rows(path)] == [2, 5]


def test_keys_that_parquet_fills_with_null_are_absent(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    call = {"type": "function", "function": {"name": "f", "arguments": json.dumps({"a": None})}}
    rows: list[dict[str, Any]] = [
        {"messages": [{"role": "user", "content": "a"},
                      {"role": "assistant", "tool_calls": [call]}]},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
    ]  # fmt: skip
    path.write_bytes(as_parquet(rows))
    first, second = read_rows(path)
    assert second.prompt == ({"role": "user", "content": "a"},)
    assert second.completion == ({"role": "assistant", "content": "b"},)
    # Arguments are JSON text, which keeps its null.
    assert first.completion[0]["tool_calls"][0]["function"]["arguments"] == {"a": None}


UNREADABLE = {
    "image": pyarrow.array([{"bytes": b"\x89PNG", "path": None}] * 2),
    "score": pyarrow.array([1.0, float("nan")]),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_column_that_is_no_json_can_be_left_out(tmp_path: Path, name: str) -> None:
    path = tmp_path / "rows.parquet"
    columns = {"prompt": ["a", "b"], "completion": ["c", "d"], name: UNREADABLE[name]}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    with pytest.raises(DataError, match=f"row 2: field '{name}") as caught:
        read_rows(path)
    assert f"--column {name}=" in str(caught.value.hint)
    config = SourceConfig(path="rows.parquet", columns={name: None})
    assert [row.answer for row in read_rows(path, config=config)] == ["c", "d"]


def test_an_array_longer_than_the_buffer_is_read(tmp_path: Path) -> None:
    long = "é\\" * CHUNK_BYTES
    rows = [{"prompt": "a", "completion": long}, *[{"prompt": "b", "completion": "c"}] * 3]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows, ensure_ascii=False, indent=1))
    assert [row.answer for row in read_rows(path)] == [long, "c", "c", "c"]


@pytest.mark.parametrize(
    ("name", "data", "problem"),
    [
        ("a.json", b'[{"prompt": "a", "completion": "b"}', "row 2: line 1: the file ends inside"),
        ("a.json", b'[{"prompt": "a"\n, 5}]', "row 1: line 2: not valid JSON"),
        ("a.json", b'[{"prompt": "a", "completion": "b"}\n{}]', "line 2: not valid JSON: expected"),
        ("a.json", b"[1]", "row 1: expected a JSON object, found a number"),
        ("a.json", b"[{}] x", "line 1: text after the end of the array"),
        ("a.json", b'[{"prompt": "a", "prompt": "b"}]', "row 1: field 'prompt' appears twice"),
        ("a.json", b'[{"prompt": "\xe9"}]', "not UTF-8 text"),
        ("a.json", b'{"data": 5}', "field 'data': expected a list of rows, found a number"),
        ("a.json", b"[]", "a.json: is empty"),
        ("a.json", b"", "a.json: is empty"),
        ("a.jsonl", b'{"prompt": "a", "completion": NaN}', "line 1: NaN is not a JSON value"),
        ("a.jsonl", b'{"prompt": "a", "n": 1e999}', "1e999 is larger than a float can be"),
        ("a.csv", b"prompt,completion\na,b,c\n", "line 2: has 3 cells; the header has 2"),
        ("a.csv", b"prompt;completion\na;b;c\n", "line 2: has 3 cells; the header has 2"),
        ("a.tsv", b'prompt\tcompletion\n"a\tb\nc"\td\n', "line 2: a quoted cell ends on line 3"),
        ("a.json", b'{"prompt": ["a"], "completion": ["b"]}', "row 1: the file is one object with"),
        ("a.tsv", b"prompt,completion\na,b\n", "expected columns separated by tabs"),
        (
            "a.jsonl",
            b'{"prompt": "a", "x": ' + b"[" * 300 + b"]" * 300 + b"}",
            "line 1: values lie in one another more than 100 levels deep",
        ),
        ("a.csv", b"prompt,prompt\na,b\n", "column 'prompt' appears twice in the header"),
        ("a.csv", b'prompt,completion\na,"b', "line 2: not valid csv: unexpected end of data"),
        ("a.csv", b"prompt,completion\na,\xe9\n", "line 2: byte 3: not UTF-8 text"),
        ("a.csv", b"prompt,completion\na,\n", "line 2: field 'completion': is empty"),
        ("a.csv", b"prompt,completion\n", "a.csv: is empty"),
        ("a.parquet", b"PAR1 nothing PAR1", "row 1 or after: not valid Parquet"),
        ("a.parquet", b"", "not valid Parquet"),
        ("a.jsonl.gz", b"plain", "a.jsonl.gz: cannot be read: Not a gzipped file"),
        ("a.jsonl.gz", gzip.compress(b"{}" * 99, mtime=0)[:-9], "a.jsonl.gz: is damaged"),
        ("a.jsonl.zst", b"plain", "a.jsonl.zst: cannot be read"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, data: bytes, problem: str) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(DataError) as caught:
        read_rows(path)
    assert str(path) in caught.value.message
    assert problem in caught.value.message


KOREAN = "비밀번호를 잊어버렸어요,재설정해 주세요\n"
PAIRS = {f"Question {n}?": f"Answer {n}" for n in range(40)}
JAPANESE = "パスワードを忘れました,再設定してください\n"


@pytest.mark.parametrize(
    ("name", "data", "hint"),
    [
        ("a.jsonl", "{}".encode("utf-16"), "iconv -f UTF-16"),
        # Excel in Korean and in Japanese saves CSV so.
        ("a.csv", f"prompt,completion\n{KOREAN}".encode("cp949"), "iconv -f CP949 -t UTF-8"),
        ("a.csv", f"prompt,completion\n{JAPANESE}".encode("cp932"), "iconv -f CP932 -t UTF-8"),
        ("a.jsonl", as_parquet(ROWS), "the suffix .parquet"),
        ("a.jsonl", gzip.compress(b"{}", mtime=0), "the suffix .gz"),
        ("a.xlsx", b"PK\x03\x04 of a workbook", "an Excel workbook"),
        ("a.pdf", b"%PDF-1.7 of a manual", "The file is a PDF; expected rows"),
        ("a.csv", "prompt,completion\nStraße,Grüße\n".encode("cp1252"), "iconv -f CP1252 "),
        ("a.csv", "prompt,completion\nRównież,a\n".encode("cp1250"), "iconv -f CP1250 "),
        ("a.csv", b"prompt,completion\ra,b\r", "tr '\\r' '\\n' < "),
        ("a.tsv", b"prompt,completion\na,b\n", "the suffix .csv"),
        ("a.csv", b"text,label\nfine,good\n", "--column prompt=text --column completion=label"),
        ("a.jsonl", b"prompt,completion\na,b\n", "the suffix .csv or .tsv"),
        ("a b.txt", b"Once upon\na time.\n", "jq -Rc 'select(length > 0) | {text: .}' '"),
        ("a.json", b'[["a", "b"]]', "'.[] | {prompt: .[0], completion: .[1]}'"),
        ("a.json", json.dumps(PAIRS).encode(), "'to_entries[] | {prompt: .key, completion: ."),
    ],
)
def test_a_file_of_another_format_gets_a_hint(
    tmp_path: Path, name: str, data: bytes, hint: str
) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(DataError) as caught:
        read_rows(path)
    assert hint in (caught.value.hint or "")
    assert len(caught.value.message) < 1600


HELD_OTHERWISE: dict[str, Any] = {
    "columns": {"prompt": ["a", "b"], "completion": ["c", "d"]},
    "pandas": {"prompt": {"0": "a", "1": "b"}, "completion": {"0": "c", "1": "d"}},
    "split": {
        "columns": ["prompt", "completion"],
        "index": [0, 1],
        "data": [["a", "c"], ["b", "d"]],
    },
    "ids": {"x": {"prompt": "a", "completion": "c"}, "y": {"prompt": "b", "completion": "d"}},
    "facts": {"version": 1, "data": [{"prompt": p, "completion": c} for p, c in ("ac", "bd")]},
}


@pytest.mark.parametrize("name", HELD_OTHERWISE)
def test_the_hint_for_an_object_of_rows_makes_rows(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(HELD_OTHERWISE[name]))
    with pytest.raises(DataError, match="the file is one object with the keys") as caught:
        read_rows(path)
    command = str(caught.value.hint).removeprefix("Try: ")
    subprocess.run(command, shell=True, cwd=tmp_path, check=True)  # noqa: S602
    assert [row.answer for row in read_rows(tmp_path / "rows.json")] == ["c", "d"]


@pytest.mark.parametrize(
    "data",
    [
        b'\xef\xbb\xbfprompt;completion\r\n"a;1";b\r\n',
        b"sep=;\r\nprompt;completion\r\na;1;b\r\n".replace(b"a;1", b'"a;1"'),
        b"prompt\tcompletion\na;1\tb\n",
        b"prompt|completion\na;1|b\n",
    ],
    ids=["semicolons", "sep", "tabs", "bars"],
)
def test_a_csv_file_without_commas_is_read(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(data)
    [row] = read_rows(path)
    assert (row.prompt[0]["content"], row.answer) == ("a;1", "b")
    assert row.line == (3 if data.startswith(b"sep") else 2)


def test_parquet_types_of_other_writers_are_read(tmp_path: Path) -> None:
    text = pyarrow.map_(pyarrow.string(), pyarrow.string())
    turns = [[("role", "user"), ("content", "a")], [("role", "assistant"), ("content", "b")]]
    columns = {
        "messages": pyarrow.array([turns], pyarrow.list_(text)),
        "system": pyarrow.array(["é".encode()], pyarrow.binary()),
        "kind": pyarrow.array(["x"], pyarrow.string()).dictionary_encode(),
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    [row] = read_rows(tmp_path / "a.parquet")
    assert [message["content"] for message in row.messages] == ["é", "a", "b"]
    assert row.fields == {"kind": "x"}


def test_a_broken_row_among_good_ones_is_no_other_encoding(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(f"prompt,completion\n{KOREAN}{JAPANESE}".encode() + KOREAN.encode("cp949"))
    with pytest.raises(DataError) as caught:
        read_rows(path)
    assert "line 4: byte 1: not UTF-8 text" in caught.value.message
    assert "iconv" not in (caught.value.hint or "")


FUZZ = settings(
    max_examples=60,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
FRAGMENTS = st.sampled_from(
    [b"{", b"}", b"[", b"]", b'"', b",", b":", b"\n", b"\r", b"\t", b"\\", b"\x00", b"\xff",
     b"null", b"1e999", b"prompt", b'{"prompt": "a", "completion": "b"}', b"\\ud800", b"PAR1",
     b"\xef\xbb\xbf"]
)  # fmt: skip


@pytest.mark.parametrize("suffix", [*FORMATS, ".jsonl.gz", ".csv.zst"])
@FUZZ
@given(data=st.one_of(st.binary(max_size=200), st.lists(FRAGMENTS, max_size=30).map(b"".join)))
def test_no_bytes_end_in_a_traceback(tmp_path: Path, suffix: str, data: bytes) -> None:
    path = tmp_path / f"rows{suffix}"
    path.write_bytes(data)
    try:
        assert read_rows(path)
    except DataError as error:
        assert error.problems


@pytest.mark.parametrize("name", [name for name in FILES if name != "rows.jsonl"])
@FUZZ
@given(at=st.integers(0, 10_000), value=st.binary(max_size=3))
def test_a_file_with_a_changed_place_is_read_or_refused(
    tmp_path: Path, name: str, at: int, value: bytes
) -> None:
    data = FILES[name]
    at %= len(data)
    path = tmp_path / name
    path.write_bytes(data[:at] + value + data[at + len(value) + 1 :])
    try:
        assert read_rows(path)
    except DataError as error:
        assert error.problems


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(
    lambda text: text.strip() and "\r" not in text and "\x00" not in text
)


@FUZZ
@given(texts=st.lists(TEXT, min_size=1, max_size=5))
def test_every_text_survives_csv_json_and_parquet(tmp_path: Path, texts: list[str]) -> None:
    rows = [{"prompt": text, "completion": text} for text in texts]
    written = {
        "a.csv": as_csv(rows), "a.tsv": as_csv(rows, "\t"), "a.parquet": as_parquet(rows),
        "a.jsonl": as_json_lines(rows), "a.json": json.dumps(rows, ensure_ascii=False).encode(),
    }  # fmt: skip
    if any("\t" in text and "\n" in text for text in texts):
        del written["a.tsv"]  # such a cell may be refused: its quotation mark may be text
    for name, data in written.items():
        path = tmp_path / name
        path.write_bytes(data)
        assert [row.answer for row in read_rows(path)] == texts, name


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["role", "content", "from", "value", "tool_calls", "function", "name",
                         "arguments", "weight", "text", "messages", "parts", "functionCall", "type",
                         "input", "parameters", "loss"]),
        inner, max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip
COLUMNS = ["instruction", "input", "output", "prompt", "completion", "messages", "conversations",
           "chosen", "rejected", "label", "tools", "system", "history", "text",
           "preferred_output", "non_preferred_output", "rejected_response", "contents", "kto_tag",
           "images", "reasoning_content"]  # fmt: skip


@settings(FUZZ, max_examples=300)
@given(row=st.dictionaries(st.sampled_from(COLUMNS), JSON, max_size=5))
def test_no_row_ends_in_a_traceback(row: dict[str, Any]) -> None:
    from training.data.shapes import read_shape

    try:
        read = read_shape(row)
    except RowProblem as problem:
        assert str(problem)
    else:
        assert read.kind


def test_a_number_in_parquet_is_not_taken_for_a_wrong_suffix(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(as_parquet([{"prompt": "a", "completion": 7}]))
    with pytest.raises(DataError, match="row 1: field 'completion': expected text, found a") as one:
        read_rows(path)
    assert "suffix" not in str(one.value.hint) and "class labels" in str(one.value.hint)
