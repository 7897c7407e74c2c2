"""How commands open what their options name, and refuse options that do nothing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tuneline.core.errors import ConfigError

if TYPE_CHECKING:
    from tuneline.core.endpoint import Endpoint
    from tuneline.pipeline.run_config import Run

T = TypeVar("T")
SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}
DEFAULT_KEY_ENV = "VLLM_API_KEY"
EXAMPLES = {
    "--data": "--data FILE",
    "RUN.yaml or --data": "tuneline evaluate RUN.yaml",
    "--out": "--out DIR",
    "--model": "--model NAME",
    "--to": "--to s3://BUCKET/PATH",
    "--from": "--from s3://BUCKET/PATH",
}


def open_run(run_file: Path, overrides: list[str] | None, runs_dir: Path) -> Run:
    """Return the run of a run.yaml.

    Raises:
        ConfigError: Every problem in it, each with its key.
    """
    from tuneline.pipeline.run_config import load_run

    return load_run(run_file, overrides or (), runs_dir)


def endpoint_of(url: str, model: str | None, api_key_env: str | None) -> Endpoint:
    """Return the endpoint at a URL, with the key from the environment. Without a name, the model is
    the only one that the server lists.

    Raises:
        ConfigError: The URL cannot be used, the named variable is not set, or there is no name and
            the server lists no model or several.
        ServerError: There is no name, and the server does not answer.
    """
    from tuneline.core.endpoint import Endpoint, read_key, split_url
    from tuneline.core.served_models import only_model

    split_url(url)
    if api_key_env is not None and api_key_env not in os.environ:
        raise ConfigError(
            f"--api-key-env {api_key_env}: the variable is not set",
            hint=f"Try: export {api_key_env}=KEY",
        )
    url, key = url.rstrip("/"), read_key(os.environ, api_key_env or DEFAULT_KEY_ENV)
    return Endpoint(url, only_model(url, key) if model is None else model, key)


def section_of(
    overrides: list[str] | None, section: str, what: str, example: str
) -> dict[str, Any]:
    """Return the section that `--set` options give to a command without a run.yaml.

    Args:
        overrides: The options, `SECTION.KEY=VALUE` each.
        section: The only section that the command reads, such as `serving`.
        what: The thing that has this section only, for messages.
        example: A key of the section with a value.

    Raises:
        ConfigError: An option is of another section, or malformed.
    """
    from tuneline.core.config import apply_override

    values: dict[str, Any] = {}
    for override in overrides or ():
        if not override.startswith(f"{section}."):
            raise ConfigError(
                f"--set {override}: {what} has the section {section} only",
                hint=f"Try: --set {section}.{example}",
            )
        apply_override(values, override)
    for part in section.split("."):
        values = values.get(part, {})
    return values


def storage_place(url: str | None) -> str | None:
    """Return the URL of a place in object storage, after a check of its form.

    Raises:
        ConfigError: It is not a place in object storage.
    """
    from tuneline.core.storage import require_place

    if url is not None:
        require_place(url)
    return url


def is_url(text: str) -> bool:
    return text.startswith(("http://", "https://"))


def refuse(where: str, options: dict[str, Any]) -> None:
    """Check that no option is given that does nothing in this use of a command.

    Raises:
        ConfigError: Every such option.
    """
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise ConfigError(f"{', '.join(given)}: has no meaning {where}")


def required(value: T | None, option: str) -> T:
    """Return an option's value.

    Raises:
        ConfigError: The option is not given.
    """
    if value is None:
        example = EXAMPLES.get(option)
        raise ConfigError(f"{option} is required here", hint=f"Try: {example}" if example else None)
    return value


def seconds_of(text: str, option: str) -> float:
    """Return a duration such as `90s`, `20m`, `1.5h` or `300` in seconds.

    Raises:
        ConfigError: The text is not a duration above 0.
    """
    number, factor = text, 1.0
    if text[-1:] in SECONDS:
        number, factor = text[:-1], SECONDS[text[-1]]
    try:
        found = float(number) * factor
    except ValueError:
        found = 0.0
    if not 0 < found < float("inf"):
        raise ConfigError(
            f"{option} {text}: expected a duration above 0", hint=f"Try: {option} 20m"
        )
    return found


def whole_numbers(text: str, option: str, example: str) -> list[int]:
    """Return the whole numbers of a list such as `1,4,16`.

    Raises:
        ConfigError: An entry is not a whole number of 1 or more.
    """
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = [0]
    if min(found) < 1:
        raise ConfigError(
            f"{option} {text}: expected whole numbers of 1 or more",
            hint=f"Try: {option} {example}",
        )
    return found


def given(options: dict[str, T | None]) -> dict[str, T]:
    """Return the options that are given."""
    return {name: value for name, value in options.items() if value is not None}
