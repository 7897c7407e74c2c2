"""The page behind the key: what opens it, and what its key opens."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from serving.middleware.app import TunelineMiddleware
from serving.middleware.chat_page import password
from tests.unit.serving.middleware.harness import CHAT, Inner, ask
from tests.unit.serving.middleware.test_keys import CHAT_FIELDS, table

KEY = "key-of-a"


def basic(secret: str, name: str = "me") -> str:
    return "Basic " + base64.b64encode(f"{name}:{secret}".encode()).decode()


@pytest.fixture
def keys_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "keys.toml"
    monkeypatch.setenv("TUNELINE_KEYS_FILE", str(path))
    return path


@pytest.fixture
def page(keys_file: Path, monkeypatch: pytest.MonkeyPatch) -> TunelineMiddleware:
    keys_file.write_text(table("a", KEY))
    monkeypatch.setenv("TUNELINE_SETTINGS", json.dumps({"routes": ["page"]}))
    return TunelineMiddleware(Inner())


def test_the_page_is_closed_unless_asked_for(keys_file: Path) -> None:
    keys_file.write_text(table("a", KEY))
    assert ask(TunelineMiddleware(Inner()), "/chat", key=KEY, method="GET").status == 404


def test_the_browser_is_asked_for_the_key(page: TunelineMiddleware) -> None:
    answer = ask(page, "/chat", method="GET")
    assert answer.status == 401
    assert answer.headers["www-authenticate"].startswith('Basic realm="')
    refused = ask(page, "/chat", method="GET", headers={"authorization": basic("wrong")})
    assert refused.status == 401


def test_the_key_as_password_opens_the_page(page: TunelineMiddleware) -> None:
    answer = ask(page, "/chat", method="GET", headers={"authorization": basic(KEY)})
    assert answer.status == 200 and answer.headers["content-type"].startswith("text/html")
    assert int(answer.headers["content-length"]) == len(answer.body) > 1000
    assert KEY.encode() not in answer.body
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy and b"http://" not in answer.body
    assert answer.headers["cache-control"] == "no-store"


def test_other_methods_are_refused(page: TunelineMiddleware) -> None:
    headers = {"authorization": basic(KEY)}
    assert ask(page, "/chat", {}, method="POST", headers=headers).status == 405
    head = ask(page, "/chat", method="HEAD", headers=headers)
    assert (head.status, head.body) == (200, b"")


def test_a_remembered_password_works_only_for_requests_of_the_page(
    page: TunelineMiddleware,
) -> None:
    headers = {"authorization": basic(KEY)}
    foreign = ask(page, CHAT, CHAT_FIELDS, headers=headers)
    assert foreign.status == 401 and foreign.headers["www-authenticate"] == "Bearer"
    own = ask(page, CHAT, CHAT_FIELDS, headers={**headers, "x-tuneline-page": "1"})
    assert own.status == 200


def test_the_scheme_is_refused_where_the_page_is_closed(keys_file: Path) -> None:
    keys_file.write_text(table("a", KEY))
    headers = {"authorization": basic(KEY), "x-tuneline-page": "1"}
    assert ask(TunelineMiddleware(Inner()), CHAT, CHAT_FIELDS, headers=headers).status == 401


@pytest.mark.parametrize(
    ("authorization", "expected"),
    [
        (basic("a:b"), "a:b"),
        ("basic " + base64.b64encode(b":only").decode(), "only"),
        ("Basic " + base64.b64encode(b"no colon").decode(), ""),
        ("Basic not-base64!", ""), ("Basic", ""), ("Bearer x", ""), ("", ""),
    ],
)  # fmt: skip
def test_the_password_of_a_header(authorization: str, expected: str) -> None:
    assert password(authorization) == expected
