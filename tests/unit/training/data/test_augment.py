"""New rows of a dataset: by a function, by a server of this process, and after an interruption."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tests.commands import tuneline_here
from tests.unit.training.data.checks.made import clean_rows
from training.config import DataConfig
from training.data.augment import augment_data, endpoint_writer, function_writer
from training.data.prepare import dataset_rows, prepare_dataset
from training.data.row import Row
from training.data.rows import read_rows
from tuneline.core.artifact import Artifact
from tuneline.core.dataset import HELDOUT_FILE, TRAIN_FILE
from tuneline.core.endpoint import Endpoint
from tuneline.core.errors import ArtifactError, ConfigError, DataError, DiskFullError, ServerError

FUNCTION = """
def shorter(row):
    text = row["prompt"][-1]["content"]
    return [{"instruction": "In short: " + text[:40], "output": row["completion"][0]["content"]}]

def broken(row):
    return [{"words": 1}]

def fails(row):
    raise KeyError("no")
"""


@pytest.fixture
def dataset(tmp_path: Path) -> Artifact:
    lines = [json.dumps(row.as_json()) + "\n" for row in clean_rows(30)]
    (tmp_path / "rows.jsonl").write_text("".join(lines))
    (tmp_path / "more.py").write_text(FUNCTION)
    return prepare_dataset(DataConfig(path="rows.jsonl"), relative_to=tmp_path, out=tmp_path / "ds")


def read(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_new_row_names_its_origin(dataset: Artifact, tmp_path: Path) -> None:
    write = function_writer(f"{tmp_path}/more.py:shorter")
    counts = augment_data(dataset, write, tmp_path / "new.jsonl", origin="shorter", max_rows=5)
    assert (counts.num_originals, counts.num_made, counts.num_written) == (5, 5, 5)
    originals = dataset_rows(dataset, TRAIN_FILE, 5)
    new = read(tmp_path / "new.jsonl")
    assert [row["origin"] for row in new] == [f"shorter line {n}" for n in range(1, 6)]
    assert [row["completion"] for row in new] == [list(row.completion) for row in originals]


def test_a_new_row_that_rewrites_a_held_out_prompt_is_dropped(
    dataset: Artifact, tmp_path: Path
) -> None:
    held = dataset_rows(dataset, HELDOUT_FILE)

    def write(row: Row) -> list[Row]:
        return [held[row.line - 1], row, clean_rows(60)[-row.line]]

    counts = augment_data(dataset, write, tmp_path / "new.jsonl", origin="o", max_rows=2)
    assert counts.num_made == 6
    assert counts.dropped == {"exact duplicate": 2, "prompt is held out": 2}
    assert counts.num_written == 2


def test_rows_are_read_one_at_a_time(dataset: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    read = Row.from_json

    def from_json(value: dict[str, Any], line: int, file: str) -> Row:
        made.append(line)
        return read(value, line, file)

    monkeypatch.setattr(Row, "from_json", from_json)
    assert len(dataset_rows(dataset, TRAIN_FILE, 2)) == 2
    assert made == [1, 2]
    drawn = dataset_rows(dataset, TRAIN_FILE, 3, drawn=True)
    assert [row.line for row in drawn] == made[2:] == sorted(set(made[2:]))


def test_an_interrupted_call_continues_with_the_same_result(
    dataset: Artifact, tmp_path: Path
) -> None:
    write = function_writer(f"{tmp_path}/more.py:shorter")
    asked: list[int] = []

    def stops(row: Row) -> list[Row]:
        asked.append(row.line)
        if row.line == 4 and asked.count(4) == 1:
            raise KeyboardInterrupt
        return write(row)

    for name in ("a.jsonl", "b.jsonl"):
        if name == "a.jsonl":
            with pytest.raises(KeyboardInterrupt):
                augment_data(dataset, stops, tmp_path / name, origin="o")
            assert not (tmp_path / name).exists()
            with (tmp_path / f".{name}.partial").open("a") as partial:
                partial.write('[{"prompt": "half')
            with pytest.raises(ConfigError, match="belongs to another dataset or writer"):
                augment_data(dataset, stops, tmp_path / name, origin="other")
        augment_data(dataset, stops, tmp_path / name, origin="o")
    assert asked[:6] == [1, 2, 3, 4, 4, 5]
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("name", "said"),
    [("broken", "row 1: "), ("fails", "row 1: KeyError: 'no'")],
)
def test_rows_that_cannot_be_used_name_function_and_row(
    dataset: Artifact, tmp_path: Path, name: str, said: str
) -> None:
    write = function_writer(f"{tmp_path}/more.py:{name}")
    with pytest.raises(DataError) as caught:
        augment_data(dataset, write, tmp_path / "new.jsonl", origin="o")
    assert f"more.py:{name}: {said}" in str(caught.value)
    assert not (tmp_path / "new.jsonl").exists()


@pytest.mark.parametrize("name", ["absent.py:f", "more.py:absent"])
def test_a_function_that_is_not_there_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "more.py").write_text(FUNCTION)
    with pytest.raises(ConfigError, match=name):
        function_writer(f"{tmp_path}/{name}")


@pytest.mark.parametrize("bad", ["output", "text"])
def test_new_rows_keep_columns_and_untrained_turns(tmp_path: Path, bad: str) -> None:
    asked = [{"role": "user", "content": "Which lamp of the router is red?"},
             {"role": "assistant", "content": "The left one.", "weight": 0}]  # fmt: skip
    rows = [
        {"messages": [*asked, {"role": "user", "content": f"And on the back of number {n} on?"},
                      {"role": "assistant", "content": f"None on number {n}."}],
         "instruction": "x", bad: "y", "id": n}
        for n in range(6)
    ]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = DataConfig(path="rows.jsonl", shape="messages")
    dataset = prepare_dataset(config, relative_to=tmp_path, out=tmp_path / "ds")

    def write(row: Row) -> list[Row]:
        prompt = (*row.prompt[:-1], {"role": "user", "content": f"Say it again: {row.line * 7}!"})
        return [replace(row, prompt=prompt, fields={"hard": True})]

    augment_data(dataset, write, tmp_path / "new.jsonl", origin="o", max_rows=1)
    (new,) = read_rows(tmp_path / "new.jsonl")
    (original,) = dataset_rows(dataset, TRAIN_FILE, 1)
    assert new.untrained == original.untrained == (1,)
    assert new.answer == original.answer
    kept = {"id": original.fields["id"], "hard": True, "origin": "o line 1"}
    assert kept.items() <= new.fields.items()


class Handler(BaseHTTPRequestHandler):
    num_refused: ClassVar[int] = 0
    """Requests in a row that were answered by 429."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        asked = body["messages"][-1]["content"]
        asked = asked.removeprefix("say: ") if body["model"] == "echo" else asked
        content = f"<think>\nIn other words.\n</think>\n\nSay: {asked[:30]}"
        reason = "length" if "sundial" in asked else "stop"
        choice = {"index": 0, "finish_reason": reason,
                  "message": {"role": "assistant", "content": content}}  # fmt: skip
        answer: dict[str, object] = {"id": "1", "object": "chat.completion", "created": 0,
                                     "model": "m", "choices": [choice]}  # fmt: skip
        is_refused = "telegraph" in asked and Handler.num_refused < 4
        Handler.num_refused += is_refused
        if body["model"] == "broken":
            answer = {"error": {"message": "no such thing"}}
        data = json.dumps(answer).encode()
        self.send_response(429 if is_refused else 200)
        self.send_header("retry-after-ms", "1")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_the_command_asks_an_endpoint(dataset: Artifact, tmp_path: Path, url: str) -> None:
    out = tmp_path / "new.jsonl"
    done = tuneline_here(
        "data", "augment", str(dataset.path), "--url", url, "--model", "m", "--rows", "3",
        "--out", str(out), "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["num_written"] == 3
    assert f"{url}: 3 requests to m with " in done.stderr
    assert [row["origin"] for row in read(out)] == [f"m copies 1 line {n}" for n in (1, 2, 3)]
    assert "Say: " in str(read(out)[0]["prompt"])


def conversations(tmp_path: Path) -> Artifact:
    """Return a dataset of rows whose last message before the answer is a tool's."""
    call = {"type": "function", "function": {"name": "look", "arguments": {"n": 1}}}
    rows = [
        {"messages": [{"role": "user", "content": f"Is {thing} number {n} on?"},
                      {"role": "assistant", "tool_calls": [call]},
                      {"role": "tool", "content": f"{thing} {n} is on"},
                      {"role": "assistant", "content": f"The {thing} {n} is on."}]}
        for n, thing in enumerate(("telegraph", "sundial", "router", "lamp", "phone", "camera"))
    ]  # fmt: skip
    (tmp_path / "talks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return prepare_dataset(DataConfig(path="talks.jsonl"), relative_to=tmp_path,
                           out=tmp_path / "talks")  # fmt: skip


def test_an_endpoint_rewrites_the_question_and_is_asked_again_after_429(
    tmp_path: Path, url: str
) -> None:
    Handler.num_refused = 0
    dataset = conversations(tmp_path)
    out = tmp_path / "new.jsonl"
    endpoint = Endpoint(url, "m")
    with endpoint_writer(endpoint) as write:
        counts = augment_data(dataset, write, out, origin="m", endpoint=endpoint, copies=1)
    asked = [row.prompt[0]["content"] for row in dataset_rows(dataset, TRAIN_FILE)]
    whole = [text for text in asked if "sundial" not in text]
    assert Handler.num_refused == 4 * ("telegraph" in str(asked))
    assert counts.num_made == len(whole) < len(asked) + 1
    assert counts.num_unmade == len(asked) - len(whole)
    new = read_rows(out)
    assert [row.prompt[0]["content"] for row in new] == [f"Say: {text[:30]}" for text in whole]
    assert all(row.prompt[2]["content"].endswith("is on") for row in new)


def test_an_endpoint_that_answers_something_else_is_named(
    dataset: Artifact, tmp_path: Path, url: str
) -> None:
    endpoint = Endpoint(url, "broken")
    with (
        pytest.raises(ServerError, match="no such thing"),
        endpoint_writer(endpoint) as write,
    ):
        augment_data(dataset, write, tmp_path / "new.jsonl", origin="m", endpoint=endpoint)


def test_rows_are_rewritten_at_once_and_written_in_order(dataset: Artifact, tmp_path: Path) -> None:
    met = threading.Barrier(2, timeout=20)
    more = clean_rows(60)

    def write(row: Row) -> list[Row]:
        met.wait()  # ends only if two rows are rewritten at the same time
        return [more[-row.line]]

    counts = augment_data(dataset, write, tmp_path / "new.jsonl", origin="o", max_rows=12,
                          endpoint=Endpoint("http://127.0.0.1:1/v1", "m"), copies=2)  # fmt: skip
    assert (counts.num_made, counts.num_unmade) == (12, 12)
    assert [row["origin"] for row in read(tmp_path / "new.jsonl")] == [
        f"o line {n}" for n in range(1, 13)
    ]


def test_a_rewrite_that_changes_case_and_spacing_only_makes_no_row(
    dataset: Artifact, url: str
) -> None:
    (row,) = dataset_rows(dataset, TRAIN_FILE, 1)
    echoed = replace(
        row, prompt=({"role": "user", "content": "say: say:  SAY: say: say: say: say"},)
    )
    with endpoint_writer(Endpoint(url, "echo"), copies=3) as write:
        assert write(echoed) == []
        assert [new.prompt[0]["content"] for new in write(row)] == [
            f"Say: {row.prompt[0]['content'][:30]}"
        ]


def test_the_command_needs_one_writer(dataset: Artifact, tmp_path: Path) -> None:
    done = tuneline_here("data", "augment", str(dataset.path), "--out", str(tmp_path / "n.jsonl"))
    assert done.returncode == 2
    assert "give --with or --url, one of the two" in done.stderr


def test_a_place_that_takes_no_file_is_named(dataset: Artifact, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for out in (tmp_path / "none" / "a.jsonl", tmp_path / "file" / "a.jsonl"):
        with pytest.raises(ArtifactError, match=f"{out}: cannot be written: "):
            augment_data(dataset, shorter, out, origin="o", max_rows=1)


def test_a_full_disk_is_named_and_keeps_the_rows_so_far(dataset: Artifact, tmp_path: Path) -> None:
    out, draft = tmp_path / "a.jsonl", tmp_path / ".a.jsonl.rows"
    draft.symlink_to("/dev/full")
    with pytest.raises(DiskFullError, match=f"{out}: the disk is full") as caught:
        augment_data(dataset, shorter, out, origin="o", max_rows=2)
    assert "the rows so far are kept" in str(caught.value)
    assert not out.exists()
    draft.unlink()
    assert augment_data(dataset, no_write, out, origin="o", max_rows=2).num_originals == 2
    assert out.is_file()


def no_write(row: Row) -> list[Row]:
    raise AssertionError(f"line {row.line} was done before")


def shorter(row: Row) -> list[Row]:
    """Return a row with another prompt and answer."""
    said = {"role": "assistant", "content": f"answer of line {row.line}, in other words"}
    return [replace(row, completion=(said,))]
