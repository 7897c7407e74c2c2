"""How long a load test takes at most: the deadline of its Job."""

from __future__ import annotations

from loadtest.arrivals.table import slowest_rps
from loadtest.config import LoadTestConfig

MAX_TURNS_ASSUMED = 32


def longest_s(config: LoadTestConfig) -> float:
    """Return the most seconds that a whole load test takes: every request ends just in time, and
    every scenario is measured twice. A session counts as MAX_TURNS_ASSUMED such requests if its
    turns are not limited."""
    one_s, total_s = config.timeout_s, 0.0
    if (sessions := config.workload.sessions) is not None:
        turns = sessions.max_turns or MAX_TURNS_ASSUMED
        one_s = turns * config.timeout_s + (turns - 1) * sessions.max_delay_s
    for scenario in config.scenarios:
        count = (scenario.num_requests or 0) + config.num_warmup_requests
        send_s = scenario.duration_s or 0.0
        if scenario.concurrency is not None:
            send_s += -(-count // scenario.concurrency) * one_s
        elif scenario.num_requests is not None and (slowest := slowest_rps(scenario)) is not None:
            send_s += 2 * count / slowest
        total_s += 2 * (send_s + one_s + 60)
    return total_s
