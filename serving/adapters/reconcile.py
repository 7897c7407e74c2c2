"""Make the adapters of a live server those of a list, by the routes that an admin key may use."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from serving.adapters.client import (
    find_reference,
    list_adapters,
    remove_adapter,
    roll_back_adapter,
    send,
)
from tuneline.core.artifact import open_artifact
from tuneline.core.config import StrictModel
from tuneline.core.endpoint import Endpoint
from tuneline.core.errors import ConfigError, ServerError, TunelineError


class DesiredAdapter(StrictModel):
    """One adapter of a list: both folders as the server sees them, and the adapter's digest."""

    adapter: str
    reference: str
    digest: str


_LIST = TypeAdapter(dict[str, DesiredAdapter])
_FORM = (
    'Write JSON: {"NAME": {"adapter": "/runs/…/adapter-…", "reference": "/runs/…/reference-…", '
    '"digest": "…"}}'
)


def read_desired(path: Path) -> dict[str, DesiredAdapter]:
    """Return a list of desired adapters by name.

    Raises:
        ConfigError: The file cannot be read, or is not such a list.
    """
    try:
        return _LIST.validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigError(
            f"{path}: {error.strerror}; expected a list of adapters", hint=_FORM
        ) from None
    except ValidationError as error:
        found = [
            f"{path}: is not a list of adapters: "
            + "".join(f"{part}: " for part in problem["loc"])
            + problem["msg"].lower()
            for problem in error.errors()
        ]
        raise ConfigError(found, hint=_FORM) from None


def describe_adapter(folder: Path, root: Path, root_at: str) -> DesiredAdapter:
    """Return the entry of an adapter artifact and of the reference next to it.

    Args:
        folder: The adapter, below `root`.
        root: `serving.adapters.root` on this machine.
        root_at: The same folder as the server sees it.

    Raises:
        ConfigError: The adapter or its reference is not below `root`.
        ArtifactError: It is not an adapter, or has no reference next to it.
    """
    adapter = open_artifact(folder, kind="adapter")
    places = []
    for path in (adapter.path, find_reference(adapter)):
        try:
            places.append(f"{root_at}/{path.resolve().relative_to(root.resolve()).as_posix()}")
        except ValueError:
            raise ConfigError(f"{path}: is not below serving.adapters.root, {root}") from None
    return DesiredAdapter(adapter=places[0], reference=places[1], digest=adapter.digest)


def reconcile_adapters(
    endpoint: Endpoint, desired: Mapping[str, DesiredAdapter]
) -> list[dict[str, str]]:
    """Add, change and remove adapters until a server has the desired ones; return what was done.

    The server proves each version before it has its name. The version before is given back without
    a new proof if it is the desired one. Nothing is removed after an adapter has failed.

    Returns:
        For each name: `action` (`kept`, `added`, `rolled back`, `removed`) and `digest`.

    Raises:
        ServerError: The server cannot be reached, or the key is not an admin key.
        TunelineError: As `add_adapter`, of the first adapter that failed; the message names all.
            Their earlier versions are still served.
    """
    served = {entry["name"]: entry for entry in list_adapters(endpoint)}
    done: list[dict[str, str]] = []
    failed: list[tuple[str, TunelineError]] = []

    def change(name: str) -> None:
        try:
            action = _change(endpoint, name, desired[name], served.get(name))
        except ServerError:
            raise
        except TunelineError as error:
            failed.append((name, error))
        else:
            done.append({"name": name, "action": action, "digest": desired[name].digest})

    for name in desired:
        if name in served:
            change(name)
    # First what leaves, so that there is room for what comes.
    for name in [] if failed else [name for name in served if name not in desired]:
        remove_adapter(endpoint, name)
        done.append({"name": name, "action": "removed", "digest": served[name]["digest"]})
    for name in desired:
        if name not in served:
            change(name)
    if failed:
        lines = [f"{name}: {error.message}" for name, error in failed]
        raise type(failed[0][1])("\n".join(lines), hint=failed[0][1].hint)
    return done


def _change(
    endpoint: Endpoint, name: str, wanted: DesiredAdapter, entry: Mapping[str, Any] | None
) -> str:
    """Give a name to its desired version, and return what that took."""
    if entry is not None and entry["state"] != "failed" and entry["digest"] == wanted.digest:
        return "kept"
    if entry is not None and entry["previous"] == wanted.digest:
        roll_back_adapter(endpoint, name)
        return "rolled back"
    send(endpoint, "POST", "/adapters", {"name": name, **wanted.model_dump()})
    return "added"
