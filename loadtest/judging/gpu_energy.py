"""The energy that the GPUs of this machine take during a run, by NVML.

NVML counts the energy of a GPU since its driver was loaded, so two readings give the mean power
without samples. The package `nvidia-ml-py` comes with vLLM for CUDA. Without the package, a driver
or such a counter (GPUs before Volta) there are no figures.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from loadtest.report.schema import GpuFigures
from tuneline.core.endpoint import is_loopback, split_url


@dataclass(frozen=True)
class Reading:
    """The counters of all GPUs at one time."""

    at_s: float
    """Monotonic."""
    energy_mj: list[int]
    """Millijoules since the driver was loaded."""


@dataclass
class Meter:
    """Two readings around the time in which requests are in flight."""

    names: list[str]
    read: Callable[[], Reading | None]
    before: Reading | None = None
    after: Reading | None = None
    _was_busy: bool = False

    def note(self, num_in_flight: int) -> None:
        """Take a reading if it moves one end: the first end until a request is in flight, and the
        second end until the first reading after the last request."""
        if num_in_flight or self._was_busy:
            self.after = self.read()
        elif self.after is None:
            self.before = self.read()
        self._was_busy = num_in_flight > 0

    def figures(self, num_output_tokens: float | None) -> GpuFigures | None:
        """Return energy and mean power between the readings; None without two of them, or if a
        counter went back."""
        if self.before is None or self.after is None:
            return None
        pairs = zip(self.before.energy_mj, self.after.energy_mj, strict=True)
        energy_j = [(end - begin) / 1e3 for begin, end in pairs]
        window_s = self.after.at_s - self.before.at_s
        if window_s <= 0 or min(energy_j) < 0:
            return None
        total_j = sum(energy_j)
        per_1000 = 1e3 * total_j / num_output_tokens if num_output_tokens else None
        return GpuFigures(
            names=self.names,
            window_s=window_s,
            mean_power_w=[one / window_s for one in energy_j],
            energy_j=total_j,
            energy_j_per_1000_tokens=per_1000,
        )


@contextmanager
def energy_meter(url: str) -> Iterator[Meter | None]:
    """Yield a meter of this machine's GPUs with its first reading; None if NVML has no counters,
    or if the server at `url` runs on another machine."""
    if not is_loopback(str(split_url(url).hostname)) or importlib.util.find_spec("pynvml") is None:
        yield None
        return
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:  # no driver
        yield None
        return

    def read() -> Reading | None:
        try:
            energy_mj = [int(pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu)) for gpu in gpus]
        except pynvml.NVMLError:  # no counter, or the GPU is lost
            return None
        return Reading(time.monotonic(), energy_mj)

    try:
        gpus = [pynvml.nvmlDeviceGetHandleByIndex(at) for at in range(pynvml.nvmlDeviceGetCount())]
        names = [str(pynvml.nvmlDeviceGetName(gpu)) for gpu in gpus]
        first = read() if gpus else None
        yield None if first is None else Meter(names, read, first)
    finally:
        pynvml.nvmlShutdown()
