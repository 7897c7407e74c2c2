"""The `openai` client of an endpoint, and its errors in our words."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

from tuneline.core.endpoint import Endpoint
from tuneline.core.environment import require
from tuneline.core.errors import ServerError

if TYPE_CHECKING:
    from openai import AsyncOpenAI, OpenAI


@contextmanager
def openai_client(
    endpoint: Endpoint, *, timeout_s: float, max_retries: int = 2, extra: str = "serve"
) -> Iterator[OpenAI]:
    """Open a client of `endpoint`; an error of the client inside the block becomes a ServerError.

    Args:
        extra: The extra of Tuneline that brings the openai package, for the hint.

    Raises:
        MissingError: The openai package is not installed.
        ServerError: The server cannot be reached, refuses or answers wrongly.
    """
    openai = require("openai", extra)
    client = openai.OpenAI(
        **_options(endpoint, timeout_s, max_retries),
        http_client=openai.DefaultHttpxClient(trust_env=not endpoint.is_local),
    )
    try:
        with client:
            yield client
    except (openai.OpenAIError, json.JSONDecodeError) as error:
        raise server_error(error, endpoint, timeout_s) from None


@asynccontextmanager
async def async_openai_client(
    endpoint: Endpoint, *, timeout_s: float, max_retries: int = 2, extra: str = "serve"
) -> AsyncIterator[AsyncOpenAI]:
    """Open the asynchronous client of `endpoint`; see `openai_client`."""
    openai = require("openai", extra)
    client = openai.AsyncOpenAI(
        **_options(endpoint, timeout_s, max_retries),
        http_client=openai.DefaultAsyncHttpxClient(trust_env=not endpoint.is_local),
    )
    try:
        async with client:
            yield client
    except (openai.OpenAIError, json.JSONDecodeError) as error:
        raise server_error(error, endpoint, timeout_s) from None


def server_error(error: Exception, endpoint: Endpoint, timeout_s: float) -> ServerError:
    """Return the ServerError that says what an error of the openai client means."""
    import openai

    url = endpoint.url
    if isinstance(error, openai.AuthenticationError):
        return ServerError(
            f"{url}: the key is missing or is not the server's key",
            hint="Set VLLM_API_KEY (or the variable that serving.api_key_env names) to the "
            "server's key.",
        )
    if isinstance(error, openai.NotFoundError):
        return ServerError(
            f"{url}: model {endpoint.model!r}: {error.message}",
            hint=f"Try: curl {url}/models   (the names that it serves)",
        )
    if isinstance(error, openai.APIStatusError):
        return ServerError(f"{url}: status {error.status_code}: {error.message}")
    if isinstance(error, openai.APITimeoutError):
        return ServerError(f"{url}: no answer within {timeout_s:g} s")
    if isinstance(error, openai.APIConnectionError):
        return ServerError(
            f"{url}: cannot be reached ({error.__cause__ or error})",
            hint="Is it running? Start it with: tuneline serve RUN.yaml",
        )
    if isinstance(error, openai.OpenAIError):
        return ServerError(f"{url}: {error}")
    return ServerError(
        f"{url}: the answer is not a chat completion ({type(error).__name__}: {error})",
        hint="Is an OpenAI-compatible server behind the URL?",
    )


def _options(endpoint: Endpoint, timeout_s: float, max_retries: int) -> dict[str, Any]:
    """Return what both clients are made with.

    Both clients ignore the proxy variables for a loopback address, which no proxy can reach.
    Without a key of the endpoint's own the client sends none: the key in OPENAI_API_KEY belongs to
    another server.
    """
    return {
        "base_url": endpoint.url,
        "api_key": endpoint.api_key or "none",
        "timeout": timeout_s,
        "max_retries": max_retries,
    }
