"""Peak memory of a run."""

from __future__ import annotations

import resource

import torch


def reset_peak_memory() -> None:
    """Start a new measurement; the memory of a process cannot be reset."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_memory_bytes() -> int:
    """Return the peak memory of the GPU if there is one, else of this process."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
