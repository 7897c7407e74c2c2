"""Long runs: ended requests become records while the run goes on, and the records go to a file.

A short run keeps all reads in memory and parses them after the window. When the reads of the ended
requests are many, or the run is long, the scribe begins. It parses in the time in which the client
would sleep between looks at its sockets, so it delays neither a read nor a request.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from loadtest.client.clocks import forget_clocks, receive_times
from loadtest.client.connection import Request, monotonic_ns
from loadtest.client.plan import Plan
from loadtest.client.records import Records
from loadtest.client.rows import Row, Seen, give_reason, records_of
from loadtest.client.self_check import SelfCheck
from loadtest.client.spill import SpillFile
from loadtest.client.sse import parse_steps
from loadtest.histogram import Histogram

SPILL_AFTER_NS = 600_000_000_000
"""The scribe begins after this time, or with many reads in memory."""
FLUSH_NS = 500_000_000
TICK_WORK_NS = 500_000
"""Work in each tick of 20 ms, next to the work in naps."""
TICK_HURRY_NS = 10_000_000
"""The same if requests end faster than they are parsed: the memory comes first."""
KEPT_OFFSETS_S = 60
"""Clock offsets are kept for this long after the longest request."""


@dataclass
class ReadLags:
    """How long reads lay in the kernel."""

    seconds: Histogram = field(default_factory=Histogram)
    num_reads: int = 0
    num_stamped: int = 0


class Scribe:
    """Parses ended requests and writes their records.

    Args:
        plan: The orders of this process.
        path: The file of records.
        ended: The client's ended requests, in the order of their ends.
        offsets: The client's clock offsets: an entry per second, and more while the wall clock is
            set.
        spill_reads: Reads of ended requests that are kept before the scribe begins.
    """

    def __init__(
        self,
        plan: Plan,
        path: Path,
        ended: deque[Request],
        offsets: list[tuple[int, int]],
        spill_reads: int,
    ) -> None:
        self.plan = plan
        self.file = SpillFile(path)
        self.ended, self.offsets, self.spill_reads = ended, offsets, spill_reads
        self.start_ns = 0
        self.is_begun = False
        self.num_reads = 0
        """Of the ended requests that are not parsed yet."""
        self.steps: Iterator[None] | None = None
        self.rows: list[Row] = []
        self.flushed_ns = 0
        self.seen = Seen()
        self.lags = ReadLags()
        self.work_ns = 0
        self.keep_ns = round((plan.timeout_s + KEPT_OFFSETS_S) * 1e9)

    def tick(self, now_ns: int, due_ns: int, check: SelfCheck) -> bool:
        """Work a little, and write what is parsed; return False if the disk is full.

        Args:
            due_ns: When the next request is due.
        """
        if not self.is_begun:
            is_long = now_ns - self.start_ns > SPILL_AFTER_NS
            self.is_begun = is_long or self.num_reads > self.spill_reads
            return True
        check.fold()
        forget_clocks(self.offsets, now_ns - self.keep_ns)
        hurry = self.num_reads > 2 * self.spill_reads
        until_ns = now_ns + (TICK_HURRY_NS if hurry else TICK_WORK_NS)
        self.work(until_ns if hurry else min(until_ns, due_ns))
        if now_ns - self.flushed_ns > FLUSH_NS and self.rows:
            self.flushed_ns = now_ns
            return self.flush()
        return True

    def work(self, until_ns: int) -> None:
        """Parse ended requests until a time."""
        began_ns = now_ns = monotonic_ns()
        while now_ns < until_ns:
            if self.steps is None:
                # Until the clocks are compared again, the kernel's stamps are not exact.
                if not self.ended or (self.ended[0].end_ns or 0) > self.offsets[-1][0]:
                    break
                self.steps = self.parse(self.ended.popleft())
            if next(self.steps, self) is self:
                self.steps = None
            now_ns = monotonic_ns()
        self.work_ns += now_ns - began_ns

    def parse(self, request: Request) -> Iterator[None]:
        """Parse one request in short steps, and let its reads go."""
        reads = request.reads
        self.num_reads -= len(reads)
        stamps = [stamp for _, stamp, _ in reads]
        seen_ns = np.array([seen for seen, _, _ in reads], np.int64)
        times_ns = receive_times(seen_ns, stamps, self.offsets)
        self.lags.seconds.add((seen_ns - times_ns) / 1e9)
        self.lags.num_reads += len(reads)
        self.lags.num_stamped += len(reads) - stamps.count(None)
        times = times_ns.tolist()
        steps = parse_steps(
            times,
            [data for _, _, data in reads],
            closed=request.closed,
            keep_text=self.seen.wants_text(self.plan),
            route=self.plan.route,
        )
        answer = yield from steps
        give_reason(request, answer)
        self.seen.validate(self.plan, request, answer)
        self.seen.note(self.plan, request, answer)
        request.reads = []
        self.rows.append(Row(request, answer, times[0] if times else None))

    def flush(self) -> bool:
        """Write the parsed rows as a chunk; return False if the disk is full."""
        rows, self.rows = self.rows, []
        if self.file.append(records_of(self.plan, rows, self.start_ns)):
            return True
        self.rows = rows
        return False

    def finish(self, left: list[Request]) -> Records:
        """Parse and write all that is left; return the records that the disk has no space for.

        Args:
            left: The ended requests that were not parsed, and those that did not end.
        """
        for _ in self.steps or ():
            pass
        self.ended.clear()
        for request in left:
            for _ in self.parse(request):
                pass
            if len(self.rows) >= 1000 and not self.file.is_full:
                self.flush()
        if self.rows and not self.file.is_full:
            self.flush()
        rows, self.rows = self.rows, []
        self.file.close()
        return records_of(self.plan, rows, self.start_ns)
