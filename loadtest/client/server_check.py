"""Before any load: does an OpenAI-compatible server answer, and does it serve the model?"""

from __future__ import annotations

import contextlib
import difflib
import json
import re
import socket
import ssl
import time
from dataclasses import dataclass

from loadtest.client.http1 import MAX_HEAD_BYTES, Framer, ProtocolError
from tuneline.core.endpoint import Endpoint, split_url
from tuneline.core.errors import ServerError

TIMEOUT_S = 10.0
MAX_BYTES = 1_000_000
"""Limit for a list of models; a page of metrics or of the known server's record may be longer."""
MAX_PAGE_BYTES = 10_000_000
ARTIFACT_NAME = re.compile(r"^(?P<name>.+)@(?P<digest>[0-9a-f]{12})$")


@dataclass(frozen=True)
class Served:
    """The endpoint's description of itself."""

    names: list[str]
    artifact_name: str | None
    """`name@digest12` of the artifact behind the model, if the server has that name."""
    short_digest: str | None
    server: str | None
    """The `Server` header."""


def get(
    url: str,
    path: str,
    key: str | None,
    ca_file: str | None = None,
    *,
    max_bytes: int = MAX_BYTES,
) -> tuple[int, bytes, str]:
    """Status, body and `Server` header of a GET, all of it within TIMEOUT_S.

    Raises:
        ServerError: No answer, one that is not HTTP, does not end or is longer than `max_bytes`;
            the message says which.
    """
    parts = split_url(url)
    host, is_tls = str(parts.hostname), parts.scheme == "https"
    port = parts.port or (443 if is_tls else 80)
    shown = f"[{host}]" if ":" in host else host
    authorization = f"Authorization: Bearer {key}\r\n" if key else ""
    request = (
        f"GET {path} HTTP/1.1\r\nHost: {shown}:{port}\r\nUser-Agent: tuneline\r\n"
        f"Accept: application/json\r\nAccept-Encoding: identity\r\n{authorization}"
        "Connection: close\r\n\r\n"
    )
    deadline_s = time.monotonic() + TIMEOUT_S
    try:
        with contextlib.ExitStack() as stack:
            sock = stack.enter_context(socket.create_connection((host, port), TIMEOUT_S))
            if is_tls:
                context = ssl.create_default_context(cafile=ca_file)
                sock = stack.enter_context(context.wrap_socket(sock, server_hostname=host))
            sock.sendall(request.encode())
            framer, body = _receive(sock, deadline_s, max_bytes)
        return framer.status, body, framer.headers.get(b"server", b"").decode("latin-1")
    except ConnectionRefusedError:
        raise ServerError(
            f"{url}: connection refused; expected a server there",
            hint="Is it up, and is the port right? Try: tuneline serve RUN.yaml",
        ) from None
    except socket.gaierror as error:
        raise ServerError(
            f"{url}: the host name cannot be resolved ({error.strerror})",
            hint="Check the spelling of the host.",
        ) from None
    except TimeoutError:
        raise ServerError(f"{url}: no whole answer to {path} within {TIMEOUT_S:g} s") from None
    except ssl.SSLCertVerificationError as error:
        raise ServerError(
            f"{url}: its certificate is not trusted ({error.verify_message})",
            hint="Name the certificate authority's file in SSL_CERT_FILE.",
        ) from None
    except ssl.SSLError as error:
        raise ServerError(
            f"{url}: TLS failed ({error.reason})", hint="Is it an http:// server?"
        ) from None
    except ProtocolError as error:
        raise ServerError(f"{url}: does not speak HTTP ({error})") from None
    except _TooLongError:
        raise ServerError(
            f"{url}: {path} holds more than {max_bytes / 1e6:g} MB; expected an OpenAI-compatible "
            "server"
        ) from None
    except OSError as error:
        raise ServerError(f"{url}: {error.strerror or error}") from None


class _TooLongError(Exception):
    """The body is longer than it may be."""


def _receive(sock: socket.socket, deadline_s: float, max_bytes: int) -> tuple[Framer, bytes]:
    framer = Framer()
    pieces: list[bytes] = []
    size = 0
    while not framer.complete:
        sock.settimeout(max(deadline_s - time.monotonic(), 1e-3))
        data = sock.recv(65536)
        if time.monotonic() > deadline_s:
            raise TimeoutError
        size += len(data)
        if size > max_bytes + MAX_HEAD_BYTES:
            raise _TooLongError
        if data:
            framer.feed(data, pieces)
        elif not framer.close():
            raise ProtocolError("the connection ended before the answer did")
    return framer, b"".join(pieces)


def probe(endpoint: Endpoint, ca_file: str | None = None) -> Served:
    """Ask `/v1/models`.

    Raises:
        ServerError: Nothing answers, something else answers, the key is refused, or the model is
            not served; the message says which and what to change.
        ConfigError: The URL is none.
    """
    url = endpoint.url
    path = split_url(url).path.rstrip("/") + "/models"
    status, body, server = get(url, path, endpoint.api_key, ca_file)
    if status in (401, 403):
        what = "refuses the API key" if endpoint.api_key else "asks for an API key"
        raise ServerError(
            f"{url}: {what} (status {status})",
            hint="Put the key into the environment variable that --api-key-env names.",
        )
    if status == 404:
        raise ServerError(
            f"{url}: has no {path} (status 404); expected an OpenAI-compatible server",
            hint="The URL goes up to and with /v1: http://HOST:PORT/v1",
        )
    if status != 200:
        raise ServerError(f"{url}: answers {path} with status {status}; expected 200")
    names = _names(url, path, body)
    if endpoint.model not in names:
        near = difflib.get_close_matches(endpoint.model, names, n=1)
        raise ServerError(
            f"{url}: does not serve the model {endpoint.model!r}; it serves {', '.join(names)}",
            hint=f"Try: --model {near[0] if near else names[0]}",
        )
    artifact_name = next((name for name in names if _is_artifact_of(name, endpoint.model)), None)
    match = ARTIFACT_NAME.match(artifact_name) if artifact_name else None
    return Served(names, artifact_name, match["digest"] if match else None, server or None)


def _names(url: str, path: str, body: bytes) -> list[str]:
    try:
        names = [str(entry["id"]) for entry in json.loads(body)["data"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        names = []
    if not names:
        raise ServerError(
            f"{url}: {path} holds no list of models ({body[:60]!r}); expected an "
            "OpenAI-compatible server",
            hint="The URL goes up to and with /v1: http://HOST:PORT/v1",
        )
    return names


def _is_artifact_of(name: str, model: str) -> bool:
    match = ARTIFACT_NAME.match(name)
    return match is not None and model in (name, match["name"])
