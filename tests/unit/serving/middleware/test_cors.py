"""Pages of other origins: vLLM's layer for them, Starlette's, is below the middleware."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from starlette.middleware.cors import CORSMiddleware

from serving.middleware.app import TunelineMiddleware
from serving.middleware.cors import Origins
from tests.unit.serving.middleware.harness import CHAT, Answer, Inner, ask
from tests.unit.serving.middleware.test_keys import CHAT_FIELDS, table

PAGE = "https://a.example"


@pytest.fixture
def middleware(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TunelineMiddleware:
    keys_file = tmp_path / "keys.toml"
    keys_file.write_text(table("a", "key-of-a", requests_per_minute=1))
    monkeypatch.setenv("TUNELINE_KEYS_FILE", str(keys_file))
    monkeypatch.setenv("TUNELINE_SETTINGS", json.dumps({"routes": ["page"]}))
    inner = Inner()
    inner.models = ["tickets"]
    layer = CORSMiddleware(inner, allow_origins=[PAGE], allow_methods=["*"], allow_headers=["*"])
    made = TunelineMiddleware(layer)
    made.origins = Origins((PAGE,))
    return made


def preflight(middleware: TunelineMiddleware, path: str = CHAT, **changes: str) -> Answer:
    headers = {
        "origin": PAGE, "access-control-request-method": "POST",
        "access-control-request-headers": "authorization, content-type",
    }  # fmt: skip
    headers |= {name.replace("_", "-"): value for name, value in changes.items()}
    return ask(middleware, path, method="OPTIONS", headers=headers)


def test_a_browser_asks_before_it_sends_its_key(middleware: TunelineMiddleware) -> None:
    answer = preflight(middleware)
    assert answer.status == 200
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert "authorization" in answer.headers["access-control-allow-headers"]
    assert preflight(middleware, origin="https://b.example").status == 400  # Starlette's answer


def test_the_chat_page_s_own_header_stays_closed(middleware: TunelineMiddleware) -> None:
    asked = "content-type, X-Tuneline-Page"
    assert preflight(middleware, access_control_request_headers=asked).status == 401


def test_without_allowed_origins_a_preflight_needs_a_key(middleware: TunelineMiddleware) -> None:
    middleware.origins = Origins()
    assert preflight(middleware).status == 401


@pytest.mark.parametrize("other", [{}, {"origin": "https://b.example"}])
def test_a_page_can_read_every_answer(
    middleware: TunelineMiddleware, other: dict[str, str]
) -> None:
    def origins(answer: Answer) -> tuple[int, str | None]:
        return answer.status, answer.headers.get("access-control-allow-origin")

    headers = {"origin": PAGE}
    found = [
        ask(middleware, "/v1/models", method="GET", key="key-of-a", headers=headers),
        *(ask(middleware, CHAT, CHAT_FIELDS, key="key-of-a", headers=headers) for _ in range(2)),
        ask(middleware, CHAT, CHAT_FIELDS, key="wrong", headers=headers),
        ask(middleware, "/nowhere", headers=headers),
    ]
    assert [origins(one) for one in found] == [
        (200, PAGE), (200, PAGE), (429, PAGE), (401, PAGE), (404, PAGE),
    ]  # fmt: skip
    answer = ask(middleware, CHAT, CHAT_FIELDS, key="wrong", headers=other)
    assert origins(answer) == (401, None)


@pytest.mark.parametrize(
    ("allowed", "credentials", "expected"),
    [
        (("*",), False, {"access-control-allow-origin": "*"}),
        (("*",), True, {
            "access-control-allow-origin": PAGE, "vary": "Origin",
            "access-control-allow-credentials": "true",
        }),
        (("https://b.example",), False, {}),
    ],
)  # fmt: skip
def test_headers_for_an_origin(
    allowed: tuple[str, ...], credentials: bool, expected: dict[str, str]
) -> None:
    scope = {"headers": [(b"origin", PAGE.encode())]}
    found = Origins(allowed, credentials).headers(scope)
    assert {name.decode(): value.decode() for name, value in found} == expected
