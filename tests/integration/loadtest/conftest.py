"""The bundled server of known delays, as a process of its own."""

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from tests.timing import on_a_shared_host
from tuneline.core.endpoint import Endpoint


@dataclass(frozen=True)
class Known:
    process: subprocess.Popen[str]
    port: int
    scheme: str = "http"

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(f"{self.scheme}://127.0.0.1:{self.port}/v1", "known")

    def truths(self) -> list[dict[str, Any]]:
        url = f"http://127.0.0.1:{self.port}/truth"
        with urllib.request.urlopen(url, timeout=10) as response:
            found: list[dict[str, Any]] = json.load(response)
        return found


@contextmanager
def known_server(*options: str, scheme: str = "http") -> Iterator[Known]:
    process = subprocess.Popen(
        [sys.executable, "-m", "loadtest.calibration.known_server", *options],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield Known(process, json.loads(process.stdout.readline())["port"], scheme)
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


@pytest.fixture
def shared_host() -> Iterator[None]:
    with on_a_shared_host():
        yield


@pytest.fixture
def start_known_server() -> Any:
    return known_server


@pytest.fixture(scope="module")
def known() -> Iterator[Known]:
    with known_server("--ttft-s", "0.03", "--itl-s", "0.004", "--num-tokens", "8") as server:
        yield server
