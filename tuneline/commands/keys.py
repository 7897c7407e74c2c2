"""The commands that write a file of named API keys."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from tuneline.commands.options import AsJson
from tuneline.commands.printing import emit

KeysFile = Annotated[
    Path, typer.Option("--file", metavar="KEYS.toml", help="The file that serving.keys_file names.")
]
NO_LIMIT = (None, False)
KeyName = Annotated[str, typer.Argument(metavar="NAME", help="Who the key is for.")]


def keys_add(
    name: KeyName,
    file: KeysFile,
    admin: Annotated[bool, typer.Option("--admin", help="May use the admin routes.")] = False,
    model: Annotated[
        list[str] | None, typer.Option(help="A name that it may ask for; all if not given.")
    ] = None,
    requests_per_minute: Annotated[float | None, typer.Option(help="Requests per minute.")] = None,
    tokens_per_minute: Annotated[
        float | None, typer.Option(help="Tokens of prompts and answers per minute.")
    ] = None,
    max_concurrency: Annotated[int | None, typer.Option(help="Requests at once.")] = None,
    priority: Annotated[
        int | None, typer.Option(help="Of waiting requests, the lowest number comes first.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Add a named key to a file, and print the key once."""
    from serving import add_key

    limits = {
        "admin": admin,
        "models": model,
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "max_concurrency": max_concurrency,
        "priority": priority,
    }
    key = add_key(file, name, limits)
    lines = [
        key,
        f"  {file} has its digest only: keep the key now, it is not shown again",
        f"  for the server: --set serving.keys_file={shlex.quote(str(file.absolute()))}",
    ]
    emit({"name": name, "file": str(file), "key": key}, lines, as_json)


def keys_list(file: KeysFile, as_json: AsJson = False) -> None:
    """List the names and limits of a file's keys."""
    from serving import list_keys

    keys = [
        {
            "name": key.name,
            "admin": key.admin,
            "models": None if key.models is None else list(key.models),
            "requests_per_minute": key.requests_per_minute,
            "tokens_per_minute": key.tokens_per_minute,
            "max_concurrency": key.max_concurrency,
            "priority": key.priority,
        }
        for key in list_keys(file)
    ]
    lines = []
    for key in keys:
        limits = [_limit(field, value) for field, value in key.items() if value not in NO_LIMIT]
        lines.append("  ".join([str(key["name"]), ", ".join(limits[1:]) or "-"]))
    emit({"file": str(file), "keys": keys}, lines or ["no keys"], as_json)


def _limit(field: str, value: object) -> str:
    """Return one limit of a key for people."""
    if value is True:
        return field
    if isinstance(value, list):
        return f"{field}={','.join(value) or '[]'}"
    return f"{field}={value:g}" if isinstance(value, float) else f"{field}={value}"


def keys_remove(name: KeyName, file: KeysFile, as_json: AsJson = False) -> None:
    """Remove a key; a running server refuses it from the next second on."""
    from serving import remove_key

    remove_key(file, name)
    emit({"removed": name, "file": str(file)}, [f"removed {name} from {file}"], as_json)
