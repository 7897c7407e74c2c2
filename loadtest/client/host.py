"""The machine of this process, and what other processes took from it."""

from __future__ import annotations

import resource
from dataclasses import dataclass
from pathlib import Path

STAT = Path("/proc/stat")
CGROUP_FILES = (Path("/sys/fs/cgroup/cpu.stat"), Path("/sys/fs/cgroup/cpu/cpu.stat"))


@dataclass(frozen=True)
class HostTimes:
    """Counters since the machine started; None if the machine does not tell."""

    total_ticks: int | None
    steal_ticks: int | None
    throttled_s: float | None


def host_times() -> HostTimes:
    total = steal = None
    try:
        ticks = [int(field) for field in STAT.read_text().split("\n", 1)[0].split()[1:]]
        # user nice system idle iowait irq softirq steal; guest times are inside user's.
        total, steal = sum(ticks[:8]), ticks[7]
    except (OSError, ValueError, IndexError):
        pass
    return HostTimes(total, steal, _throttled_s())


def _throttled_s() -> float | None:
    for path in CGROUP_FILES:
        try:
            fields = dict(line.split(" ", 1) for line in path.read_text().splitlines())
        except (OSError, ValueError):
            continue
        if "throttled_usec" in fields:
            return int(fields["throttled_usec"]) / 1e6
        if "throttled_time" in fields:  # cgroup v1, nanoseconds
            return int(fields["throttled_time"]) / 1e9
    return None


def steal_share(before: HostTimes, after: HostTimes) -> float | None:
    """Return the share of all CPU time that the hypervisor gave to others."""
    if before.total_ticks is None or after.total_ticks is None:
        return None
    if before.steal_ticks is None or after.steal_ticks is None:
        return None
    total = after.total_ticks - before.total_ticks
    return (after.steal_ticks - before.steal_ticks) / total if total > 0 else 0.0


def throttled_s(before: HostTimes, after: HostTimes) -> float | None:
    """Return the seconds for which this control group was not allowed to run."""
    if before.throttled_s is None or after.throttled_s is None:
        return None
    return after.throttled_s - before.throttled_s


def cpu_s() -> float:
    """Return the user and system time of this process so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
