"""The server's memory and cache while a run goes on, read from its `/metrics`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from loadtest.judging.server_metrics import Scrape
from tuneline.core.vllm_metrics import vllm_metric

MEMORY = "process_resident_memory_bytes"
"""Of the Prometheus client libraries' process collector."""
KV_CACHE = vllm_metric("vllm:kv_cache_usage_perc", "gauge")
INTERVAL_S, JUDGED_INTERVAL_S = 15.0, 1.0
"""Without and with an objective on the server's memory or cache."""
MAX_SAMPLES = 512
"""With more, every other sample is left out and the interval doubles."""


@dataclass
class Samples:
    """Lists with an entry per reading."""

    time_s: list[float] = field(default_factory=list)
    """Seconds from the start of the schedule."""
    memory_mib: list[float | None] = field(default_factory=list)
    kv_cache_usage: list[float | None] = field(default_factory=list)

    def add(self, time_s: float, scrape: Scrape) -> None:
        memory = scrape.values.get(MEMORY)
        self.time_s.append(time_s)
        self.memory_mib.append(None if memory is None else memory / 2**20)
        self.kv_cache_usage.append(scrape.values.get(KV_CACHE))

    def halve(self) -> None:
        for series in (self.time_s, self.memory_mib, self.kv_cache_usage):
            del series[1::2]

    def after(self, start_unix_s: float) -> Samples:
        """Return the samples with times from a start on, which were wall-clock times."""
        return Samples(
            [one - start_unix_s for one in self.time_s], self.memory_mib, self.kv_cache_usage
        )


@contextmanager
def sampled(read: Callable[[], Scrape | None], interval_s: float) -> Iterator[Samples]:
    """Read a server's metrics from time to time while the block runs; times are wall-clock times of
    the begin. If the wall clock is set under way, they go on as before.

    Args:
        read: Returns None if the server shows no metrics; a later reading may succeed.
        interval_s: The first interval.
    """
    samples = Samples()
    ended = threading.Event()
    ahead_s = time.time() - time.monotonic()

    def loop() -> None:
        pause_s = interval_s
        while not ended.wait(pause_s):
            at_s = ahead_s + time.monotonic()
            scrape = read()
            if scrape is None:
                continue
            samples.add(at_s, scrape)
            if len(samples.time_s) >= MAX_SAMPLES:
                samples.halve()
                pause_s *= 2

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        ended.set()
        thread.join()
