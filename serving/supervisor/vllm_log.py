"""Reading vLLM's log: which line says why the server died, and where its start spent time."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

TAIL_BYTES = 64 * 1024
NUM_SHOWN = 15
NUM_KEPT = 2
MOST_BYTES = 64 * 1024 * 1024

# "(EngineCore pid=12) ERROR 11-21 09:15:02 [core.py:1234] " in front of a line of a traceback.
PREFIX = re.compile(
    r"^(\(\S+ pid=\d+\) ?)?((ERROR|WARNING|INFO|DEBUG) \d\d-\d\d \d\d:\d\d:\d\d \[\S+\] ?)?"
)
ERROR = re.compile(r"^(?:[A-Za-z_][\w.]*\.)?([A-Za-z_]\w*(?:Error|Exception|Exit))(: .*)?$")
USAGE = re.compile(r"^vllm serve: error: (.*)$")

# Seconds that vLLM's processes report for themselves; with several workers, the longest counts.
TOOK = {
    "weights": re.compile(r"(?:Initializing model|Loading weights) took ([\d.]+) s"),
    "compile and warm-up": re.compile(r"init engine \(.*\) took ([\d.]+) s"),
}

# Errors that only say that another one came before.
SECOND_HAND = (
    "Engine core initialization failed", "WorkerProc initialization failed",
    "Worker failed with error", "EngineCore encountered an issue",
    "CancelledError", "SystemExit: 3",
)  # fmt: skip


def keep_earlier_logs(path: Path) -> None:
    """Rename `NAME` to `NAME.1`, and `NAME.1` to `NAME.2`; the oldest log is removed."""
    _shift(path, path)


def keep_log_small(path: Path) -> None:
    """Move a log that is larger than MOST_BYTES to `NAME.1`, as logrotate's `copytruncate` does.

    The server's processes append to the file that they have open, so the file itself stays. A disk
    without room for the copy leaves the log as it is.
    """
    copy = path.with_name(f"{path.name}.part")
    with contextlib.suppress(OSError):
        if path.stat().st_size <= MOST_BYTES:
            return
        try:
            shutil.copyfile(path, copy)
        except OSError:
            copy.unlink(missing_ok=True)
            raise
        os.truncate(path, 0)
        _shift(path, copy)


def _shift(path: Path, newest: Path) -> None:
    """Rename `newest` to `NAME.1`, and `NAME.1` to `NAME.2`."""
    for number in range(NUM_KEPT, 0, -1):
        earlier = newest if number == 1 else path.with_name(f"{path.name}.{number - 1}")
        if earlier.exists() and earlier.stat().st_size:
            earlier.replace(path.with_name(f"{path.name}.{number}"))


def last_lines(path: Path, start: int = 0) -> list[str]:
    """Return the lines of the last 64 KiB behind byte `start`, without empty ones.

    A log that was cut off since, by logrotate's `copytruncate`, is read from its beginning.
    """
    with path.open("rb") as log:
        size = log.seek(0, 2)
        log.seek(max(start if start <= size else 0, size - TAIL_BYTES))
        text = log.read().decode(errors="replace")
    return [line.rstrip() for line in text.splitlines() if line.strip()]


def engine_parts_s(path: Path, start: int = 0) -> dict[str, float]:
    """Return the seconds of the parts of the engine's start, from the log behind byte `start`."""
    with path.open("rb") as log:
        log.seek(start)
        lines = log.read().decode(errors="replace").splitlines()
    found: dict[str, dict[str, float]] = {}
    for line in lines:
        for part, pattern in TOOK.items():
            if match := pattern.search(line):
                process = line.partition(") ")[0]
                seconds = found.setdefault(part, {})
                seconds[process] = seconds.get(process, 0.0) + float(match[1])
    return {part: round(max(seconds.values()), 2) for part, seconds in found.items()}


def with_engine_parts(phases_s: dict[str, float], parts_s: dict[str, float]) -> dict[str, float]:
    """Return the phases of a start with the parts of `engine` taken out of it, in their order."""
    start_s: dict[str, float] = {}
    for phase, seconds in phases_s.items():
        if phase == "engine":
            start_s[phase] = max(round(seconds - sum(parts_s.values()), 2), 0.0)
            start_s |= parts_s
        else:
            start_s[phase] = seconds
    return start_s


def is_disk_full(lines: Sequence[str]) -> bool:
    """Return whether the end of the log says that a disk is full."""
    return any("No space left on device" in line for line in lines)


def cause(lines: Sequence[str]) -> tuple[str | None, list[str]]:
    """Return the error that the process ended with, as `ValueError: ...`, and the lines before it.

    Without a line that tells it, None and the last lines.
    """
    found, end = None, len(lines)
    for position, line in enumerate(lines):
        text = PREFIX.sub("", line)
        usage, error = USAGE.match(text), ERROR.match(text)
        if usage:
            found, end = usage[1], position + 1
        elif error and not any(words in text for words in SECOND_HAND):
            found, end = error[1] + (error[2] or ""), position + 1
            # pydantic says only "1 validation error for X" there, and which one on the next lines.
            if re.search(r"\d+ validation errors? for \w+$", text):
                end = min(position + 3, len(lines))
                found += "".join(
                    f" {PREFIX.sub('', line).strip()}" for line in lines[position + 1 : end]
                )
    return found, list(lines[max(end - NUM_SHOWN, 0) : end])
