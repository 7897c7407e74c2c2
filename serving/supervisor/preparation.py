"""The supervisor's work while vLLM imports its libraries: checks, and reading weights ahead."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tuneline.core.errors import ArtifactError, TunelineError
from tuneline.core.free_memory import free_host_bytes

CHUNK_BYTES = 4 * 2**20
MOST_OF_MEMORY = 0.5
"""vLLM itself reads weights that take more of the free memory: they would push out others."""


@dataclass
class Preparation:
    """The outcome of a thread."""

    error: TunelineError | None = None
    ended: threading.Event = field(default_factory=threading.Event)
    """Set it to end the thread early."""


def prepare(
    checks: Sequence[Callable[[], None]], folder: Path, let_load: Callable[[], None]
) -> Preparation:
    """Run the checks in a thread, then let vLLM load the model, then read its weights.

    A check reads every byte of its files, so they are in the page cache after it.
    """
    preparation = Preparation()
    thread = threading.Thread(
        target=_prepare, args=(preparation, checks, folder, let_load), daemon=True
    )
    thread.start()
    return preparation


def _prepare(
    preparation: Preparation,
    checks: Sequence[Callable[[], None]],
    folder: Path,
    let_load: Callable[[], None],
) -> None:
    try:
        for check in checks:
            check()
    except TunelineError as error:
        preparation.error = error
        return
    except OSError as error:
        preparation.error = ArtifactError(f"{error.filename}: cannot be read: {error.strerror}")
        return
    let_load()
    read_ahead(folder, preparation.ended)


def read_ahead(folder: Path, ended: threading.Event) -> int:
    """Read the weights of a model folder into the page cache; return the bytes that were read."""
    num_bytes = 0
    try:
        files = sorted(folder.glob("*.safetensors"))
        if sum(file.stat().st_size for file in files) > MOST_OF_MEMORY * free_host_bytes():
            return 0
        buffer = bytearray(CHUNK_BYTES)
        for path in files:
            with path.open("rb", buffering=0) as file:
                while not ended.is_set() and (count := file.readinto(buffer)):
                    num_bytes += count
    except OSError:
        pass  # vLLM reads the file itself and says what is wrong
    return num_bytes
