"""The tuning itself: the run's own settings, the trials, the comparison, the result."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from serving.config import ServingConfig
from tuneline.core.errors import ConfigError
from tuneline.core.progress import logger
from tuneline.core.verdict import Verdict
from tuneline.pipeline.tune.bench import Bench, compare_with_own, run_trial
from tuneline.pipeline.tune.journal import (
    read_comparison_of,
    read_trials,
    write_comparison,
    write_trials,
)
from tuneline.pipeline.tune.race import (
    best_of,
    candidates,
    contested_rate,
    gain_of,
    rate_to_beat,
    requests_of_trial,
    time_of_comparison,
    time_of_trial,
    winner_of,
)
from tuneline.pipeline.tune.schema import Comparison, Offer, Trial, TuneReport
from tuneline.pipeline.tune.table import KNOBS, Facts, Knob, is_impossible, is_own

FEWEST_PROBES = 3
"""A rate that holds at once takes a probe, and a second run that is twice as long."""
MAX_ATTEMPTS = 2
"""A failed trial is tried again: other work on the machine may have killed its server."""


def chosen_knobs(names: Sequence[str]) -> list[Knob]:
    """Return the rows with these names, in the order of the table; all rows without names.

    Raises:
        ConfigError: A name is not in the table.
    """
    unknown = sorted(set(names) - {knob.name for knob in KNOBS})
    if unknown:
        raise ConfigError(
            f"--only {unknown[0]}: is not a flag that a tuning tries",
            hint="Try: " + ", ".join(f'"{knob.name}"' for knob in KNOBS),
        )
    return [knob for knob in KNOBS if not names or knob.name in names]


def offers_of(facts: Facts, knobs: Sequence[Knob] = KNOBS) -> list[Offer]:
    """Return the rows of the table as they apply to a run."""
    found = []
    for knob in knobs:
        why_not = knob.unsuited(facts)
        values = [] if why_not is not None else knob.values(facts)
        settings = [dict(value) for value in values if not is_own(value, facts.serving)]
        found.append(Offer(knob=knob.name, reason=knob.reason, settings=settings, unsuited=why_not))
    return found


def require_budget(budget_s: float, num_requests: int, start_rps: float) -> None:
    """Check that the budget holds the measurement of the run's own settings.

    Raises:
        ConfigError: It is too small.
    """
    least_s = FEWEST_PROBES * num_requests / start_rps
    if budget_s < least_s:
        raise ConfigError(
            f"--budget {budget_s:g} s: is too small for one trial; {num_requests} requests "
            f"at {start_rps:g} requests/s and their confirmation take {least_s:.0f} s",
            hint=f"Try: --budget {max(60, round(4 * least_s))}s, or fewer --requests",
        )


def tune_servers(
    bench: Bench, offers: Sequence[Offer], serving: ServingConfig, budget_s: float
) -> TuneReport:
    """Search the settings with the highest rate; return the report, without its winner's file.

    The run's own settings come first. Then one flag at a time is changed on top of the best
    settings. The best settings win only if a comparison in turns confirms them. Trials of an
    earlier process count, with their time.

    Raises:
        ConfigError: The budget is too small for one trial.
        ServerError: The run's own server does not start, or dies.
    """
    require_budget(budget_s, bench.num_requests, bench.start_rps)
    bench.folder.mkdir(parents=True, exist_ok=True)
    known = read_trials(bench.folder)
    if known:
        logger.info("%d trials are finished already", len(known))
    trials: list[Trial] = []
    began_s = time.monotonic()
    spent_before_s = sum(trial.total_s for trial in known)

    def left_s() -> float:
        return budget_s - spent_before_s - (time.monotonic() - began_s)

    def recall(settings: dict[str, Any]) -> Trial | None:
        number = len(trials)
        is_known = number < len(known) and known[number].settings == settings
        return known[number] if is_known else None

    def try_out(knob: str, settings: dict[str, Any], limit_s: float) -> Trial:
        earlier = recall(settings)
        trial = run_trial(bench, trials, knob, settings, limit_s)
        trials.append(trial if earlier is None else _after(earlier, trial))
        write_trials(bench.folder, [*trials, *known[len(trials) :]])
        return trials[-1]

    own = recall({})
    if own is None:
        own = try_out("", {}, left_s())
    else:
        trials.append(own)
    is_complete = own.state not in ("cut off", "invalid")
    if is_complete:
        is_complete = _try_all(bench, offers, serving, trials, recall, try_out, left_s)
    comparison = _compared(bench, own, best_of(trials))
    spent_s = spent_before_s + time.monotonic() - began_s
    return _report(
        bench, offers, trials, comparison, is_complete=is_complete, budget_s=budget_s,
        spent_s=round(spent_s, 1),
    )  # fmt: skip


def _try_all(
    bench: Bench,
    offers: Sequence[Offer],
    serving: ServingConfig,
    trials: list[Trial],
    recall: Callable[[dict[str, Any]], Trial | None],
    try_out: Callable[[str, dict[str, Any], float], Trial],
    left_s: Callable[[], float],
) -> bool:
    """Run the trials; return whether none was left out for lack of time.

    Args:
        recall: Returns the finished trial of an earlier process that has these settings, and is
            the next one.
    """
    rows = [(offer.knob, offer.settings) for offer in offers]
    race = candidates(rows, lambda settings: is_impossible(settings, serving))
    own = trials[0]
    try:
        knob, settings = next(race)
        while True:
            best = best_of(trials)
            reserve_s = 0.0
            if best is not None and contested_rate(own, best) is not None:
                reserve_s = time_of_comparison(best, own)
            start_s = max(trial.start_s for trial in trials)
            at_rps = rate_to_beat(trials) or bench.start_rps
            num = requests_of_trial(bench.num_requests, trials)
            needed_s = time_of_trial(num, at_rps, start_s)
            has_time = left_s() - reserve_s >= needed_s
            earlier = recall(settings)
            if earlier is not None and not (has_time and is_tried_again(earlier)):
                trials.append(earlier)
            elif not has_time:
                logger.info("the budget ends before the next trial (%s)", knob)
                return False
            elif try_out(knob, settings, left_s() - reserve_s).state == "cut off":
                return False
            new = best_of(trials)
            knob, settings = race.send(new is not None and new.number == trials[-1].number)
    except StopIteration:
        return True


def is_tried_again(trial: Trial) -> bool:
    """Return whether a tuning that goes on tries a trial of an earlier process again."""
    return trial.state == "failed" and trial.attempts < MAX_ATTEMPTS


def _after(earlier: Trial, again: Trial) -> Trial:
    """Return a trial that was tried again, with the time of both attempts."""
    if again.state == "cut off":
        return earlier
    changes = {"attempts": earlier.attempts + 1, "total_s": earlier.total_s + again.total_s}
    return again.model_copy(update=changes)


def _compared(bench: Bench, own: Trial, best: Trial | None) -> Comparison | None:
    """Return the comparison of the best trial with the run's own settings, if one decides."""
    if best is None or (rate_rps := contested_rate(own, best)) is None:
        return None
    known = read_comparison_of(bench.folder, best.settings)
    if known is not None:
        return known
    num_requests = best.num_requests or bench.num_requests
    found = compare_with_own(bench, best, rate_rps, num_requests=num_requests)
    write_comparison(bench.folder, found)
    return found


def _report(
    bench: Bench,
    offers: Sequence[Offer],
    trials: Sequence[Trial],
    comparison: Comparison | None,
    *,
    is_complete: bool,
    budget_s: float,
    spent_s: float,
) -> TuneReport:
    own, best = trials[0], best_of(trials)
    winner = winner_of(own, best, comparison)
    is_changed = winner.number != own.number
    gain = gain_of(own, winner) if is_changed else None
    verdict, problems = _judge(trials, winner, best, comparison, budget_s)
    return TuneReport(
        verdict=verdict,
        problems=problems,
        slo=bench.config.slo,
        is_changed=is_changed,
        settings=winner.settings,
        rate_rps=winner.rate_rps,
        own_rate_rps=own.rate_rps,
        gain=None if gain is None else gain[0],
        gain_interval=None if gain is None else gain[1],
        comparison=comparison,
        is_complete=is_complete,
        budget_s=budget_s,
        spent_s=spent_s,
        offers=list(offers),
        trials=list(trials),
        winner=None,
    )


def _judge(
    trials: Sequence[Trial], winner: Trial, best: Trial | None, comparison: Comparison | None,
    budget_s: float,
) -> tuple[Verdict, list[str]]:  # fmt: skip
    """Return PASS if the winner holds a rate, and else why there is none."""
    own = trials[0]
    if own.state == "invalid":
        return Verdict.INVALID, [f"the run's own settings: {own.problem}"]
    if own.state == "cut off":
        return Verdict.INCONCLUSIVE, [
            f"the budget of {budget_s:g} s ended before the run's own settings were measured; "
            "expected a larger --budget or fewer --requests"
        ]
    if winner.rate_rps is None and best is not None:
        reason = "no comparison" if comparison is None else comparison.problem
        return Verdict.INCONCLUSIVE, [
            f"the run's own settings hold no rate, and trial {best.number} is not confirmed: "
            f"{reason}"
        ]
    undecided = next((trial for trial in trials if trial.state == "undecided"), None)
    if winner.rate_rps is None and undecided is not None:
        return Verdict.INCONCLUSIVE, [f"trial {undecided.number}: {undecided.problem}"]
    if winner.rate_rps is None:
        return Verdict.FAIL, [f"no settings meet the objectives: {own.problem}"]
    if comparison is not None and not comparison.is_won:
        return Verdict.PASS, [f"the comparison does not confirm the trials: {comparison.problem}"]
    return Verdict.PASS, []
