"""Which settings a tuning tries, and which of them wins. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Generator, Sequence
from typing import Any

from tuneline.pipeline.tune.schema import Comparison, Trial
from tuneline.pipeline.tune.table import Settings

MIN_GAIN = 0.05
"""A trial begins at the best rate so far and this share of it. A smaller gain is noise."""
SAFETY = 1.3
"""The time that is kept for the comparison, as a multiple of its estimate."""
OVERHEAD_S = 6.0
"""Of a measured run: calibration, warm-up and judgement."""
COMPARISON_STARTS, COMPARISON_RUNS = 3, 4

Row = tuple[str, Sequence[Settings]]


def candidates(
    rows: Sequence[Row], is_impossible: Callable[[Settings], str | None]
) -> Generator[tuple[str, dict[str, Any]], bool, None]:
    """Yield a row's name and the settings to try; is sent whether they are the new best.

    One flag at a time is changed on top of the best settings, in the order of the rows, until a
    pass over all rows finds nothing better. No settings come twice.
    """
    best: dict[str, Any] = {}
    tried = {_key(best)}
    is_better = True
    while is_better:
        is_better = False
        for name, values in rows:
            for value in values:
                settings = {**best, **value}
                if _key(settings) in tried or is_impossible(settings) is not None:
                    continue
                tried.add(_key(settings))
                if (yield name, settings):
                    best, is_better = settings, True


def _key(settings: Settings) -> str:
    return json.dumps(settings, sort_keys=True)


def best_of(trials: Sequence[Trial]) -> Trial | None:
    """Return the trial with the highest rate; the earliest of equals, and None without a rate."""
    held = [trial for trial in trials if trial.state == "held" and trial.rate_rps is not None]
    return max(held, key=lambda trial: (trial.rate_rps or 0.0, -trial.number), default=None)


def rate_to_beat(trials: Sequence[Trial]) -> float | None:
    """Return the rate at which the next trial begins; None if no rate held yet."""
    best = best_of(trials)
    return None if best is None or best.rate_rps is None else best.rate_rps * (1 + MIN_GAIN)


def requests_of_trial(num_requests: int, earlier: Sequence[Trial]) -> int:
    """Return the requests of a probe: as many as the run's own settings needed, if that is more.

    The probe that confirmed their rate has twice the number, so half of its requests count.
    """
    needed = (earlier[0].num_requests or 0) // 2 if earlier else 0
    return max(num_requests, needed)


def time_of_trial(num_requests: int, rate_rps: float, start_s: float) -> float:
    """Return the seconds of a trial that is beaten by its first probe."""
    return start_s + num_requests / rate_rps + OVERHEAD_S


def time_of_comparison(best: Trial, own: Trial) -> float:
    """Return the seconds that the comparison of the best trial with the run's own settings takes,
    with a margin."""
    rate_rps = best.rate_rps or 1.0
    run_s = (best.num_requests or 0) / rate_rps + OVERHEAD_S
    starts_s = COMPARISON_STARTS * max(best.start_s, own.start_s)
    return SAFETY * (starts_s + COMPARISON_RUNS * run_s)


def contested_rate(own: Trial, best: Trial) -> float | None:
    """Return the rate at which the comparison decides: between the lowest rate that failed with the
    run's own settings and the winner's rate. None if the two searches do not tell the settings
    apart."""
    if best.rate_rps is None or best.number == own.number:
        return None
    if own.rate_rps is None:
        return best.rate_rps
    if own.failing_rps is None or best.rate_rps <= own.failing_rps:
        return None
    return math.sqrt(own.failing_rps * best.rate_rps)


def gain_of(own: Trial, best: Trial) -> tuple[float, tuple[float, float | None]] | None:
    """Return the gain and its interval; None if the run's own settings hold no rate."""
    if own.rate_rps is None or best.rate_rps is None:
        return None
    low = best.rate_rps / (own.failing_rps or own.rate_rps)
    high = None if best.failing_rps is None else best.failing_rps / own.rate_rps
    return best.rate_rps / own.rate_rps, (low, high)


def winner_of(own: Trial, best: Trial | None, comparison: Comparison | None) -> Trial:
    """Return the trial whose settings are kept: the best one only if its rate is above every
    rate that failed with the run's own settings, and the comparison says so too."""
    if best is None or comparison is None or not comparison.is_won:
        return own
    return best if contested_rate(own, best) is not None else own
