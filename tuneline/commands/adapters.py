"""The commands that change the adapters of a live server."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from tuneline.commands.option_values import endpoint_of
from tuneline.commands.options import AsJson, KeyEnv
from tuneline.commands.printing import emit
from tuneline.core.digests import short_digest
from tuneline.core.progress import logger

ServerUrl = Annotated[str, typer.Argument(metavar="URL", help="The server, up to and with /v1.")]
AdapterName = Annotated[str, typer.Argument(metavar="NAME", help="The name of the adapter.")]


def adapters_add(
    url: ServerUrl,
    adapter: Annotated[
        Path,
        typer.Argument(
            metavar="DIR", help="An adapter artifact below serving.adapters.root of the server."
        ),
    ],
    name: Annotated[str, typer.Option(help="The name that clients ask for.")],
    reference: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Its reference; the one next to it if not given."),
    ] = None,
    api_key_env: KeyEnv = None,
    as_json: AsJson = False,
) -> None:
    """Load an adapter, prove it, and only then give it its name.

    Exits with 6 if the proof fails; the earlier version is then still served.
    """
    from serving import add_adapter

    server = _server(url, api_key_env)
    logger.info("  the server loads the adapter and answers each prompt of its reference")
    with _naming_the_list(url):
        entry = add_adapter(server, name, adapter, reference)
    proof = entry["proof"]
    line = (
        f"{name}: {short_digest(entry['digest'])} is served; {proof['num_equal_answers']} of "
        f"{proof['num_prompts']} answers equal, largest difference "
        f"{proof['max_logprob_difference']:.2g} nats"
    )
    emit(entry, [line, *_earlier(entry)], as_json)


def adapters_apply(
    url: ServerUrl,
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="JSON: by name adapter, reference and digest."),
    ],
    api_key_env: KeyEnv = None,
    as_json: AsJson = False,
) -> None:
    """Make the adapters of a server those of a file, each proven before it has its name.

    Exits as `add` does if an adapter fails; the earlier version is then still served, and nothing
    is removed.
    """
    from serving import read_desired, reconcile_adapters

    desired = read_desired(file)
    with _naming_the_list(url):
        done = reconcile_adapters(_server(url, api_key_env), desired)
    lines = [f"{one['name']}: {short_digest(one['digest'])} is {one['action']}" for one in done]
    emit({"adapters": done}, lines or ["no adapters"], as_json)


def adapters_list(url: ServerUrl, api_key_env: KeyEnv = None, as_json: AsJson = False) -> None:
    """List the adapters of a server, with those that failed their proof after a start."""
    from serving import list_adapters

    entries = list_adapters(_server(url, api_key_env))
    lines = []
    for entry in entries:
        reason = f": {entry['reason']}" if entry["reason"] else ""
        lines.append(f"{entry['name']}  {short_digest(entry['digest'])}  {entry['state']}{reason}")
        lines += _earlier(entry)
    emit({"adapters": entries}, lines or ["no adapters"], as_json)


def adapters_remove(
    url: ServerUrl, name: AdapterName, api_key_env: KeyEnv = None, as_json: AsJson = False
) -> None:
    """Remove an adapter; requests in progress finish."""
    from serving import remove_adapter

    with _naming_the_list(url):
        remove_adapter(_server(url, api_key_env), name)
    emit({"removed": name}, [f"removed {name}"], as_json)


def adapters_roll_back(
    url: ServerUrl, name: AdapterName, api_key_env: KeyEnv = None, as_json: AsJson = False
) -> None:
    """Give the name back to the version before, which is still loaded."""
    from serving import roll_back_adapter

    with _naming_the_list(url):
        entry = roll_back_adapter(_server(url, api_key_env), name)
    line = f"{name}: {short_digest(entry['digest'])} is served"
    emit(entry, [line, *_earlier(entry)], as_json)


@contextlib.contextmanager
def _naming_the_list(url: str) -> Iterator[None]:
    """After Ctrl-C, say how to see what the server did: it does not hear of the interrupt."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):  # the command line turns a signal into SystemExit
        hint = f"The server may still be at work. Try: tuneline adapters list {url}"
        typer.echo(hint, err=True)
        raise


def _server(url: str, api_key_env: str | None) -> Any:
    return endpoint_of(url, "adapters", api_key_env)


def _earlier(entry: dict[str, Any]) -> list[str]:
    if entry["previous"] is None:
        return []
    return [f"  the version before, for a roll-back: {short_digest(entry['previous'])}"]
