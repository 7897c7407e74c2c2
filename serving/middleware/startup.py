"""Where the time to ready goes, from the kernel's record of when each process started."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterable

from serving.middleware.metrics import READY_PHASE_SECONDS, READY_SECONDS


def process_age_s(process: int | str = "self") -> float:
    """Return the seconds since the kernel started a process (field 22 of proc_pid_stat(5)).

    Raises:
        OSError: There is no such process.
    """
    # pathlib would be another import of a process that counts its imports.
    with open(f"/proc/{process}/stat", encoding="ascii", errors="replace") as file:  # noqa: PTH123
        # The second field is the name in parentheses, which may itself hold spaces and parentheses.
        start_ticks = int(file.read().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - start_ticks / os.sysconf("SC_CLK_TCK")


def is_first_front_end() -> bool:
    """Return whether this process counts what all front ends of a server have in common.

    vLLM names them ApiServer_0, ApiServer_1 and so on; a single front end is the main process.
    """
    name = multiprocessing.current_process().name
    return not name.startswith("ApiServer_") or name == "ApiServer_0"


def record_start(built_s: float, answer_s: float, engines: Iterable[int]) -> dict[str, float]:
    """Set the metrics of a start that is complete now, and return the seconds of its phases.

    The arguments are those of `start_phases_s`.
    """
    ready_s = process_age_s()
    phases_s = start_phases_s(built_s, answer_s, ready_s, engines)
    READY_SECONDS.set(ready_s)
    for name, seconds in phases_s.items():
        READY_PHASE_SECONDS.labels(phase=name).set(seconds)
    return {name: round(seconds, 2) for name, seconds in phases_s.items()}


def start_phases_s(
    built_s: float, answer_s: float, ready_s: float, engines: Iterable[int]
) -> dict[str, float]:
    """Return the seconds of each phase of a start; their sum is `ready_s`.

    `imports`: until the engine's process is started, after the front end has imported vLLM and read
    its configuration. `engine`: until the engine can compute; its own imports, the weights, and the
    compilation are in it. `routes`: until the application has started. `answer`: until one request
    is answered; then the port is open. A front end whose engine is another process's child has no
    figure for `imports`.

    Args:
        built_s: The age of this process when the application was built, which vLLM does after the
            engine is there.
        answer_s: How long the first answer took.
        ready_s: The age of this process when it was ready.
        engines: The engine's processes.
    """
    ages = []
    for engine in engines:
        try:
            ages.append(process_age_s(engine))
        except OSError:
            continue  # the process is gone
    # The start of a process is known in hundredths of a second.
    imports_s = min(max(ready_s - max(ages), 0.0), built_s) if ages else 0.0
    phases = {"engine": built_s - imports_s, "routes": ready_s - answer_s - built_s}
    phases["answer"] = answer_s
    return {"imports": imports_s, **phases} if ages else phases
