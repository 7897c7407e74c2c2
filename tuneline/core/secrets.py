"""Which variables, options and words hold a secret.

Every process that we start is filtered by it, and so is every text of somebody else's program that
we print.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_ENDS = (
    r"(?:KEY|KEY_ID|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|CONNECTION_STRING|_PAT)"
)
_SECRET_NAME = re.compile(_ENDS + "$", re.IGNORECASE)
_PASSWORD_IN_URL = re.compile(r"://[^/@\s:]*:(?!\d{1,5}(?:[/?#]|$))[^@\s]+@")
"""The secret of a store may hold a slash; a port with a path is not a password."""
_SIGNATURE_IN_URL = re.compile(
    r"""([?&](?:sig|x-amz-signature|x-amz-security-token|x-goog-signature)=)[^&\s"'#]+""",
    re.IGNORECASE,
)
"""A URL that a store has signed gives access to each reader."""
_KNOWN_FORM = re.compile(
    r"\b(?:hf_\w{20,}|sk-[\w-]{16,}|gh[pousr]_\w{20,}|github_pat_\w{20,}|AKIA[0-9A-Z]{16}|"
    r"xox[abprs]-[\w-]{10,}|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*)"
)
_AUTHORIZATION = re.compile(
    r"""(\bAuthorization["']?\s*[:=]\s*["']?(?:(?:Bearer|Basic)\s+)?|\bBearer\s+)"""
    r"""(?!(?:Bearer|Basic)\b)[^\s"',]{6,}""",
    re.IGNORECASE,
)
_VALUE = r"""(?:"[^"]*"|'[^']*'|\[[^\]]*\]|[^\s,;"'\[\]{}()&]+)"""
_ASSIGNED = re.compile(
    rf"""(?P<name>[\w-]{{0,64}}{_ENDS})(?P<between>["']?\s*[=:]\s*)(?P<value>{_VALUE})""",
    re.IGNORECASE,
)
_OPTION = re.compile(rf"(--[\w-]{{0,64}}{_ENDS}\s+)(?!-){_VALUE}", re.IGNORECASE)
_VARIABLE = re.compile(r"(?P<equals>=?)[\"']?\$(?:\(\w+\)|\{\w+\}|\w+)[\"']?")
_KNOWN_PLAIN = re.compile(
    r"^(?:(?:bos|eos|pad|unk|sep|cls|mask|image|audio|video|special|stop|next|last|first)_?token)$",
    re.IGNORECASE,
)
_NO_VALUE = {"none", "null", "true", "false", "***"}
HIDDEN = "***"


def is_secret_name(name: str) -> bool:
    """Return whether a variable or option of this name holds a secret.

    Only the end of the name counts: `HF_TOKEN` and `api_key` do, `TOKENIZERS_PARALLELISM` does not.
    """
    return _SECRET_NAME.search(name) is not None


def variable_name(text: str) -> str:
    """Return the name of an environment variable that holds a secret.

    Raises:
        ValueError: It is not a name; perhaps it is the secret itself, so the message leaves it out.
    """
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", text) or _KNOWN_FORM.fullmatch(text):
        raise ValueError(
            "is not the name of a variable; the key itself goes into the environment only"
        )
    return text


def hide_passwords(text: str) -> str:
    """Return a text in which user and password, and the signature, of each URL are `***`."""
    return _SIGNATURE_IN_URL.sub(rf"\1{HIDDEN}", _PASSWORD_IN_URL.sub("://***@", text))


def keys_with_passwords(values: Any, key: str = "") -> Iterator[str]:
    """Return the keys of a document, such as `data.path`, whose text has a URL with a password or a
    signature."""
    if isinstance(values, str):
        if hide_passwords(values) != values:
            yield key
        return
    entries: Any = ()
    if isinstance(values, Mapping):
        entries = values.items()
    elif isinstance(values, list | tuple):
        entries = enumerate(values)
    for name, value in entries:
        yield from keys_with_passwords(value, f"{key}.{name}" if key else str(name))


def first_line(error: BaseException) -> str:
    """Return the first line of a library's error, without the passwords in its URLs."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return hide_passwords(lines[0])[:300] if lines else type(error).__name__


def hide_secrets(text: str) -> str:
    """Return a text of another program in which secrets are `***`.

    A secret is recognized by its form, by the name that it is assigned to (`HF_TOKEN=...`,
    `"api_key": "..."`), by its option (`--api-key ...`), or as the password of a URL.
    """
    text = _AUTHORIZATION.sub(rf"\1{HIDDEN}", hide_passwords(text))
    text = _OPTION.sub(rf"\1{HIDDEN}", _KNOWN_FORM.sub(HIDDEN, text))
    return _ASSIGNED.sub(_hide_assigned, text)


def _hide_assigned(found: re.Match[str]) -> str:
    name, between, value = found["name"], found["between"], found["value"]
    # "Missing key: lm_head.weight" and "token: 5" are words of a log.
    is_word = between.strip() == ":" and name.lower() in ("key", "token")
    if is_word or _KNOWN_PLAIN.search(name) or value.lower() in _NO_VALUE:
        return found[0]
    return name + between + HIDDEN


def hide_flags(words: Sequence[str]) -> list[str]:
    """Return the words of a command in which the values of options with secrets are `***`.

    An option such as `--api-key` takes every word up to the next option.
    """
    found, is_value = [], False
    for word in words:
        is_option = word.startswith("-")
        found.append(HIDDEN if is_value and not is_option else hide_secrets(word))
        is_value = (is_value and not is_option) or (
            is_option and "=" not in word and is_secret_name(word.lstrip("-").replace("-", "_"))
        )
    return found


def has_secrets(words: Sequence[str]) -> bool:
    """Return whether a command has a secret itself, not as a variable such as `$(TOKEN)`."""
    without = [
        _VARIABLE.sub(lambda found: "=none" if found["equals"] else "-", word) for word in words
    ]
    return hide_flags(without) != without


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
