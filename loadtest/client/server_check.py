"""Before any load: does an OpenAI-compatible server answer, and does it serve the model?"""

from __future__ import annotations

import contextlib
import difflib
import json
import re
import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from loadtest.client.headers import header_lines
from loadtest.client.http1 import MAX_HEAD_BYTES, Framer, ProtocolError
from tuneline.core.endpoint import Endpoint, split_url
from tuneline.core.errors import ServerError
from tuneline.core.progress import logger
from tuneline.core.server_words import error_message, printable

TIMEOUT_S = 10.0
MAX_PAGE_BYTES = 10_000_000
MAX_NAMES_SHOWN = 12
NO_HEADERS: Mapping[str, str] = {}
UP_TO_V1 = "The URL goes up to and with /v1: http://HOST:PORT/v1"
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
    is_listed: bool = True
    """Whether `/models` lists the model."""
    engine: str | None = None
    """The header `x-tuneline-engine`: a digest of the settings of Tuneline's server."""


def get(
    url: str,
    path: str,
    key: str | None,
    ca_file: str | None = None,
    *,
    headers: Mapping[str, str] = NO_HEADERS,
    max_bytes: int = MAX_PAGE_BYTES,
) -> tuple[int, bytes, str]:
    """Return status, body and `Server` header of a GET, all of it within TIMEOUT_S.

    Raises:
        ServerError: See `ask`.
    """
    status, body, found = ask(url, path, key, ca_file, headers=headers, max_bytes=max_bytes)
    return status, body, found.get(b"server", b"").decode("latin-1")


def ask(
    url: str,
    path: str,
    key: str | None,
    ca_file: str | None = None,
    *,
    headers: Mapping[str, str] = NO_HEADERS,
    document: Mapping[str, Any] | None = None,
    max_bytes: int = MAX_PAGE_BYTES,
) -> tuple[int, bytes, Mapping[bytes, bytes]]:
    """Return status, body and headers of a GET, or of a POST of a JSON document, within TIMEOUT_S.

    Raises:
        ServerError: No answer, one that is not HTTP, does not end or is longer than `max_bytes`;
            the message says which.
    """
    parts = split_url(url)
    host, is_tls = str(parts.hostname), parts.scheme == "https"
    port = parts.port or (443 if is_tls else 80)
    lines = header_lines(headers, key)
    request = _request(f"[{host}]" if ":" in host else host, port, path, lines, document)
    deadline_s = time.monotonic() + TIMEOUT_S
    try:
        with contextlib.ExitStack() as stack:
            sock = stack.enter_context(socket.create_connection((host, port), TIMEOUT_S))
            if is_tls:
                context = ssl.create_default_context(cafile=ca_file)
                sock = stack.enter_context(context.wrap_socket(sock, server_hostname=host))
            sock.sendall(request.encode())
            framer, body = _receive(sock, deadline_s, max_bytes)
        return framer.status, body, framer.headers
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


def _request(
    host: str, port: int, path: str, lines: str, document: Mapping[str, Any] | None
) -> str:
    content = "" if document is None else json.dumps(document)
    length = f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n"
    return (
        f"{'GET' if document is None else 'POST'} {path} HTTP/1.1\r\nHost: {host}:{port}\r\n"
        "User-Agent: tuneline\r\n"
        f"Accept: application/json\r\nAccept-Encoding: identity\r\n{lines}"
        f"{length if content else ''}Connection: close\r\n\r\n{content}"
    )


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


class _NoListError(Exception):
    """The server has no list of models that can be read."""

    def __init__(self, problem: str, hint: str | None = None) -> None:
        super().__init__(problem)
        self.problem, self.hint = problem, hint


def probe(endpoint: Endpoint, ca_file: str | None = None) -> Served:
    """Ask `/v1/models`; without such a list, ask the model for one token.

    Gateways and some servers have no such list, or need a model's name to answer it.

    Raises:
        ServerError: Nothing answers, something else answers, the key is refused, or the model is
            not served; the message says which and what to change.
        ConfigError: The URL is none.
    """
    url = endpoint.url
    try:
        parents, headers = _listed(endpoint, ca_file)
    except _NoListError as error:
        if not _answers(endpoint, ca_file):
            hint = f"{error.hint}\n  " if error.hint else ""
            raise ServerError(
                f"{url}: {error.problem}",
                hint=f"{hint}Try: --set loadtest.check_models=false, if the server has no list",
            ) from None
        logger.warning("%s: %s; the model answers, so the test goes on", url, error.problem)
        return unlisted(endpoint)
    names = list(parents)
    if not {endpoint.model, f"models/{endpoint.model}"} & set(names):
        near = difflib.get_close_matches(endpoint.model, names, n=1)
        shown = ", ".join(printable(name[:80]) for name in names[:MAX_NAMES_SHOWN])
        more = len(names) - MAX_NAMES_SHOWN
        raise ServerError(
            f"{url}: does not serve the model {endpoint.model!r}; it serves {shown}"
            + (f" and {more} more" if more > 0 else ""),
            hint=f"Try: --model {printable(near[0] if near else names[0])}",
        )
    artifact_name = _artifact_name(endpoint.model, parents)
    match = ARTIFACT_NAME.match(artifact_name) if artifact_name else None
    server, engine = (
        headers.get(name, b"").decode("latin-1") or None
        for name in (b"server", b"x-tuneline-engine")
    )
    digest = match["digest"] if match else None
    return Served(names, artifact_name, digest, server, engine=engine)


def unlisted(endpoint: Endpoint) -> Served:
    """Return what is known of an endpoint whose list of models is not read."""
    return Served([endpoint.model], None, None, None, is_listed=False)


def _listed(
    endpoint: Endpoint, ca_file: str | None
) -> tuple[dict[str, object], Mapping[bytes, bytes]]:
    """Return the names in `/v1/models`, each with its parent, and the answer's headers.

    Raises:
        ServerError: Nothing answers, or the key is refused.
        _NoListError: The answer is not a list of models.
    """
    url = endpoint.url
    path = split_url(url).path.rstrip("/") + "/models"
    status, body, headers = ask(url, path, endpoint.api_key, ca_file, headers=endpoint.headers)
    if status in (401, 403):
        what = "refuses the API key" if endpoint.api_key else "asks for an API key"
        raise ServerError(
            f"{url}: {what} (status {status})",
            hint="Put the key into the environment variable that --api-key-env names.",
        )
    if status == 404:
        raise _NoListError(
            f"has no {path} (status 404); expected an OpenAI-compatible server", UP_TO_V1
        )
    if 300 <= status < 400 and b"location" in headers:
        place = printable(headers[b"location"][:200]).removesuffix("/models")
        raise _NoListError(
            f"answers {path} with status {status} and the location {place}; expected 200",
            f"Try: --url {place}" if place.startswith("http") else None,
        )
    if status != 200:
        said = error_message(body) or "no words"
        raise _NoListError(f"answers {path} with status {status} ({said}); expected 200")
    names = _parents(body)
    if not names:
        raise _NoListError(
            f"{path} holds no list of models ({body[:60]!r}); expected an OpenAI-compatible server",
            UP_TO_V1,
        )
    return names, headers


def _answers(endpoint: Endpoint, ca_file: str | None) -> bool:
    """Return whether the model answers a question of one token."""
    path = split_url(endpoint.url).path.rstrip("/") + "/chat/completions"
    document = {
        "model": endpoint.model,
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 1,
    }
    try:
        status, body, _ = ask(
            endpoint.url, path, endpoint.api_key, ca_file,
            headers=endpoint.headers, document=document,
        )  # fmt: skip
    except ServerError:
        return False
    if status != 200 or body.lstrip().startswith(b"data:"):
        return status == 200
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        return False
    return isinstance(answer, dict) and bool(answer.get("choices"))


def _parents(body: bytes) -> dict[str, object]:
    """Return the names in a list of models: OpenAI's, a bare list, or Ollama's own, without control
    characters. Each name has its `parent`, by which vLLM says that the name is an adapter of that
    model."""
    try:
        found = json.loads(body)
        if isinstance(found, dict):
            found = found.get("data", found.get("models"))
        named = {str(one["id"] if "id" in one else one["name"]): one for one in found}
        return {printable(name): one.get("parent") for name, one in named.items()}
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}


def _artifact_name(model: str, parents: Mapping[str, object]) -> str | None:
    """Return the name with a digest of the artifact that answers as `model`; None without such a
    name. An alias has no digest of its own, so it means the only digest next to it, if there is
    only one: an adapter's digest for an alias with a parent, the model's for others."""
    if own := [name for name in parents if _is_artifact_of(name, model)]:
        return own[0]
    parent = parents.get(model, parents.get(f"models/{model}"))
    near = [name for name in parents if parents[name] == parent and ARTIFACT_NAME.match(name)]
    return near[0] if len(near) == 1 else None


def _is_artifact_of(name: str, model: str) -> bool:
    match = ARTIFACT_NAME.match(name)
    return match is not None and model in (name, match["name"])
