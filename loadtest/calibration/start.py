"""The bundled server of known delays as a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtest.calibration.certificate import write_certificate
from loadtest.client.processes import subprocess_environment
from loadtest.client.server_check import MAX_PAGE_BYTES, get
from tuneline.core.endpoint import Endpoint
from tuneline.core.errors import ServerError


@dataclass(frozen=True)
class StartedServer:
    """The bundled server of known delays, while it runs."""

    endpoint: Endpoint
    ca_file: str | None
    """File of its certificate's authority; None without TLS."""
    pid: int

    def truths(self) -> list[dict[str, Any]]:
        """Return the server's own record, an entry per request."""
        url, ca_file = self.endpoint.url, self.ca_file
        _, body, _ = get(url, "/truth", None, ca_file, max_bytes=MAX_PAGE_BYTES)
        found: list[dict[str, Any]] = json.loads(body)
        return found


@contextmanager
def known_server(*options: str, tls: bool = False) -> Iterator[StartedServer]:
    """Start the bundled server, and end it with the block.

    Raises:
        ServerError: The server does not start.
    """
    words = ["--ends-with-parent", *options]
    ca_file = None
    with ExitStack() as stack:
        if tls:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="tuneline-known-"))
            certificate, key = write_certificate(Path(folder))
            words += ["--certificate", str(certificate), "--private-key", str(key)]
            ca_file = str(certificate)
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "loadtest.calibration.known_server", *words],
            stdout=subprocess.PIPE, text=True, env=subprocess_environment(),
            start_new_session=True,  # Ctrl-C in a terminal is for the load test
        )  # fmt: skip
        try:
            assert process.stdout is not None  # noqa: S101 (started with a pipe)
            line = process.stdout.readline()
            if tls:
                key.unlink()  # it has been read
            if not line:
                raise ServerError(
                    f"the bundled server of known delays ended with code {process.wait()}"
                )
            scheme, port = "https" if tls else "http", json.loads(line)["port"]
            yield StartedServer(
                Endpoint(f"{scheme}://127.0.0.1:{port}/v1", "known"), ca_file, process.pid
            )
        finally:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
