"""One small load on the known server, for the tests in this folder."""

import json
from http.server import BaseHTTPRequestHandler
from typing import Any

from loadtest.config import LoadTestConfig
from tuneline.core.artifact import Artifact

PROMPTS = [[{"role": "user", "content": f"question {number}"}] for number in range(10)]


def config(**options: Any) -> LoadTestConfig:
    values = {
        "scenarios": [{"name": "open", "rate_rps": 60.0, "num_requests": 60}],
        "num_warmup_requests": 5,
        "max_tokens": 8,
        "max_client_lag_s": 1.0,
        "calibrate": False,
        **options,
    }
    return LoadTestConfig.model_validate(values)


def report_of(artifact: Artifact) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((artifact.path / "report.json").read_text("utf-8"))
    return found


class Answering(BaseHTTPRequestHandler):
    """A server that says nothing of its requests."""

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass
