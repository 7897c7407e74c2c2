"""Peak memory of a run, and the memory that is free before it."""

from __future__ import annotations

import contextlib
from pathlib import Path

import torch

STATUS = Path("/proc/self/status")


def start_measurement() -> int:
    """Start a new measurement of the peak, and return the bytes that are in use now."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return int(torch.cuda.memory_allocated())
    # A container may forbid it: the peak is then that of the whole process.
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM to VmRSS; see proc(5)
    return _status_bytes("VmRSS")


def peak_memory_bytes() -> int:
    """Return the peak memory of the GPU if there is one, else of this process."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return _status_bytes("VmHWM")


def memory_bytes() -> int:
    """Return the memory in use now: of the GPU if there is one, else of this process."""
    if torch.cuda.is_available():
        return int(torch.cuda.memory_allocated())
    return _status_bytes("VmRSS")


def _status_bytes(name: str) -> int:
    for line in STATUS.read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return 0
