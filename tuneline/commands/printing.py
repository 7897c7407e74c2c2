"""The output of commands on stdout: lines for people, or one JSON document with `--json`."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneline.core.errors import DiskFullError
from tuneline.core.progress import logger

if TYPE_CHECKING:
    from tuneline.core.artifact import Artifact


@dataclass
class Output:
    """Whether a command has printed its result; its error is then not printed as JSON too."""

    is_printed: bool = False
    lines: tuple[str, ...] = ()
    """The result for people, also if JSON is printed."""
    error: str = ""
    goes_on: bool = False
    """Whether the same command goes on from what is finished, if a signal ends this one."""


POD_MESSAGE = "TUNELINE_POD_MESSAGE"
"""The variable that names a pod's termination message; the manifests set it."""
MESSAGE_SIZE_BYTES = 4096
"""The kubelet's limit of a termination message."""
PIPE_EXIT = 141
"""As a shell reports the end of a program by SIGPIPE."""

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


def set_goes_on() -> None:
    """Say that the same command goes on from what is finished, if a signal ends this one."""
    _output.get(Output()).goes_on = True


def goes_on() -> bool:
    """Return what `set_goes_on` said of the command that runs."""
    return _output.get(Output()).goes_on


def join_streams() -> None:
    """Let stderr join stdout in a pod, whose log merges the two in any order.

    A line of stderr would otherwise appear inside a JSON document.
    """
    if POD_MESSAGE in os.environ:
        sys.stdout.flush()
        os.dup2(sys.stdout.fileno(), sys.stderr.fileno())


def write_message(output: Output) -> None:
    """Write the result or the error to the pod's termination message, if there is one."""
    path = os.environ.get(POD_MESSAGE)
    text = "\n".join([*output.lines, *([f"error: {output.error}"] if output.error else [])])
    if path and text:
        # The kubelet keeps the first bytes; the error is what must be read.
        kept = text.encode()[-MESSAGE_SIZE_BYTES:].decode(errors="ignore")
        try:
            Path(path).write_text(kept, encoding="utf-8")
        except OSError as error:
            logger.warning("%s: cannot be written: %s", path, error.strerror)


def emit(document: Any, lines: list[str], as_json: bool) -> None:
    """Print a command's result."""
    output = _output.get(Output())
    output.is_printed = True
    output.lines = tuple(lines)
    write_out(json.dumps(document, indent=2) if as_json else "\n".join(lines))


def write_out(text: str) -> None:
    """Print a result, or end the process if the reader of stdout has gone (`| head`).

    Raises:
        DiskFullError: The disk of the file that stdout goes to is full.
    """
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # The rest of the buffer would raise again at the end of the process.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(PIPE_EXIT) from None
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise DiskFullError(
            "stdout: the disk is full; the result is not written whole",
            hint="Free some space and run the same command again; finished stages are kept.",
        ) from None


def emit_artifact(artifact: Artifact, as_json: bool) -> None:
    """Print an artifact's manifest, and the payload of a kind that is printed whole."""
    from tuneline.core.artifact_kinds import KINDS
    from tuneline.pipeline.artifact_summary import describe_artifact, payload_path

    document = {"path": str(artifact.path), **artifact.manifest.model_dump()}
    if artifact.kind in KINDS and KINDS[artifact.kind].is_printed:
        # A pod's log is all that outlives the pod.
        document["report"] = json.loads(payload_path(artifact).read_text(encoding="utf-8"))
    emit(document, describe_artifact(artifact), as_json)


def fault(error: BaseException) -> dict[str, Any]:
    """Return an error as a value of a JSON document; an error without an exit code is a bug."""
    return {
        "type": type(error).__name__,
        "message": getattr(error, "message", "") or str(error),
        "hint": getattr(error, "hint", None),
        "exit_code": getattr(error, "exit_code", 1),
    }


def emit_error(error: BaseException) -> None:
    """Print an error as the command's one JSON document, unless a result is printed already."""
    if "--json" in sys.argv and not _output.get(Output()).is_printed:
        # The error keeps its exit code if stdout takes nothing.
        with contextlib.suppress(SystemExit, DiskFullError):
            write_out(json.dumps({"error": fault(error)}, indent=2))
