"""The numeric setup of a process: what decides the bits of a sum besides the run's own settings."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from tuneline.core.environment import cpu_name, gpu_names, library_versions

LIBRARIES = ("accelerate", "bitsandbytes", "peft", "torch", "transformers", "trl", "tuneline")
UNKNOWN = "unknown"


def numeric_setup() -> dict[str, str]:
    """Return the versions, processor, vector instructions, threads and GPUs of this process."""
    versions = library_versions()
    return {
        **{name: versions.get(name, "none") for name in LIBRARIES},
        "processor": cpu_name(),
        "vector instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
        "GPUs": ", ".join(gpu_names()) or "none",
    }


def setup_changes(earlier: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return the entries that differ, in words; a setup that nobody recorded differs in all."""
    return [
        f"{name} was {earlier.get(name, UNKNOWN)}, now {now.get(name, UNKNOWN)}"
        for name in {**now, **earlier}
        if earlier.get(name) != now.get(name)
    ]
