"""Memory of a merge, measured: it does not grow with the model."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from benchmarks.merge import Shape, write_adapter, write_model

BOUND_MIB = 100
"""The adapter's matrices of one module and a few blocks of 8 MiB."""

CHILD = """
import sys
from pathlib import Path
from export.config import MergeConfig
from export.merge import merge
from tuneline.core.model_source import ModelSource

def mib(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024

base, adapter, out = map(Path, sys.argv[1:])
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from here
before = mib("VmRSS")
merge(MergeConfig(), ModelSource("base", base, "sha256:0", "base-model"), adapter, out)
print(mib("VmHWM") - before)
"""


def peak_mib(folder: Path, shape: Shape) -> float:
    """Peak resident memory of merging a model of this shape, over what the imports take."""
    base, adapter = write_model(folder / "base", shape), write_adapter(folder / "adapter", shape)
    root = Path(__file__).parents[3]
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(base), str(adapter), str(folder / "out")],
        capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(root)},
    )  # fmt: skip
    assert child.returncode == 0, child.stderr
    return float(child.stdout)


def test_memory_is_bounded_whatever_the_size(tmp_path: Path) -> None:
    """One shard of 253 MiB with tensors of 62 MiB, 125 in float32: neither is held in memory."""
    shape = Shape(16000, 2048, 8192, 1, 16, 16, False)
    peak = peak_mib(tmp_path, shape)
    size_mib = (tmp_path / "base" / "model.safetensors").stat().st_size / 2**20
    assert size_mib > 250
    assert peak < BOUND_MIB, f"{peak:.0f} MiB for a model of {size_mib:.0f} MiB"
