"""Change the adapters of a live server, with an admin key."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

from tuneline.core.artifact import Artifact, open_artifact
from tuneline.core.endpoint import Endpoint
from tuneline.core.errors import (
    ArtifactError,
    ConfigError,
    InconclusiveError,
    MissingError,
    ServerError,
    TunelineError,
    VerdictError,
)
from tuneline.core.files import MANIFEST
from tuneline.core.openai_client import openai_client

TIMEOUT_S = 1800.0
"""A proof answers every prompt of the reference twice, one at a time."""

ERRORS: dict[str | None, type[TunelineError]] = {
    "adapter_request_refused": ConfigError,
    "adapter_refused": ArtifactError,
    "adapter_not_stored": MissingError,
    "adapter_proof_failed": VerdictError,
    "adapter_proof_inconclusive": InconclusiveError,
}
"""By the code of the server's answer; every other error is a ServerError."""


def add_adapter(
    endpoint: Endpoint, name: str, adapter: Path, reference: Path | None = None
) -> dict[str, Any]:
    """Add an adapter to a server, which proves it and then gives it the name.

    Args:
        adapter: An adapter artifact below `serving.adapters.root`, as the server sees it.
        reference: Its reference; by default the one next to it.

    Returns:
        The server's entry of the adapter, with the figures of the proof in `proof`.

    Raises:
        ConfigError: A path is not below the server's root, or the name cannot be used.
        ArtifactError: The adapter does not fit the server.
        VerdictError: The proof fails; the earlier version is still served.
        InconclusiveError: The proof cannot tell whether the adapter is applied.
        ServerError: The server cannot be reached, or the key is not an admin key.
    """
    fields = {"name": name, "adapter": str(adapter.absolute())}
    if (adapter / MANIFEST).is_file():
        found = open_artifact(adapter, kind="adapter")
        fields["digest"] = found.digest
        reference = reference or find_reference(found)
    elif adapter.is_dir():
        raise ConfigError(
            f"{adapter}: has no {MANIFEST}; expected an adapter artifact",
            hint="Try: runs/NAME/adapter-KEY",
        )
    if reference is None:
        raise ConfigError(
            f"{adapter}: is not a folder of this machine, and its reference is not given",
            hint="Try: --reference DIR, as the server sees it",
        )
    fields["reference"] = str(reference.absolute())
    return send(endpoint, "POST", "/adapters", fields)


def list_adapters(endpoint: Endpoint) -> list[dict[str, Any]]:
    """Return the server's adapters, in the order in which they were added.

    Raises:
        ServerError: The server cannot be reached, or the key is not an admin key.
    """
    return cast("list[dict[str, Any]]", send(endpoint, "GET", "/adapters")["adapters"])


def remove_adapter(endpoint: Endpoint, name: str) -> None:
    """Remove an adapter and its earlier version from a server.

    Raises:
        ConfigError: The server has no such adapter.
        ServerError: The server cannot be reached, or the key is not an admin key.
    """
    send(endpoint, "DELETE", f"/adapters/{quote(name, safe='')}")


def roll_back_adapter(endpoint: Endpoint, name: str) -> dict[str, Any]:
    """Give a name back to the version before, and return the server's entry.

    Raises:
        ConfigError: The server has no such adapter, or no version before.
        ServerError: The server cannot be reached, or the key is not an admin key.
    """
    return send(endpoint, "POST", f"/adapters/{quote(name, safe='')}/roll-back", {})


def find_reference(adapter: Artifact) -> Path:
    """Return the reference of an adapter in the folder that holds both, as in a run.

    Raises:
        ArtifactError: There is none.
    """
    for manifest in sorted(adapter.path.absolute().parent.glob(f"reference*/{MANIFEST}")):
        inputs = open_artifact(manifest.parent).manifest.inputs
        if any(entry.digest == adapter.digest for entry in inputs):
            return manifest.parent
    raise ArtifactError(
        f"{adapter.path}: no reference of this adapter is next to it",
        hint="Try: --reference DIR",
    )


def send(
    endpoint: Endpoint, method: str, path: str, fields: dict[str, str] | None = None
) -> dict[str, Any]:
    """Return the server's answer to one request below `/v1`.

    Raises:
        TunelineError: The error of ERRORS that the server's code means.
        ServerError: The server cannot be reached, or the key is not an admin key.
    """
    with openai_client(endpoint, timeout_s=TIMEOUT_S, max_retries=0) as client:
        import openai

        request: Any = {"POST": client.post, "GET": client.get, "DELETE": client.delete}[method]
        options = {} if fields is None else {"body": fields}
        try:
            answer: Any = request(path, cast_to=object, **options)
        except openai.APIStatusError as error:
            raise _refusal(error, endpoint) or error from None
        except openai.APITimeoutError:
            raise ServerError(
                f"{endpoint.url}: no answer within {TIMEOUT_S:g} s; the server may still be at "
                "work",
                hint=f"Try: tuneline adapters list {endpoint.url}",
            ) from None
    return cast("dict[str, Any]", answer)


def _refusal(error: Any, endpoint: Endpoint) -> TunelineError | None:
    """Return what an answer of the server means; None for an answer that any route can give."""
    if error.code in ERRORS:
        return ERRORS[error.code](_message(error))
    if error.code == "admin_key_required":
        return ServerError(
            f"{endpoint.url}: {_message(error)}",
            hint="Try: tuneline keys add ops --file KEYS --admin   (KEYS is serving.keys_file)",
        )
    if error.status_code == 404:
        return ServerError(
            f"{endpoint.url}: the server takes no adapters at run time",
            hint="Set serving.adapters in run.yaml and start the server again.",
        )
    return None


def _message(error: Any) -> str:
    body = error.body
    return str(body["message"]) if isinstance(body, dict) and "message" in body else error.message
