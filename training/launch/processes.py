"""Start the processes of a training on this host, and end them together.

The processes have the variables of torchrun. Rank 0 shows the progress; each other rank writes a
log. The end of one process with an error ends all, and the error names the rank.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from training.config import TrainingConfig
from training.config.launch import LaunchConfig
from training.launch.place import STORE_FILE, meeting_point, node_rank
from training.launch.rank import HELDOUT_FILE, error_file
from training.loop.progress import OnHeldout
from tuneline.core import errors
from tuneline.core.artifact import Artifact, open_artifact
from tuneline.core.errors import MissingError, TunelineError
from tuneline.core.progress import logger
from tuneline.models.source import ModelSource

POLL_S = 0.1
LAST_WORDS_S = 3.0
"""Seconds after the first error in which the other processes may tell theirs: the first to end is
not always the one that failed."""
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LOST = "PeerLostError"
"""The error of a process that another one has left: told only if no process knows more."""
LOGS = "ranks"
"""The directory next to an artifact with the logs of its processes."""


def train_in_processes(
    config: TrainingConfig,
    dataset: Artifact,
    base: ModelSource,
    out: Path,
    *,
    relative_to: Path,
    on_heldout: OnHeldout | None,
) -> Artifact:
    """Train in the processes of `config.launch`, and return the artifact that rank 0 wrote.

    SIGINT, SIGTERM and SIGHUP reach all processes, which write a checkpoint; a second signal ends
    them.

    Raises:
        TunelineError: The error of the process that failed first, with its rank.
        MissingError: A process was killed.
    """
    assert config.launch is not None  # noqa: S101 (the caller starts processes for a launch)
    first = node_rank(config.launch) * config.launch.processes
    folder = out.parent / LOGS / out.name / f"{first}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    spec = {
        "config": config.model_dump(mode="json"), "dataset": str(dataset.path),
        "base": {**asdict(base), "path": str(base.path)}, "out": str(out),
        "relative_to": str(relative_to), "reports_heldout": on_heldout is not None,
        "parent": os.getpid(),
    }  # fmt: skip
    (folder / "spec.json").write_text(json.dumps(spec), encoding="utf-8")
    launch = config.launch
    logger.info(
        "  %d processes (%s); logs of the ranks: %s", launch.world_size, launch.strategy, folder
    )
    ranks = range(first, first + launch.processes)
    running = _Running({})
    with _signals_for(running):
        try:
            for rank in ranks:
                if running.signal is not None:
                    break
                running.processes[rank] = _start(launch, rank, rank - first, folder)
            _wait(running, folder / HELDOUT_FILE, on_heldout)
        finally:
            running.kill()
    failed = {rank: code for rank, code in running.codes.items() if code}
    if failed:
        raise _failure(folder, failed, running.killed)
    return open_artifact(out)


@dataclass
class _Running:
    """The processes, how they ended, and the signal that came."""

    processes: dict[int, subprocess.Popen[bytes]]
    codes: dict[int, int] = field(default_factory=dict)
    """Exit statuses in the order of the ends, negative for a signal."""
    killed: set[int] = field(default_factory=set)
    """Ranks that were ended here."""
    signal: int | None = None

    def kill(self) -> None:
        """End every process that still runs, with the processes that it started."""
        for rank, process in self.processes.items():
            if process.poll() is None:
                self.killed.add(rank)
                os.killpg(process.pid, signal.SIGKILL)
                self.codes[rank] = process.wait()

    def note_ends(self) -> bool:
        """Note which processes have ended, and return whether one still runs."""
        for rank, process in self.processes.items():
            if rank not in self.codes and process.poll() is not None:
                self.codes[rank] = process.returncode
        return len(self.codes) < len(self.processes)


def _start(
    launch: LaunchConfig, rank: int, local_rank: int, folder: Path
) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ, "RANK": str(rank), "LOCAL_RANK": str(local_rank),
        "WORLD_SIZE": str(launch.world_size), "LOCAL_WORLD_SIZE": str(launch.processes),
    }  # fmt: skip
    cores = len(os.sched_getaffinity(0))
    environment.setdefault("OMP_NUM_THREADS", str(max(1, cores // launch.processes)))
    if launch.nodes == 1:
        environment[STORE_FILE] = str(folder / "rendezvous")
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    else:
        host, port = meeting_point(launch)
        environment |= {"MASTER_ADDR": host, "MASTER_PORT": str(port)}
    # -P: a folder of the user with the name of a package is not the package.
    command = [sys.executable, "-P", "-m", "training.launch.rank", str(folder / "spec.json")]
    with (folder / f"rank-{rank}.log").open("wb") as log:
        # Standard output is for results; the display of rank 0 goes where this process shows it.
        streams: dict[str, Any] = {"stdout": log, "stderr": subprocess.STDOUT}
        if rank == 0:
            streams = {"stdout": log, "stderr": None}
        return subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True, **streams
        )


def _wait(running: _Running, heldout: Path, on_heldout: OnHeldout | None) -> None:
    """Wait until all processes have ended, or one has failed and the others had time to say why."""
    num_reported = 0
    failed_s: float | None = None
    while running.note_ends():
        num_reported = _report(heldout, num_reported, on_heldout)
        if failed_s is None and any(running.codes.values()) and running.signal is None:
            failed_s = time.monotonic()
        if failed_s is not None and time.monotonic() - failed_s > LAST_WORDS_S:
            return
        time.sleep(POLL_S)
    _report(heldout, num_reported, on_heldout)


def _report(heldout: Path, start: int, on_heldout: OnHeldout | None) -> int:
    """Hand over the held-out measurements from a number on, and return how many there are."""
    if on_heldout is None or not heldout.is_file():
        return start
    lines = heldout.read_text(encoding="utf-8").split("\n")[:-1]
    for line in lines[start:]:
        on_heldout(*json.loads(line))
    return len(lines)


@contextmanager
def _signals_for(running: _Running) -> Iterator[None]:
    """Pass signals that stop a run on as SIGTERM, and to the earlier handler when all have ended.

    Raises:
        KeyboardInterrupt: The run was stopped, and the signal's own handler returned.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_signal(number: int, _frame: FrameType | None) -> None:
        if running.signal is not None:
            running.kill()
            return
        running.signal = number
        for process in running.processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)

    handlers = {number: signal.getsignal(number) for number in STOPS}
    previous = {n: handler for n, handler in handlers.items() if handler != signal.SIG_IGN}
    for number in previous:
        signal.signal(number, on_signal)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if running.signal is not None:
        signal.raise_signal(running.signal)
        raise KeyboardInterrupt  # half a run is never taken for a whole one


def _failure(folder: Path, failed: Mapping[int, int], killed: set[int]) -> Exception:
    """Return the error of the process that failed first; the end of a peer fails the others too."""
    said = {
        rank: json.loads(error_file(folder, rank).read_text(encoding="utf-8"))
        for rank in failed
        if error_file(folder, rank).is_file()
    }
    for rank, words in said.items():
        if words["kind"] not in ("", LOST):
            kind: type[TunelineError] = getattr(errors, words["kind"])
            lines = words["message"].split("\n")
            return kind("\n".join(f"rank {rank}: {line}" for line in lines), hint=words["hint"])
    for rank, code in failed.items():
        if code < 0 and rank not in killed:
            return _ended_by(folder, rank, signal.Signals(-code))
    lost = {rank: words for rank, words in said.items() if words["kind"] == LOST}
    bugs = [rank for rank in [*said, *failed] if rank not in lost and rank not in killed]
    if lost and not bugs:
        rank, words = next(iter(lost.items()))
        return MissingError(f"rank {rank}: {words['message']}", hint=words["hint"])
    rank = next(iter([*bugs, *failed]))
    words = said.get(rank, {"message": f"exit status {failed[rank]}"})
    return RuntimeError(f"rank {rank} (log: {_log(folder, rank)}): {words['message']}")


def _ended_by(folder: Path, rank: int, number: signal.Signals) -> MissingError:
    """Return the error of a rank that a signal has ended."""
    goes_on = "The same command continues from the newest checkpoint."
    if number in STOPS:
        # All ranks end by the signal that one of them got.
        return MissingError(
            f"the training was stopped: {number.name} came to one of its ranks",
            hint=f"{goes_on} Logs: {folder}",
        )
    cause = "The kernel kills a process that takes too much memory (see dmesg). "
    return MissingError(
        f"rank {rank} of the training was ended by {number.name}; the other ranks were stopped",
        hint=f"{cause if number == signal.SIGKILL else ''}{goes_on} Log: {_log(folder, rank)}",
    )


def _log(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank}.log"
