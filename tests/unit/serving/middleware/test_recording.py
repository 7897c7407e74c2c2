"""Which requests are recorded, what a line holds, and what a folder may grow to."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from serving.middleware import recording as module
from serving.middleware.app import TunelineMiddleware
from serving.middleware.asgi import Receive, Scope, Send
from serving.middleware.recording import MAX_RECORD_BYTES, Recorder
from serving.middleware.settings import RECORDING_VARIABLE, RecordingSettings
from tests.unit.serving.middleware.harness import CHAT, Answer, Inner, send_request

DAY_S = 86_400
ASKED = {"model": "tuned", "messages": [{"role": "user", "content": "안녕"}]}

Ask = Callable[..., list[dict[str, Any]]]


def settings(folder: Path, **values: Any) -> RecordingSettings:
    given = {"share": 1.0, "max_bytes": 2**30, "keep_s": 30 * DAY_S, **values}
    return RecordingSettings(folder=str(folder), **given)


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for path in sorted(folder.glob("recorded-*.jsonl"))
        for line in path.read_text(encoding="utf-8").split("\n")[:-1]
    ]


def counted(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


@pytest.fixture
def recorders() -> list[Recorder]:
    """The recorders of the middlewares of a test, in their order."""
    return []


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorders: list[Recorder]) -> Ask:
    """Send requests through a middleware that records, and return the lines."""

    def asked(
        *requests: dict[str, Any] | bytes, inner: Any = None, path: str = CHAT,
        answers: list[Answer] | None = None, **values: Any,
    ) -> list[dict[str, Any]]:  # fmt: skip
        folder = tmp_path / "recorded"
        document = json.dumps(vars(settings(folder, **values)))
        monkeypatch.setenv(RECORDING_VARIABLE, document)
        monkeypatch.setenv("TUNELINE_ARTIFACT_DIGEST", "sha256:abc")
        middleware = TunelineMiddleware(inner or Inner())
        assert middleware.recorder is not None
        middleware.recorder.start()
        recorders.append(middleware.recorder)

        async def all_of_them() -> None:
            for number, one in enumerate(requests):
                headers = {"x-request-id": f"r{number}"}
                found = await send_request(middleware, path, one, headers=headers)
                if answers is not None:
                    answers.append(found)

        asyncio.run(all_of_them())
        middleware.recorder.close()
        return lines_of(folder)

    return asked


def test_a_line_has_the_request_its_answer_and_who_gave_it(ask: Ask) -> None:
    before = counted("tuneline_recorded_total", kind="request")
    began_s = time.time()
    (line,) = ask({**ASKED, "temperature": 0.5, "metadata": {"task": "greet"}})
    assert abs(line.pop("time") - began_s) < 60
    assert 0 <= line.pop("seconds") < 60
    assert line == {
        "id": "r0",
        "route": CHAT,
        "key": "-",
        "digest": "sha256:abc",
        "request": {**ASKED, "temperature": 0.5, "metadata": {"task": "greet"}},
        "answer": {
            "choices": [{"text": "inner"}],
            "usage": {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12},
        },
    }
    assert counted("tuneline_recorded_total", kind="request") == before + 1


def test_the_files_are_their_owners(ask: Ask, tmp_path: Path) -> None:
    ask(ASKED)
    (path,) = (tmp_path / "recorded").iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize(("share", "ids"), [(0.0, ["r1"]), (1.0, ["r0", "r1"])])
def test_store_decides_and_else_the_share(ask: Ask, share: float, ids: list[str]) -> None:
    lines = ask(ASKED, {**ASKED, "store": True}, {**ASKED, "store": False}, share=share)
    assert [line["id"] for line in lines] == ids


def test_a_share_is_a_share_of_the_requests(tmp_path: Path) -> None:
    recorder = Recorder(settings(tmp_path, share=0.25), "")
    recorder._random.seed(7)
    scope = {"path": CHAT}
    wanted = sum(recorder.wants(scope, ASKED) for _ in range(4000))
    # A binomial count of 4,000 has a standard deviation of 27.
    assert abs(wanted - 1000) < 5 * 27


@pytest.mark.parametrize("path", ["/v1/models", "/v1/embeddings", "/v1/feedback"])
def test_other_routes_are_not_recorded(tmp_path: Path, path: str) -> None:
    assert not Recorder(settings(tmp_path), "").wants({"path": path}, ASKED)


@pytest.mark.parametrize("body", [b"[1]", b"not JSON", b'{"store": 1'])
def test_a_request_without_fields_is_not_recorded(ask: Ask, body: bytes) -> None:
    assert ask(body) == []


async def _error(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 400, "headers": []})
    await send({"type": "http.response.body", "body": b'{"error": {"message": "no"}}'})


async def _half(scope: Scope, receive: Receive, send: Send) -> None:
    headers = [(b"content-type", b"text/event-stream")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    event = b'data: {"choices": [{"index": 0, "delta": {"content": "a"}}]}\n\n'
    await send({"type": "http.response.body", "body": event, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def _large(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    text = json.dumps({"text": "a" * MAX_RECORD_BYTES}).encode()
    await send({"type": "http.response.body", "body": text})


async def _nothing(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})


@pytest.mark.parametrize(
    ("inner", "reason"),
    [(_half, "unfinished"), (_nothing, "unfinished"), (_large, "size")],
)
def test_an_answer_that_is_not_whole_is_counted(ask: Ask, inner: Any, reason: str) -> None:
    before = counted("tuneline_unrecorded_total", reason=reason)
    assert ask(ASKED, inner=inner) == []
    assert counted("tuneline_unrecorded_total", reason=reason) == before + 1


def test_an_error_is_no_answer(ask: Ask) -> None:
    assert ask(ASKED, inner=_error) == []


@pytest.mark.parametrize(
    ("body", "content"),
    [
        (b'{"messages": [{"role": "user", "content": "\\ud83d"}]}', "\ud83d"),
        (b'{"messages": [{"role": "user", "content": "a\\u2028b\\n"}]}', "a\u2028b\n"),
    ],
)
def test_any_text_is_one_line_of_utf_8(ask: Ask, body: bytes, content: str) -> None:
    (line,) = ask(body)
    assert line["request"]["messages"][0]["content"] == content


def test_a_number_that_json_lacks_is_counted(ask: Ask) -> None:
    before = counted("tuneline_unrecorded_total", reason="form")
    assert ask(b'{"messages": [], "temperature": NaN}') == []
    assert counted("tuneline_unrecorded_total", reason="form") == before + 1


def test_a_folder_that_takes_nothing_fails_no_request(ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "recorded").write_text("a file in the place of the folder")
    before = counted("tuneline_unrecorded_total", reason="disk")
    answers: list[Answer] = []
    assert ask(ASKED, ASKED, answers=answers) == []
    assert [answer.status for answer in answers] == [200, 200]
    assert counted("tuneline_unrecorded_total", reason="disk") == before + 2


def test_a_record_after_a_failed_write_begins_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(settings(tmp_path), "")
    monkeypatch.setattr(module, "PAUSE_S", 0.0)
    whole = os.write
    cut: list[int] = [1]  # the second write

    def write(file: int, data: bytes) -> int:
        cut[0] -= 1
        return whole(file, data[:5] if cut[0] == -1 else data)

    monkeypatch.setattr(os, "write", write)
    recorder.start()
    for number in range(3):
        recorder.note({"feedback": str(number)})
    recorder.close()
    texts = [path.read_text() for path in sorted(tmp_path.iterdir(), key=os.path.getmtime)]
    assert sorted(texts) == ['{"feedback": "0"}\n{"fee', '{"feedback": "2"}\n']


def test_files_beyond_age_and_size_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_FILE_BYTES", 1000)
    now = time.time()
    ages_days = {"20260101": 40, "20260201": 3, "20260301": 2, "20260401": 1}
    for day, age in ages_days.items():
        path = tmp_path / f"recorded-{day}T000000Z-0.jsonl"
        path.write_bytes(b"x" * 1000)
        os.utime(path, (now, now - age * DAY_S))
    other = tmp_path / "notes.txt"
    other.write_text("not a record")
    recorder = Recorder(settings(tmp_path, max_bytes=3500, keep_s=30 * DAY_S), "")
    recorder.start()
    recorder.note({"feedback": "new"})
    recorder.close()
    left = sorted(path.name for path in tmp_path.iterdir())
    # 40 days are too old. Of 3,500 bytes, the new file may take 1,000, so two old ones stay.
    assert left[:3] == [
        "notes.txt", "recorded-20260301T000000Z-0.jsonl", "recorded-20260401T000000Z-0.jsonl",
    ]  # fmt: skip
    assert len(left) == 4


@pytest.mark.parametrize(("most", "num_kept"), [(10, 0), (150, 0), (1000, 3)])
def test_records_have_a_limit_in_memory(
    ask: Ask, monkeypatch: pytest.MonkeyPatch, most: int, num_kept: int
) -> None:
    # A request has 67 bytes and its answer 119.
    monkeypatch.setattr(module, "MAX_KEPT_BYTES", most)
    before = counted("tuneline_unrecorded_total", reason="behind")
    assert len(ask(ASKED, ASKED, ASKED)) == num_kept
    assert counted("tuneline_unrecorded_total", reason="behind") == before + 3 - num_kept


def test_memory_is_given_back(ask: Ask, recorders: list[Recorder]) -> None:
    for inner in (None, _half, _nothing, _large, _error):
        ask(ASKED, inner=inner)
    assert [recorder.memory.reserve(module.MAX_KEPT_BYTES) for recorder in recorders] == [True] * 5
