"""A page of another origin in a real Chromium: what it can read of an answer."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from starlette.middleware.cors import CORSMiddleware

from serving.middleware.app import TunelineMiddleware
from serving.middleware.asgi import Receive, Scope, Send, answer
from serving.middleware.cors import Origins
from tests.integration.serving.middleware.serving_app import serving

if TYPE_CHECKING:
    from playwright.sync_api import Browser

KEY = "key-of-a-page"
DIGEST = "sha256:" + "7" * 64
ASK = """
async ([url, key]) => {
  const body = JSON.stringify({model: "tuned", messages: []});
  const headers = {authorization: `Bearer ${key}`, "content-type": "application/json",
                   "x-request-id": "order-17"};
  const got = await fetch(`${url}/v1/chat/completions`, {method: "POST", headers, body});
  const names = ["x-request-id", "x-tuneline-artifact", "retry-after"];
  return [got.status, ...names.map(name => got.headers.get(name))];
}
"""


async def blank_page(scope: Scope, receive: Receive, send: Send) -> None:
    headers = [(b"content-type", b"text/html")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"<!doctype html><title>page</title>"})


async def vllm(scope: Scope, receive: Receive, send: Send) -> None:
    await answer(send, 200, {"choices": []})


@pytest.fixture
def addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, str]]:
    """The address of a page, and of a server that lets its origin in, as vLLM's layer does."""
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    keys = tmp_path / "keys.toml"
    keys.write_text(f'[page]\nsha256 = "{digest}"\nrequests_per_minute = 1\n')
    monkeypatch.setenv("TUNELINE_KEYS_FILE", str(keys))
    monkeypatch.setenv("TUNELINE_ARTIFACT_DIGEST", DIGEST)
    with serving(blank_page) as page:
        layer: Any = CORSMiddleware(
            vllm, allow_origins=[page], allow_methods=["*"], allow_headers=["*"]
        )
        middleware = TunelineMiddleware(layer)
        middleware.origins = Origins((page,))
        with serving(middleware) as server:
            yield page, server


def test_a_page_of_another_origin_reads_when_to_ask_again(
    browser: Browser, addresses: tuple[str, str]
) -> None:
    page_url, server = addresses
    page = browser.new_page()
    page.goto(page_url)
    first, second, unknown = (
        page.evaluate(ASK, [server, key]) for key in (KEY, KEY, "another-key")
    )
    page.close()
    assert first == [200, "order-17", DIGEST, None]
    assert second[:3] == [429, "order-17", DIGEST]
    assert 1 <= int(second[3]) <= 60
    assert unknown == [401, "order-17", DIGEST, None]
