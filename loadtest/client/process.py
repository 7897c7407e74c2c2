"""One client process: `python -m loadtest.client.process`, told by its parent on standard input.

First a JSON line with the plan, the key (which so never lies on disk) and where the results go;
it answers `ready` when its connections are open; then the line `start NANOSECONDS`, a time on the
monotonic clock, which all processes of a machine share.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import mmap
import os
import resource
import signal
import sys
import time
from collections.abc import MutableSequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import uvloop

from loadtest.client.client import Client
from loadtest.client.clocks import receive_times
from loadtest.client.connection import Request
from loadtest.client.plan import Plan
from loadtest.client.records import Records
from loadtest.client.rows import Seen, to_records
from loadtest.client.scribe import Scribe
from loadtest.client.self_check import MAX_THINNED, Lags, self_check_document
from loadtest.client.session_client import SessionClient
from loadtest.routes.table import ROUTES
from tuneline.core.parent import end_with_parent

NICE = -10
READS_PER_DOCUMENT = 16
"""A read of a document has up to 16 KiB: as many bytes as so many reads of a token or more."""
POOL_LEAD_S = 1.0
"""How long before a start that all pods share the connections are opened anew."""


def main() -> None:
    end_with_parent()  # no load without someone watching it
    # The client must not wait for the server that it measures. Without permission it goes on.
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, NICE)
    # If the kernel groups processes by session, a priority counts only inside the session.
    with contextlib.suppress(OSError):
        os.setsid()
        Path("/proc/self/autogroup").write_text(str(NICE))
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))
    order = json.loads(sys.stdin.readline())
    plan = Plan.from_json(order["plan"])
    out = Path(order["out"])
    mapped = mmap.mmap(order["counters"], 0)
    counters = cast("MutableSequence[int]", memoryview(mapped).cast("B").cast("q"))
    spill = order["spill"]
    requests, client, start_ns = uvloop.run(_run(plan, order["key"], counters, spill))
    parse_started_s = time.process_time()
    scribe = client.scribe
    if scribe is not None and scribe.is_begun:
        records = scribe.finish(requests)
        seen = scribe.seen
        read = scribe.lags
        spread = np.array(read.seconds.spread(MAX_THINNED))
        lags = Lags(spread, read.num_reads, read.num_stamped)
    else:
        records, seen, lags = _parse(plan, requests, client, start_ns)
    records.save(out / f"records-{plan.worker}.npz")
    is_spilled = scribe is not None and scribe.file.num_bytes > 0
    report = {
        "self_check": self_check_document(client.check, lags),
        "parse_cpu_s": time.process_time() - parse_started_s,
        "examples": seen.examples,
        "text_sample": seen.texts,
        "finishes": seen.finishes,
        "named": seen.named,
        "num_validated": seen.num_validated,
        "checked": seen.checked,
        "num_checked": seen.num_checked,
        "spilled": spill["path"] if is_spilled else None,
        "disk_full": scribe is not None and scribe.file.is_full,
    }
    (out / f"worker-{plan.worker}.json").write_text(json.dumps(report), encoding="utf-8")


def _parse(
    plan: Plan, requests: list[Request], client: Client, start_ns: int
) -> tuple[Records, Seen, Lags]:
    """Parse the reads of a run that fits into memory."""
    reads = list(itertools.chain.from_iterable(request.reads for request in requests))
    seen_ns = np.array([read[0] for read in reads], np.int64)
    stamps = [read[1] for read in reads]
    times = receive_times(seen_ns, stamps, client.clock_offsets)
    lags = Lags((seen_ns - times) / 1e9, len(stamps), len(stamps) - stamps.count(None))
    records, seen = to_records(plan, requests, times.tolist(), start_ns)
    return records, seen, lags


async def _run(
    plan: Plan, key: str | None, counters: MutableSequence[int], spill: dict[str, Any] | None
) -> tuple[list[Request], Client, int]:
    client = (Client if plan.sessions is None else SessionClient)(plan, key, counters)
    if spill is not None and plan.sessions is None:
        path, most = Path(spill["path"]), int(spill["most_reads"])
        if not ROUTES[plan.route].events.is_stream:
            most //= READS_PER_DOCUMENT
        client.scribe = Scribe(plan, path, client.ended, client.clock_offsets, most)
    for name in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(name, client.stop)
    await client.open_pool()
    print("ready", flush=True)  # to the parent
    line = sys.stdin.readline()
    if not line.startswith("start "):
        os._exit(0)  # the parent has given up
    start_ns = int(line.split()[1])
    wait_s = (start_ns - time.monotonic_ns()) / 1e9 - POOL_LEAD_S
    if wait_s > POOL_LEAD_S:
        # Servers close connections that nothing is asked on for a few seconds.
        client.close_pool()
        await asyncio.sleep(wait_s)
        await client.open_pool()
    return await client.run(start_ns), client, start_ns


if __name__ == "__main__":
    main()
