"""The client processes of one scenario: started, watched at 1 Hz, ended, their records joined."""

from __future__ import annotations

import json
import mmap
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from loadtest.client.plan import Plan
from loadtest.client.records import Records, join_records
from tuneline.core.errors import ConfigError, ServerError

COUNTERS_BYTES = 4 * 8
START_DELAY_S = 0.2
WATCH_INTERVAL_S = 1.0
END_MARGIN_S = 60.0
"""For connecting, closing and parsing."""


@dataclass(frozen=True)
class Counters:
    """The clients' progress."""

    num_begun: int
    num_answered: int
    num_failed: int
    num_in_flight: int


@dataclass(frozen=True)
class Measured:
    """The records of one scenario."""

    records: Records
    workers: list[dict[str, Any]]
    """Each process's account of itself."""
    start_unix_s: float
    """Wall-clock time of second zero of the records."""
    ended_early: bool = False
    """The watch ended it."""


Watch = Callable[[Counters], bool]
"""Called each second; True ends the run, and what is in flight stays unfinished."""


def run_workers(
    plan: Plan,
    key: str | None,
    watch: Watch = lambda _: False,
    *,
    workers: range | None = None,
    start: Callable[[], float] | None = None,
) -> Measured:
    """Run a plan in `plan.num_workers` processes and return all its records.

    Args:
        plan: What to send.
        key: The API key.
        watch: Called each second.
        workers: Only these of the plan's processes; others run elsewhere.
        start: Called when all are ready; says when to begin, in seconds since 1970. At once by
            default.

    Raises:
        ConfigError: The start has passed already.
        ServerError: A client process could not reach the server at all, or died.
    """
    with tempfile.TemporaryDirectory(prefix="tuneline-loadtest-") as directory:
        out = Path(directory)
        numbers = range(plan.num_workers) if workers is None else workers
        processes = []
        views = []
        descriptors: list[int] = []
        try:
            for worker in numbers:
                # Only in memory: a write to a page of a file waits while the disk takes the page.
                counters = os.memfd_create("counters")
                descriptors.append(counters)
                os.ftruncate(counters, COUNTERS_BYTES)
                mapped = mmap.mmap(counters, COUNTERS_BYTES)
                views.append(memoryview(mapped).cast("B").cast("q"))
                order = {
                    "plan": replace(plan, worker=worker).to_json(),
                    "key": key,
                    "out": str(out),
                    "counters": counters,
                }
                process = _start(counters)
                processes.append(process)
                _tell(process, json.dumps(order))
            for process in processes:
                _expect_ready(process)
            start_unix_s = time.time() + START_DELAY_S if start is None else start()
            delay_s = start_unix_s - time.time()
            if delay_s < 0:
                raise ConfigError(
                    f"the common start lies {-delay_s:.1f} s in the past",
                    hint="Give a start that leaves all pods time to come up.",
                )
            start_ns = time.monotonic_ns() + round(delay_s * 1e9)
            for process in processes:
                _tell(process, f"start {start_ns}")
            deadline_s = time.monotonic() + delay_s + longest_s(plan) + END_MARGIN_S
            ended_early = False
            while any(process.poll() is None for process in processes):
                _wait(processes)
                if time.monotonic() > deadline_s:
                    raise ServerError("a load-test client did not end in time")
                totals = [sum(int(view[place]) for view in views) for place in range(4)]
                if watch(Counters(*totals)):
                    ended_early = True
                    for process in processes:
                        process.terminate()
            for process in processes:
                if process.returncode:
                    raise _died(process)
        finally:
            for process in processes:
                if process.poll() is None:
                    process.kill()
                process.wait()
                for pipe in (process.stdin, process.stdout, process.stderr):
                    if pipe is not None:
                        pipe.close()
            for descriptor in descriptors:
                os.close(descriptor)
        return Measured(
            join_records([Records.load(out / f"records-{number}.npz") for number in numbers]),
            [json.loads((out / f"worker-{number}.json").read_text()) for number in numbers],
            start_unix_s,
            ended_early,
        )


def longest_s(plan: Plan) -> float:
    """Seconds after which every request has ended or timed out, whatever the server does."""
    if plan.arrivals_s is not None:
        return plan.arrivals_s[-1] + plan.timeout_s
    streams = plan.concurrency or 1
    if plan.num_requests is not None:
        return -(-plan.num_requests // streams) * plan.timeout_s
    rounds_of_warmup = -(-plan.num_warmup_requests // streams)
    return (rounds_of_warmup + 1) * plan.timeout_s + (plan.duration_s or 0.0)


def _start(counters: int) -> subprocess.Popen[str]:
    log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed with the process's other pipes)
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "loadtest.client.process"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, pass_fds=(counters,),
        env=subprocess_environment(),
    )  # fmt: skip
    process.stderr = log
    return process


def subprocess_environment() -> dict[str, str]:
    """Ours, with the packages findable however they were found here, and one thread for numpy."""
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OPENBLAS_NUM_THREADS": "1"}


def _tell(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None  # noqa: S101 (started with a pipe)
    try:
        process.stdin.write(line + "\n")
        process.stdin.flush()
    except BrokenPipeError:
        process.wait()
        raise _died(process) from None


def _expect_ready(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None  # noqa: S101 (started with a pipe)
    if process.stdout.readline().strip() != "ready":
        process.wait()
        raise _died(process)


def _wait(processes: list[subprocess.Popen[str]]) -> None:
    """Until the next second, or until a process has ended."""
    deadline_s = time.monotonic() + WATCH_INTERVAL_S
    for process in processes:
        try:
            process.wait(timeout=max(deadline_s - time.monotonic(), 0.001))
        except subprocess.TimeoutExpired:
            return


def _died(process: subprocess.Popen[str]) -> ServerError:
    log = process.stderr
    text = ""
    if log is not None:
        log.seek(0)
        text = log.read().strip()
    last = text.splitlines()[-1] if text else "no message"
    hint = None
    if process.returncode == -signal.SIGKILL:
        hint = (
            "If memory ran out: a client keeps every read until the end. Try fewer requests, a "
            "shorter --duration, or --shard K/N on several machines."
        )
    return ServerError(
        f"a load-test client ended with code {process.returncode}: {last}", hint=hint
    )
