"""Where the time to ready goes, from the kernel's record of when each process started."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable


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


def start_phases_s(built_s: float, ready_s: float, engines: Iterable[int]) -> dict[str, float]:
    """Return the seconds of each phase of a start; their sum is `ready_s`.

    `imports`: until the engine's process is started, after the front end has imported vLLM and read
    its configuration. `engine`: until the engine can compute; its own imports, the weights, and the
    compilation are in it. `routes`: until the port is open. A front end whose engine is another
    process's child has no figure for `imports`.

    Args:
        built_s: The age of this process when the application was built, which vLLM does after the
            engine is there.
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
    phases = {"engine": built_s - imports_s, "routes": ready_s - built_s}
    return {"imports": imports_s, **phases} if ages else phases
