"""The name of the only model that an OpenAI-compatible server lists."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tuneline.core.endpoint import Endpoint, split_url
from tuneline.core.errors import ConfigError
from tuneline.core.openai_client import openai_client
from tuneline.core.progress import logger
from tuneline.core.server_words import printable

LIST_TIMEOUT_S = 10.0
MOST_SHOWN = 8


def only_model(url: str, api_key: str | None) -> str:
    """Return the name of the model that a server lists, for a command without `--model`.

    Raises:
        ConfigError: It lists several models, or has no list.
        ServerError: It cannot be reached or refuses the key.
    """
    with openai_client(Endpoint(url, "", api_key), timeout_s=LIST_TIMEOUT_S) as client:
        import openai

        try:
            body = client.models.with_raw_response.list().http_response.json()
        except (openai.NotFoundError, openai.InternalServerError, ValueError):
            body = None
    name = chosen_name(url, listed_names(body))
    logger.info("--model %s: %s lists no other model", name, url)
    return name


def listed_names(body: Any) -> list[str]:
    """Return the names in the body of `/v1/models`. Some servers send only the list."""
    data = body.get("data") if isinstance(body, dict) else body
    if not isinstance(data, list):
        return []
    found = (one.get("id") for one in data if isinstance(one, dict))
    return [name for name in found if isinstance(name, str) and name]


def chosen_name(url: str, listed: Sequence[str]) -> str:
    """Return the only name of a list. Tuneline's server lists `NAME@DIGEST` next to `NAME`.

    Raises:
        ConfigError: The list has another number of names.
    """
    names = [one for one in listed if one.rpartition("@")[0] not in listed]
    if len(names) == 1:
        return names[0]
    if not names:
        at_v1 = f"Try the URL {url}/v1, or --model NAME" if not split_url(url).path else None
        raise ConfigError(
            f"--model is required here: {url} lists no models", hint=at_v1 or "Try: --model NAME"
        )
    shown = ", ".join(printable(one) for one in names[:MOST_SHOWN])
    more = f" and {len(names) - MOST_SHOWN} more" if len(names) > MOST_SHOWN else ""
    raise ConfigError(
        f"--model is required here: {url} lists {shown}{more}",
        hint=f"Try: --model {printable(names[0])}",
    )
