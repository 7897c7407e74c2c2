"""The `openai` client of an endpoint, and its errors in our words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tuneline.core.endpoint import Endpoint
from tuneline.core.environment import require
from tuneline.core.errors import ServerError

if TYPE_CHECKING:
    from openai import OpenAI


@contextmanager
def openai_client(endpoint: Endpoint, timeout_s: float) -> Iterator[OpenAI]:
    """A client of `endpoint`; what it raises inside the block becomes a ServerError.

    Raises:
        MissingError: The openai package is not installed.
        ServerError: The server cannot be reached, refuses or answers wrongly.
    """
    openai = require("openai", "serve")
    # A proxy cannot reach this machine's own loopback address.
    client = openai.OpenAI(
        base_url=endpoint.url,
        api_key=endpoint.api_key or "none",
        timeout=timeout_s,
        http_client=openai.DefaultHttpxClient(trust_env=not endpoint.is_local),
    )
    try:
        with client:
            yield client
    except openai.AuthenticationError:
        raise ServerError(
            f"{endpoint.url}: the key is missing or not the server's",
            hint="Set VLLM_API_KEY (or what serving.api_key_env names) to the server's key.",
        ) from None
    except openai.NotFoundError as error:
        raise ServerError(
            f"{endpoint.url}: model {endpoint.model!r}: {error.message}",
            hint=f"The names it serves: curl {endpoint.url}/models",
        ) from None
    except openai.APIStatusError as error:
        raise ServerError(f"{endpoint.url}: status {error.status_code}: {error.message}") from None
    except openai.APITimeoutError:
        raise ServerError(f"{endpoint.url}: no answer within {timeout_s:g} s") from None
    except openai.APIConnectionError as error:
        reason = error.__cause__ or error
        raise ServerError(
            f"{endpoint.url}: cannot be reached ({reason})",
            hint="Is it running? Start it with: tuneline serve RUN.yaml",
        ) from None
