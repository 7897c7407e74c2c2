"""The energy of GPUs, read by the real NVML package from a driver library whose truth is known.

The library is compiled here: two GPUs of 100 and 250 watts since the machine started.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.integration.loadtest.test_commands import FAST, at, skip_on_a_host_that_takes_the_cpu

DRIVER = """
#include <string.h>
#include <time.h>
typedef unsigned long device;
int nvmlInit_v2(void) { return 0; }
int nvmlInitWithFlags(unsigned flags) { return 0; }
int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int code) { return "no such counter"; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned at, device *gpu) { *gpu = at + 1; return 0; }
int nvmlDeviceGetName(device gpu, char *name, unsigned length) {
  strncpy(name, gpu == 1 ? "GPU one" : "GPU two", length);
  return 0;
}
int nvmlDeviceGetTotalEnergyConsumption(device gpu, unsigned long long *mj) {
  struct timespec now;
  if (IS_OLD) return 3; /* NVML_ERROR_NOT_SUPPORTED */
  clock_gettime(CLOCK_MONOTONIC, &now);
  *mj = (gpu == 1 ? 100 : 250) * (now.tv_sec * 1000ull + now.tv_nsec / 1000000);
  return 0;
}
"""

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")


def measured_with_a_driver(known: Any, folder: Path, *, is_old: bool) -> dict[str, Any]:
    """Return the scenario of a load test on a machine with that driver."""
    source = folder / "driver.c"
    source.write_text(DRIVER.replace("IS_OLD", str(int(is_old))), encoding="utf-8")
    library = folder / "libnvidia-ml.so.1"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    words = ["--rate", "20", "--requests", "60", "--max-tokens", "8", "--out", "report", *FAST]
    done = subprocess.run(
        [sys.executable, "-m", "tuneline", "loadtest", *at(known), *words],
        cwd=folder, env={**os.environ, "LD_LIBRARY_PATH": str(folder)}, capture_output=True,
        text=True, check=False, timeout=120,
    )  # fmt: skip
    skip_on_a_host_that_takes_the_cpu(done.returncode, done.stderr)
    assert done.returncode == 0, done.stderr
    assert ("GPUs take 100, 250 W" in done.stdout + done.stderr) is not is_old
    (scenario,) = json.loads((folder / "report/report.json").read_text())["scenarios"]
    return dict(scenario)


def test_the_report_has_the_power_of_each_gpu(known: Any, tmp_path: Path) -> None:
    scenario = measured_with_a_driver(known, tmp_path, is_old=False)
    found = scenario["gpu"]
    assert found["names"] == ["GPU one", "GPU two"]
    assert found["mean_power_w"] == pytest.approx([100, 250], rel=0.01)
    assert found["energy_j"] == pytest.approx(350 * found["window_s"], rel=0.01)
    # Sixty requests at twenty per second, with up to a second before and after.
    assert 2.5 < found["window_s"] < 7
    num_tokens = 60 * 8
    per_1000 = 1000 * found["energy_j"] / found["energy_j_per_1000_tokens"]
    assert per_1000 >= num_tokens  # the warm-up's tokens count too


def test_a_gpu_without_the_counter_has_no_figures(known: Any, tmp_path: Path) -> None:
    assert measured_with_a_driver(known, tmp_path, is_old=True)["gpu"] is None
