"""The output of commands on stdout: lines for people, or one JSON document with `--json`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tuneline.core.artifact import Artifact
    from tuneline.core.errors import TunelineError


@dataclass
class Output:
    """Whether a command has printed its result; its error is then not printed as JSON too."""

    is_printed: bool = False


_output: ContextVar[Output] = ContextVar("output")


@contextmanager
def one_output() -> Iterator[Output]:
    """Return the output of the command that runs in the block."""
    output = Output()
    token = _output.set(output)
    try:
        yield output
    finally:
        _output.reset(token)


def emit(document: Any, lines: list[str], as_json: bool) -> None:
    """Print a command's result."""
    _output.get(Output()).is_printed = True
    print(json.dumps(document, indent=2) if as_json else "\n".join(lines), flush=True)


def emit_artifact(artifact: Artifact, as_json: bool) -> None:
    """Print an artifact's manifest, and the payload of a kind that is printed whole."""
    from tuneline.core.artifact_kinds import KINDS
    from tuneline.pipeline.artifact_summary import describe_artifact, payload_path

    document = {"path": str(artifact.path), **artifact.manifest.model_dump()}
    if artifact.kind in KINDS and KINDS[artifact.kind].is_printed:
        # A pod's log is all that outlives the pod.
        document["report"] = json.loads(payload_path(artifact).read_text(encoding="utf-8"))
    emit(document, describe_artifact(artifact), as_json)


def emit_error(error: TunelineError) -> None:
    """Print an error as the command's one JSON document."""
    fault = {
        "type": type(error).__name__,
        "message": error.message,
        "hint": error.hint,
        "exit_code": error.exit_code,
    }
    print(json.dumps({"error": fault}, indent=2))
