"""The URL of an OpenAI-compatible server, the name of the model that it serves, and the API key."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import SplitResult, urlsplit

from tuneline.core.errors import ConfigError


@dataclass(frozen=True)
class Endpoint:
    """`url` ends in `/v1`, as the `openai` client's `base_url` does. The key is never shown."""

    url: str
    model: str
    api_key: str | None = field(default=None, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict)
    """Further headers of a load test's requests. `$NAME` stands for an environment variable."""

    @property
    def is_local(self) -> bool:
        """Return whether the server runs on this machine."""
        return is_loopback(str(urlsplit(self.url).hostname))


def is_loopback(host: str) -> bool:
    """Return whether a host name or an IP address is this machine's loopback interface."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_key(environ: Mapping[str, str], name: str) -> str | None:
    """Return the API key from an environment variable, without white space around it.

    Raises:
        ConfigError: The key has characters that an HTTP header cannot carry. The message names the
            variable and never the key.
    """
    key = environ.get(name, "").strip()
    if not all("!" <= character <= "~" for character in key):
        raise ConfigError(
            f"{name}: the key has blanks or characters that an HTTP header cannot carry; expected "
            "printable ASCII",
            hint=f"Try: export {name}=$(openssl rand -hex 24)",
        )
    return key or None


def split_url(url: str) -> SplitResult:
    """Return the parts of a server's URL.

    Raises:
        ConfigError: Not an http or https URL, or one with a user, a password or a query.
    """
    try:
        parts = urlsplit(url)
        is_sound = parts.port is None or parts.port > 0
    except ValueError:
        raise ConfigError(
            f"--url {url}: not a URL", hint="Try: --url http://127.0.0.1:8000/v1"
        ) from None
    if parts.username is not None or parts.password is not None:
        raise ConfigError(
            f"--url {parts.scheme}://…@{parts.hostname}: a user or password in the URL is not sent",
            hint="Put the key into the environment variable that --api-key-env names.",
        )
    if parts.query or parts.fragment:
        raise ConfigError(
            f"--url {parts.scheme}://{parts.hostname}…: what follows the ? or # is not sent",
            hint="Give the URL up to /v1; a key goes into the environment variable that "
            "--api-key-env names.",
        )
    has_blank = any(character.isspace() for character in url)
    if not is_sound or has_blank or parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(
            f"--url {url}: expected http://HOST:PORT/v1 or https://…",
            hint="Try: --url http://127.0.0.1:8000/v1",
        )
    return parts
