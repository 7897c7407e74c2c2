"""The journal of a run that writes files: what is finished, so that a killed run can go on."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from export.weights.layout import OutputFile
from tuneline.core.progress import logger


def note_finished(journal: Path, file: OutputFile, finished: int, sha256: str) -> None:
    """Note that the first `finished` outputs of a file are on the disk, with their hash."""
    line = {"file": file.name, "outputs": finished, "sha256": sha256}
    with journal.open("a", encoding="utf-8") as opened:
        opened.write(json.dumps(line) + "\n")
        opened.flush()
        os.fsync(opened.fileno())


def read_journal(journal: Path) -> dict[str, list[tuple[int, str]]]:
    """Return, by file, how many outputs were finished and the SHA-256 of the file up to there.

    A line that the run was writing when it was killed is skipped.
    """
    noted: dict[str, list[tuple[int, str]]] = {}
    for line in journal.read_text(encoding="utf-8", errors="replace").splitlines()[1:]:
        try:
            note = json.loads(line)
            noted.setdefault(note["file"], []).append((int(note["outputs"]), note["sha256"]))
        except (json.JSONDecodeError, KeyError, TypeError, ValueError):
            continue
    return noted


def find_finished(file: OutputFile, path: Path, noted: list[tuple[int, str]]) -> tuple[int, Any]:
    """Return how many outputs of a file are on the disk as noted, and the hash up to there.

    The rest of the file is cut off. Every byte is hashed again: after a power failure the disk may
    hold less than the journal says.
    """
    good, hasher = 0, hashlib.sha256()
    running = hashlib.sha256()
    position = 0
    if path.exists():
        with path.open("r+b") as opened:
            if opened.read(len(file.header)) == file.header:
                opened.seek(0)
                for count, sha256 in sorted(noted):
                    end = file.end_of(count) if 0 < count <= len(file.outputs) else -1
                    if not _hash_to(running, opened, end - position):
                        break
                    position = end
                    # A note that differs may come from a run whose bytes were thrown away since.
                    if running.hexdigest() == sha256:
                        good, hasher = count, running.copy()
            opened.truncate(file.end_of(good) if good else 0)
            if noted and not good:
                logger.info("  %s: differs from what the journal says; starting anew", path.name)
    return good, hasher


def _hash_to(hasher: Any, opened: Any, num_bytes: int) -> bool:
    """Hash the next `num_bytes` bytes; return whether the file has that many."""
    while num_bytes > 0:
        chunk = opened.read(min(num_bytes, 2**20))
        if not chunk:
            return False
        hasher.update(chunk)
        num_bytes -= len(chunk)
    return num_bytes == 0
