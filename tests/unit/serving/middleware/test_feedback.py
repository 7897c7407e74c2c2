"""`POST /v1/feedback`."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from serving.middleware.app import TunelineMiddleware
from serving.middleware.settings import RECORDING_VARIABLE
from tests.unit.serving.middleware.harness import Answer, Inner, send_request

PATH = "/v1/feedback"


@pytest.fixture
def middleware(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TunelineMiddleware:
    settings = {"folder": str(tmp_path), "share": 0.0, "max_bytes": 2**30, "keep_s": 1e6}
    monkeypatch.setenv(RECORDING_VARIABLE, json.dumps(settings))
    return TunelineMiddleware(Inner())


def send(middleware: TunelineMiddleware, fields: Any, **options: Any) -> Answer:
    return asyncio.run(send_request(middleware, PATH, fields, **options))


@pytest.mark.parametrize(
    "given",
    [
        {"id": "r1", "label": True},
        {"id": "r1", "label": False, "answer": "안녕", "comment": "shorter"},
        {"id": "r1", "answer": "Hello."},
    ],
)
def test_feedback_is_a_line(
    middleware: TunelineMiddleware, tmp_path: Path, given: dict[str, Any]
) -> None:
    assert middleware.recorder is not None
    middleware.recorder.start()
    answer = send(middleware, given)
    assert (answer.status, json.loads(answer.body)) == (202, {"object": "feedback", "id": "r1"})
    middleware.recorder.close()
    (path,) = tmp_path.iterdir()
    line = json.loads(path.read_text(encoding="utf-8"))
    assert line.pop("time") > 0
    rest = {name: value for name, value in given.items() if name != "id"}
    assert line == {"feedback": "r1", "key": "-", **rest}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"label": True}, "id"),
        ({"id": "", "label": True}, "id"),
        ({"id": 7, "label": True}, "id"),
        ({"id": "r" * 257, "label": True}, "id"),
        ({"id": "r1"}, "label"),
        ({"id": "r1", "label": "good"}, "label"),
        ({"id": "r1", "label": 1}, "label"),
        ({"id": "r1", "answer": ["Hello."]}, "answer"),
        ({"id": "r1", "answer": "  "}, "answer"),
        ({"id": "r1", "label": True, "comment": 5}, "comment"),
        ({"id": "r1", "lable": True}, "lable"),
        (b"[]", None),
        (b"{", None),
    ],
)
def test_other_feedback_is_refused(
    middleware: TunelineMiddleware, fields: Any, param: str | None
) -> None:
    answer = send(middleware, fields)
    assert (answer.status, answer.error["param"]) == (400, param)


def test_a_server_that_does_not_record_has_no_such_route(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(RECORDING_VARIABLE, raising=False)
    answer = send(TunelineMiddleware(Inner()), {"id": "r1", "label": True})
    assert answer.status == 404
    assert answer.error["message"].endswith("serving.recording opens it")


@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_another_method_is_refused(middleware: TunelineMiddleware, method: str) -> None:
    answer = send(middleware, {}, method=method)
    assert (answer.status, answer.headers["allow"]) == (405, "POST")


def test_a_key_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    settings = {"folder": str(tmp_path), "share": 0.0, "max_bytes": 2**30, "keep_s": 1e6}
    monkeypatch.setenv(RECORDING_VARIABLE, json.dumps(settings))
    guarded = TunelineMiddleware(Inner())
    given = {"id": "r1", "label": True}
    assert send(guarded, given).status == 401
    assert send(guarded, given, key="secret").status == 202
