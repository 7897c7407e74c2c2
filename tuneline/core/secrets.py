"""Which environment variables hold a secret. Every process that we start is filtered by it."""

from __future__ import annotations

import re
from collections.abc import Mapping

_SECRET_NAME = re.compile(
    r"(KEY|KEY_ID|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|CONNECTION_STRING|_PAT)$",
    re.IGNORECASE,
)
_PASSWORD_IN_URL = re.compile(r"://[^/@\s]*:[^/@\s]+@")


def is_secret_name(name: str) -> bool:
    """Return whether a variable or option of this name holds a secret.

    Only the end of the name counts: `HF_TOKEN` and `api_key` do, `TOKENIZERS_PARALLELISM` does not.
    """
    return _SECRET_NAME.search(name) is not None


def hide_passwords(text: str) -> str:
    """Return a text in which the user and the password of each URL are `***`."""
    return _PASSWORD_IN_URL.sub("://***@", text)


def without_secrets(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that a program of somebody else may inherit.

    A variable is left out if its name says that it holds a secret, or if its value is a URL with a
    password, such as a database or a proxy has.
    """
    return {
        name: value
        for name, value in environ.items()
        if not is_secret_name(name) and not _PASSWORD_IN_URL.search(value)
    }
