"""The headers that `loadtest.headers` adds to each request, and the key's own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from tuneline.core.errors import ConfigError

if TYPE_CHECKING:
    from loadtest.config import LoadTestConfig
    from tuneline.core.endpoint import Endpoint


def with_headers(config: LoadTestConfig, endpoint: Endpoint) -> Endpoint:
    """Return an endpoint whose requests have the headers of the configuration.

    Raises:
        ConfigError: A variable that a header names is not set, or cannot be sent.
    """
    header_values(config.headers)
    return replace(endpoint, headers=config.headers)


def header_values(headers: Mapping[str, str]) -> dict[str, str]:
    """Return headers with the values that are sent: `$NAME` is that of an environment variable, so
    that no plan and no report holds it.

    Raises:
        ConfigError: The variable is not set, or cannot be sent.
    """
    found = {}
    for name, value in headers.items():
        if value.startswith("$"):
            variable = value.removeprefix("$")
            value = os.environ.get(variable, "").strip()
            if not value or not all(" " <= character <= "~" for character in value):
                what = "not printable ASCII" if value else "not set"
                raise ConfigError(
                    f"loadtest.headers.{name}: the environment variable {variable} is {what}",
                    hint=f"Try: export {variable}=...",
                )
        found[name] = value
    return found


def header_lines(headers: Mapping[str, str], key: str | None) -> str:
    """Return the lines of the headers and of the API key; a header `Authorization` replaces the
    key."""
    values = header_values(headers)
    if key and not any(name.lower() == "authorization" for name in values):
        values = {"Authorization": f"Bearer {key}", **values}
    return "".join(f"{name}: {value}\r\n" for name, value in values.items())
