"""Images over HTTP: a server that opens what it receives, and the report's counts."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from anthropic.types.message_create_params import MessageCreateParamsStreaming
from openai.types.chat.completion_create_params import CompletionCreateParamsStreaming
from openai.types.responses.response_create_params import ResponseCreateParamsStreaming
from PIL import Image
from pydantic import TypeAdapter

from loadtest import report_text, run_loadtest
from loadtest.client.prepare import make_plan
from tests.integration.loadtest.client.quirks import WHOLE
from tests.integration.loadtest.small import PROMPTS, config, report_of
from tuneline.core.endpoint import Endpoint

pytestmark = pytest.mark.usefixtures("shared_host")

ENDS = {
    "responses": b'data: {"type": "response.output_text.delta", "delta": "a"}\n\n'
    b'data: {"type": "response.completed", "response": {"usage": {"output_tokens": 1}}}\n\n',
    "messages": b'data: {"type": "content_block_delta", "delta": {"text": "a"}}\n\n'
    b'data: {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, '
    b'"usage": {"output_tokens": 1}}\n\ndata: {"type": "message_stop"}\n\n',
}
PARAMS: dict[str, Any] = {
    "chat": CompletionCreateParamsStreaming,
    "responses": ResponseCreateParamsStreaming,
    "messages": MessageCreateParamsStreaming,
}


class Seeing(BaseHTTPRequestHandler):
    """Opens every image of a request, and answers with a whole stream."""

    protocol_version = "HTTP/1.1"
    seen: list[list[bytes]]

    def do_GET(self) -> None:
        self.answer(200 if self.path.endswith("/models") else 404, b'{"data": [{"id": "m"}]}')

    def do_POST(self) -> None:
        route = self.path.rpartition("/")[2]
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append([])
        for message in body["input" if route == "responses" else "messages"]:
            for part in message["content"]:
                if part["type"] not in ("text", "input_text"):
                    self.seen[-1].append(base64.b64decode(self.data_of(part), validate=True))
        self.answer(200, ENDS.get(route, WHOLE))

    def data_of(self, part: dict[str, Any]) -> str:
        if part["type"] == "image":
            data: str = part["source"]["data"]
            return data
        url: str | dict[str, str] = part["image_url"]
        return (url if isinstance(url, str) else url["url"]).partition(";base64,")[2]

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def seeing() -> Iterator[tuple[Endpoint, list[list[bytes]]]]:
    seen: list[list[bytes]] = []
    handler = type("Handler", (Seeing,), {"seen": seen})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield Endpoint(f"http://127.0.0.1:{server.server_port}/v1", "m"), seen
        server.shutdown()


@pytest.mark.parametrize("route", ["chat", "responses", "messages"])
def test_a_server_receives_the_images_that_the_report_counts(
    route: str, seeing: tuple[Endpoint, list[list[bytes]]], tmp_path: Path
) -> None:
    endpoint, seen = seeing
    settings = config(
        scenarios=[{"name": "x", "concurrency": 4, "num_requests": 12}],
        workload={"route": route, "images": {"width": 96, "height": 64, "count": 2}},
        num_warmup_requests=3,
    )  # fmt: skip
    artifact = run_loadtest(settings, endpoint, tmp_path / "r", prompts=PROMPTS)
    report = report_of(artifact)
    (scenario,) = report["scenarios"]
    assert scenario["requests"]["succeeded"] == 12, scenario["errors"]
    assert [len(images) for images in seen] == [2] * 15
    for image in (image for images in seen for image in images):
        with Image.open(io.BytesIO(image)) as opened:
            opened.load()
            assert opened.size == (96, 64)
    found = scenario["images"]
    assert found["num_sent"] == 24
    lengths = {len("data:image/png;base64,") + 4 * -(-len(one) // 3) for s in seen for one in s}
    assert min(lengths) <= found["mean_url_bytes"] <= max(lengths)
    assert report["workload"]["images"] == {"width": 96, "height": 64, "count": 2}
    assert "24 sent of 96 x 64 pixels" in report_text(artifact, "html")


@pytest.mark.parametrize("route", ["chat", "responses", "messages"])
def test_the_official_clients_types_take_the_body(route: str) -> None:
    settings = config(workload={"route": route, "images": {"width": 8, "height": 8}})
    endpoint = Endpoint("http://127.0.0.1:1/v1", "m")
    plan, _ = make_plan(settings, settings.scenarios[0], endpoint, PROMPTS, seed=0)
    body = json.loads(plan.bodies[0])
    adapter = TypeAdapter(PARAMS[route])  # lists are read lazily: keep it until the end
    key = "input" if route == "responses" else "messages"
    kept = plain(adapter.validate_python(body))
    assert kept[key] == body[key]
    assert len(body[key][0]["content"]) == 2


def plain(value: Any) -> Any:
    """Return a validated value with its lazy lists read."""
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items()}
    return value if isinstance(value, str | int | float | None) else [plain(one) for one in value]
