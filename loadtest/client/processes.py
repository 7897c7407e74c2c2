"""The client processes of one scenario: started, watched at 1 Hz, ended, their records joined."""

from __future__ import annotations

import contextlib
import itertools
import json
import mmap
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from loadtest.client.headers import header_values
from loadtest.client.plan import Plan
from loadtest.client.records import Records, concatenate, join_records, records_path
from loadtest.client.spill import SPILL_READS, SUFFIX, SpillFile, read_chunks
from tuneline.core.errors import ConfigError, ServerError
from tuneline.core.secrets import HIDDEN, hide_secrets

NUM_COUNTERS = 3
START_DELAY_S = 0.2
WATCH_INTERVAL_S = 1.0
BATCH_ROWS = 4096
KEEP_S = 20.0
"""Time in which interrupted processes parse and write what they have read."""
END_MARGIN_S = 60.0
"""Time for connecting, closing and parsing."""


@dataclass(frozen=True)
class Counters:
    """Requests of all client processes so far."""

    num_answered: int
    num_failed: int
    num_in_flight: int


@dataclass(frozen=True)
class Measured:
    """The raw results of one scenario."""

    records: Records
    workers: list[dict[str, Any]]
    """The account of each process."""
    start_unix_s: float
    """Wall-clock time of second zero of the records."""
    ended_early: bool = False
    """Whether the watch ended the run."""
    spills: tuple[Path, ...] = ()
    """Files of a long run's records; `records` then has those that were not written."""

    @property
    def is_disk_full(self) -> bool:
        """Return whether a full disk ended the run."""
        return any(worker.get("disk_full", False) for worker in self.workers)

    def batches(self) -> Iterator[Records]:
        """Return the records of a long run, some thousand at a time, in any order."""
        parts: list[Records] = []
        for chunk in itertools.chain(*map(read_chunks, self.spills), [self.records]):
            parts.append(chunk)
            if sum(map(len, parts)) >= BATCH_ROWS:
                yield concatenate(parts)
                parts = []
        if parts:
            yield concatenate(parts)


@dataclass(frozen=True)
class SpillTo:
    """Where the client processes write the records of a long run."""

    directory: Path
    scenario: str
    most_reads: int = SPILL_READS
    """Reads of ended requests that a process keeps in memory before it begins to write."""

    def order(self, worker: int) -> dict[str, Any]:
        """Return what a client process is told."""
        path = self.directory / f"records-{self.scenario}.{worker}{SUFFIX}"
        return {"path": str(path), "most_reads": self.most_reads}


Watch = Callable[[Counters], bool]
"""Called each second; True ends the run, and requests in flight stay unfinished."""


def run_workers(
    plan: Plan,
    key: str | None,
    watch: Watch = lambda _: False,
    *,
    workers: range | None = None,
    start: Callable[[], float] | None = None,
    spill: SpillTo | None = None,
) -> Measured:
    """Run a plan in `plan.num_workers` processes and return all its records.

    Args:
        plan: What to send.
        key: The API key.
        watch: Called each second.
        workers: Numbers of the processes to run here; the others run elsewhere.
        start: Called when all processes are ready; returns when to begin, in seconds since 1970.
            The default is at once.
        spill: Where the records of a long run go; without it every run is kept in memory.

    Raises:
        ConfigError: The start has passed already.
        ServerError: A client process could not reach the server at all, or died.
    """
    with tempfile.TemporaryDirectory(prefix="tuneline-loadtest-") as directory:
        out = Path(directory)
        numbers = range(plan.num_workers) if workers is None else workers
        processes: list[subprocess.Popen[str]] = []
        counters: list[_SharedCounters] = []
        try:
            for worker in numbers:
                counters.append(_SharedCounters())
                processes.append(_start(counters[-1].descriptor))
                order = {
                    "plan": asdict(replace(plan, worker=worker)),
                    "key": key,
                    "out": str(out),
                    "counters": counters[-1].descriptor,
                    "spill": None if spill is None else spill.order(worker),
                }
                _tell(processes[-1], json.dumps(order))
            for process in processes:
                _expect_ready(process)
            start_unix_s, delay_s = _begin(processes, start)
            deadline_s = time.monotonic() + delay_s + longest_s(plan) + END_MARGIN_S
            ended_early = _watch_to_the_end(processes, counters, watch, deadline_s)
        except (KeyboardInterrupt, SystemExit):  # the command line turns a signal into SystemExit
            _keep_records(processes, out, spill)
            raise
        finally:
            _end(processes)
            for one in counters:
                os.close(one.descriptor)
        accounts = [json.loads((out / f"worker-{number}.json").read_text()) for number in numbers]
        named = {name for name, value in plan.headers.items() if value.startswith("$")}
        secrets = [value for name, value in header_values(plan.headers).items() if name in named]
        for account in accounts:
            for words in ("examples", "text_sample"):
                account[words] = _without(account[words], [*secrets, *([key] if key else [])])
        records = join_records([Records.load(out / f"records-{one}.npz") for one in numbers])
        spills = [Path(one["spilled"]) for one in accounts if one["spilled"]]
        if spill is not None and spills and len(records):
            records = _spill_rest(spill, spills, records)
        return Measured(records, accounts, start_unix_s, ended_early, tuple(spills))


def _keep_records(processes: list[subprocess.Popen[str]], out: Path, spill: SpillTo | None) -> None:
    """End the processes of a run that the user interrupts, and keep the records of its requests
    where the report would have been."""
    if spill is None:
        return
    for process in processes:
        process.terminate()
    deadline_s = time.monotonic() + KEEP_S
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=max(deadline_s - time.monotonic(), 0.001))
    # The file that a long run has written stays there.
    parts = [Records.load(path) for path in sorted(out.glob("records-*.npz"))]
    if any(map(len, parts)):
        join_records(parts).save(records_path(spill.directory, spill.scenario))


def _without(words: Any, secrets: Sequence[str]) -> Any:
    """Return a server's words without secrets: it may repeat the headers of a request."""
    if isinstance(words, dict):
        return {name: _without(one, secrets) for name, one in words.items()}
    if isinstance(words, list):
        return [_without(one, secrets) for one in words]
    for secret in secrets:
        words = words.replace(secret, HIDDEN)
    return hide_secrets(words)


def _spill_rest(spill: SpillTo, spills: list[Path], records: Records) -> Records:
    """Write the records that no process wrote; return them if the disk has no space."""
    rest = SpillFile(spill.directory / f"records-{spill.scenario}.rest{SUFFIX}")
    try:
        is_written = rest.append(records)
    finally:
        rest.close()
    if not is_written:
        rest.path.unlink(missing_ok=True)
        return records
    spills.append(rest.path)
    return records.select(np.zeros(0, np.int64))


class _SharedCounters:
    """Three numbers in memory that a client process writes and this process reads."""

    def __init__(self) -> None:
        # Only in memory: a write to a page of a file waits while the disk takes the page.
        self.descriptor = os.memfd_create("counters")
        os.ftruncate(self.descriptor, 8 * NUM_COUNTERS)
        self.values = memoryview(mmap.mmap(self.descriptor, 8 * NUM_COUNTERS)).cast("B").cast("q")


def _begin(
    processes: list[subprocess.Popen[str]], start: Callable[[], float] | None
) -> tuple[float, float]:
    """Tell all processes when to begin; return that time and the seconds until then.

    Raises:
        ConfigError: The start has passed already.
    """
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
    return start_unix_s, delay_s


def _watch_to_the_end(
    processes: list[subprocess.Popen[str]],
    counters: list[_SharedCounters],
    watch: Watch,
    deadline_s: float,
) -> bool:
    """Call `watch` each second until all processes have ended; return whether it ended them.

    Raises:
        ServerError: A process died, or did not end in time.
    """
    ended_early = False
    while any(process.poll() is None for process in processes):
        _wait(processes)
        if time.monotonic() > deadline_s:
            raise ServerError("a load-test client did not end in time")
        totals = [sum(int(one.values[place]) for one in counters) for place in range(NUM_COUNTERS)]
        if watch(Counters(*totals)):
            ended_early = True
            for process in processes:
                process.terminate()
    for process in processes:
        if process.returncode:
            raise _died(process)
    return ended_early


def _end(processes: list[subprocess.Popen[str]]) -> None:
    """Kill the processes that still run, and close their pipes."""
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


def longest_s(plan: Plan) -> float:
    """Return after how many seconds every request, or every session, has ended or timed out."""
    one_s = plan.timeout_s
    if plan.sessions is not None:
        one_s = plan.sessions.stride * plan.timeout_s + plan.sessions.longest_delay_s
    if plan.arrivals_s is not None:
        return plan.arrivals_s[-1] + one_s
    streams = plan.concurrency or 1
    if plan.num_requests is not None:
        return -(-plan.num_requests // streams) * one_s
    rounds_of_warmup = -(-plan.num_warmup_requests // streams)
    return (rounds_of_warmup + 1) * one_s + (plan.duration_s or 0.0)


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
    """Return this environment, with the path to these packages and one thread for numpy."""
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
    """Wait until the next second, or until a process ends."""
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
