"""Before any load: does an OpenAI-compatible server answer, and does it serve the model?"""

from __future__ import annotations

import difflib
import http.client
import json
import re
import socket
import ssl
from dataclasses import dataclass

from tuneline.core.endpoint import Endpoint, split_url
from tuneline.core.errors import ServerError

TIMEOUT_S = 10.0
ARTIFACT_NAME = re.compile(r"^(?P<name>.+)@(?P<digest>[0-9a-f]{12})$")


@dataclass(frozen=True)
class Served:
    """What the endpoint says of itself."""

    names: list[str]
    artifact_name: str | None
    """`name@digest12` of the artifact behind the model, where the server was given that name."""
    short_digest: str | None
    server: str | None
    """The `Server` header."""


def connection_to(url: str, ca_file: str | None, timeout_s: float) -> http.client.HTTPConnection:
    parts = split_url(url)
    host = str(parts.hostname)
    if parts.scheme == "https":
        context = ssl.create_default_context(cafile=ca_file)
        return http.client.HTTPSConnection(host, parts.port, timeout=timeout_s, context=context)
    return http.client.HTTPConnection(host, parts.port, timeout=timeout_s)


def get(url: str, path: str, key: str | None, ca_file: str | None = None) -> tuple[int, bytes, str]:
    """Status, body and `Server` header of a GET.

    Raises:
        ServerError: No answer, or one that is not HTTP; the message says which.
    """
    connection = connection_to(url, ca_file, TIMEOUT_S)
    headers = {"Accept": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    try:
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        return response.status, response.read(10_000_000), response.getheader("Server") or ""
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
        raise ServerError(f"{url}: no answer within {TIMEOUT_S:g} s") from None
    except ssl.SSLCertVerificationError as error:
        raise ServerError(
            f"{url}: its certificate is not trusted ({error.verify_message})",
            hint="Name the certificate authority's file in SSL_CERT_FILE.",
        ) from None
    except ssl.SSLError as error:
        raise ServerError(
            f"{url}: TLS failed ({error.reason})", hint="Is it an http:// server?"
        ) from None
    except http.client.HTTPException as error:
        raise ServerError(f"{url}: does not speak HTTP ({type(error).__name__}: {error})") from None
    except OSError as error:
        raise ServerError(f"{url}: {error.strerror or error}") from None
    finally:
        connection.close()


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
    except (ValueError, KeyError, TypeError):
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
