"""The free memory of the machine that trains, read without any library."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tuneline.core.environment import gpu_names

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


def free_memory_bytes() -> int:
    """Return the free memory of the first GPU if there is one, else of this host or container."""
    if gpu_names():
        return _free_gpu_bytes()
    return int(min(_available_bytes(MEMINFO), _cgroup_bytes(CGROUP)))


def _available_bytes(meminfo: Path) -> int:
    for line in meminfo.read_text(encoding="utf-8").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def _cgroup_bytes(cgroup: Path) -> float:
    """Return what the container's limit leaves; infinity without a limit."""
    try:
        limit = (cgroup / "memory.max").read_text(encoding="utf-8").strip()
        used = (cgroup / "memory.current").read_text(encoding="utf-8").strip()
    except OSError:
        return float("inf")
    return float("inf") if limit == "max" else max(int(limit) - int(used), 0)


def _free_gpu_bytes() -> int:
    program = shutil.which("nvidia-smi") or "nvidia-smi"
    listing = subprocess.run(
        [program, "--query-gpu=memory.free", "--format=csv,noheader,nounits"],
        capture_output=True, text=True, check=False, timeout=20,
    )  # fmt: skip
    first = listing.stdout.split("\n")[0].strip()
    return int(first) * 2**20 if first.isdigit() else 0
