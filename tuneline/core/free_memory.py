"""The free memory of this machine, read without any library."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Literal

from tuneline.core.environment import gpu_names

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


def free_memory_bytes() -> int:
    """Return the free memory of the first GPU if there is one, else of this host or container."""
    if gpu_names():
        return gpu_memory_bytes("free")
    return free_host_bytes()


def free_host_bytes() -> int:
    """Return the free memory of this host or container."""
    return int(min(_host_bytes(MEMINFO, "MemAvailable"), _cgroup_bytes(CGROUP)))


def total_memory_bytes() -> int:
    """Return the memory of this host, or the limit of this container."""
    return int(min(_host_bytes(MEMINFO, "MemTotal"), _cgroup_limit(CGROUP)))


def _host_bytes(meminfo: Path, name: str) -> int:
    for line in meminfo.read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return 0


def _cgroup_limit(cgroup: Path) -> float:
    try:
        limit = (cgroup / "memory.max").read_text(encoding="utf-8").strip()
    except OSError:
        return float("inf")
    return float("inf") if limit == "max" else int(limit)


def _cgroup_bytes(cgroup: Path) -> float:
    """Return what the container's limit leaves; infinity without a limit."""
    try:
        used = int((cgroup / "memory.current").read_text(encoding="utf-8"))
    except OSError:
        return float("inf")
    return max(_cgroup_limit(cgroup) - used, 0)


def gpu_memory_bytes(part: Literal["free", "total"]) -> int:
    """Return the memory of the first GPU; 0 if the driver does not say."""
    program = shutil.which("nvidia-smi") or "nvidia-smi"
    listing = subprocess.run(
        [program, f"--query-gpu=memory.{part}", "--format=csv,noheader,nounits"],
        capture_output=True, text=True, check=False, timeout=20,
    )  # fmt: skip
    first = listing.stdout.split("\n")[0].strip()
    return int(first) * 2**20 if first.isdigit() else 0
