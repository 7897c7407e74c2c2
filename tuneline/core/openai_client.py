"""The `openai` client of an endpoint, and its errors in our words."""

from __future__ import annotations

import json
import os
import ssl
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from tuneline.core.endpoint import Endpoint
from tuneline.core.environment import require
from tuneline.core.errors import ServerError
from tuneline.core.server_words import error_message, printable, text_of

NAME_AUTHORITY = "Name the certificate authority's file in SSL_CERT_FILE."
MAX_WORDS = 400
"""Characters of a server's own words in an error."""

LIMITED_S = 600.0
"""The longest time for which a request is repeated because the server limits the rate."""
LIMITED_PAUSE_S = 5.0
"""The pause before such a request is repeated."""

REFUSED: dict[str, str | None] = {"max_tokens": "max_completion_tokens", "temperature": None}
"""Parameters that OpenAI's reasoning models refuse, and the parameter to send instead. Other
servers do not all know `max_completion_tokens`, so that it is the second choice."""

Answer = TypeVar("Answer")

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
        http_client=openai.DefaultHttpxClient(**_transport(endpoint)),
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
    """Open the asynchronous client of `endpoint`; raise the client's errors as Tuneline's."""
    openai = require("openai", extra)
    client = openai.AsyncOpenAI(
        **_options(endpoint, timeout_s, max_retries),
        http_client=openai.DefaultAsyncHttpxClient(**_transport(endpoint)),
    )
    try:
        async with client:
            yield client
    except (openai.OpenAIError, json.JSONDecodeError) as error:
        raise server_error(error, endpoint, timeout_s) from None


def _transport(endpoint: Endpoint) -> dict[str, Any]:
    """Return the options of httpx: no proxy on the way to this machine, and whom TLS trusts.

    httpx reads SSL_CERT_FILE only together with the variables of proxies, and never reads the
    machine's own authorities, which the load test's client trusts.
    """
    options: dict[str, Any] = {"trust_env": not endpoint.is_local}
    if endpoint.url.startswith("https:"):
        context = options["verify"] = ssl.create_default_context()
        if not (os.environ.get("SSL_CERT_FILE") or os.environ.get("SSL_CERT_DIR")):
            context.load_verify_locations(require("certifi", "serve").where())
    return options


def server_error(error: Exception, endpoint: Endpoint, timeout_s: float) -> ServerError:
    """Return the ServerError that says what an error of the openai client means."""
    import openai

    url = endpoint.url
    if isinstance(error, openai.AuthenticationError):
        return ServerError(
            f"{url}: "
            + (
                "needs a key; none was sent"
                if endpoint.api_key is None
                else "does not know the key"
            ),
            hint="Try: export VLLM_API_KEY=KEY   (another variable: --api-key-env VARIABLE, or "
            "serving.api_key_env of a run)",
        )
    if isinstance(error, openai.NotFoundError):
        return ServerError(
            f"{url}: model {endpoint.model!r}: {printable(error.message[:MAX_WORDS])}",
            hint=f"Try: curl {url}/models   (the names that it serves)"
            if url.endswith("/v1") or "nknown route" not in error.message
            else "Give the URL up to and with /v1, such as http://HOST:PORT/v1.",
        )
    if isinstance(error, openai.APIStatusError):
        words = printable(error.message[:MAX_WORDS])
        return ServerError(f"{url}: status {error.status_code}: {words}")
    if isinstance(error, openai.APITimeoutError):
        return ServerError(f"{url}: no answer within {timeout_s:g} s")
    if isinstance(error, openai.APIConnectionError):
        if "CERTIFICATE_VERIFY_FAILED" in str(error.__cause__):
            return ServerError(f"{url}: its certificate is not trusted", hint=NAME_AUTHORITY)
        return ServerError(
            f"{url}: cannot be reached ({error.__cause__ or error})",
            hint="Is it running? Start it with: tuneline serve RUN.yaml",
        )
    if isinstance(error, openai.APIError) and error.body:
        return ServerError(f"{url}: an error inside the stream: {_words_of(error.body)}")
    if isinstance(error, openai.OpenAIError):
        return ServerError(f"{url}: {printable(str(error)[:MAX_WORDS])}")
    return ServerError(
        f"{url}: the answer is not a chat completion ({type(error).__name__}: {error})",
        hint="Is an OpenAI-compatible server behind the URL?",
    )


def complete(client: OpenAI, options: dict[str, Any], messages: Sequence[Any]) -> Any:
    """Return a chat completion, also of a model that refuses a parameter of REFUSED by its name.

    Args:
        options: The other parameters. The refused parameter leaves it, for the next requests too.
    """
    import openai

    while True:
        sent = dict(options)
        try:
            return client.chat.completions.create(messages=list(messages), **sent)
        except openai.BadRequestError as error:
            if error.param not in REFUSED or error.param not in sent:
                raise
            # Several threads may meet the refusal at once.
            value, instead = options.pop(error.param, None), REFUSED[error.param]
            if instead is not None and value is not None:
                options[instead] = value


def wait_for_turn(ask: Callable[[], Answer], is_over: threading.Event) -> Answer:
    """Return the result of a request, and repeat it while the server limits the rate of requests.

    The client repeats a request twice, after the time that the server names. With many requests at
    once that is too few, and the limit may be for a minute.

    Args:
        is_over: No request is repeated after this event.
    """
    import openai

    end = time.monotonic() + LIMITED_S
    while True:
        try:
            return ask()
        except openai.RateLimitError as error:
            # OpenAI answers with the same status if the account has no credit.
            if error.code == "insufficient_quota" or time.monotonic() > end:
                raise
            if is_over.wait(LIMITED_PAUSE_S):
                raise


def first_choice(response: Any, endpoint: Endpoint) -> Any:
    """Return the first choice of a chat completion.

    The client builds a completion from any document that a server answers with status 200, and
    returns a body that is not JSON as text.

    Raises:
        ServerError: The answer is an error or holds no message; the message has the server's words.
    """
    choices = getattr(response, "choices", None)
    choice = choices[0] if isinstance(choices, list) and choices else None
    if getattr(choice, "message", None) is None:
        raise ServerError(
            f"{endpoint.url}: status 200 without a chat completion: {_words_of(response)}",
            hint="Is an OpenAI-compatible server behind the URL?",
        )
    _check_finish(choice, endpoint)
    return choice


def stream_text(chunk: Any, endpoint: Endpoint) -> str:
    """Return the text that a chunk of a streamed chat completion adds.

    Raises:
        ServerError: The chunk is an error; the message has the server's words.
    """
    if getattr(chunk, "error", None):
        raise ServerError(f"{endpoint.url}: an error inside the stream: {_words_of(chunk)}")
    choices = getattr(chunk, "choices", None)
    choice = choices[0] if isinstance(choices, list) and choices else None
    _check_finish(choice, endpoint)
    return text_of(getattr(getattr(choice, "delta", None), "content", None))


def _check_finish(choice: Any, endpoint: Endpoint) -> None:
    """Check that an answer did not end with an error, as OpenRouter and vLLM mark it."""
    finish = getattr(choice, "finish_reason", None)
    if finish in ("error", "abort"):
        words = _words_of({"error": getattr(choice, "error", None) or "no reason given"})
        raise ServerError(f"{endpoint.url}: the answer ended with finish_reason {finish}: {words}")


def _words_of(answer: Any) -> str:
    """Return the server's own words in a body of any shape."""
    if hasattr(answer, "model_dump"):
        answer = {key: value for key, value in answer.model_dump().items() if value is not None}
    text = answer if isinstance(answer, str) else json.dumps(answer, default=str)
    return error_message(text.encode(errors="replace"))


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
