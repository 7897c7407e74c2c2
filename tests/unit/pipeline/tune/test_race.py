"""The trials of a tuning and its winner, for servers whose rates are given."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tuneline.core.verdict import Verdict
from tuneline.pipeline.tune.race import (
    MIN_GAIN,
    Row,
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
from tuneline.pipeline.tune.schema import Comparison, Trial
from tuneline.pipeline.tune.table import Settings

ROWS: list[Row] = [("a", [{"a": 1}, {"a": 2}]), ("b", [{"b": 1}])]


def trial(number: int, rate: float | None, failing: float | None = None, **more: Any) -> Trial:
    fields = {"knob": "", "settings": {"n": number} if number else {}, "state": "held", **more}
    return Trial(number=number, rate_rps=rate, failing_rps=failing, **fields)


def comparison(*, is_won: bool) -> Comparison:
    return Comparison(
        settings={"n": 1}, rate_rps=1.0, own_verdicts=[Verdict.FAIL], tuned_verdicts=[Verdict.PASS],
        e2e_difference_s=None, e2e_ci95=None, is_won=is_won, problem=None,
    )  # fmt: skip


def raced(rates: dict[str, float], rows: list[Row] = ROWS) -> tuple[list[Settings], Settings]:
    """Return the settings tried and the best ones, for rates by settings."""

    def rate(settings: Settings) -> float:
        return rates.get(",".join(f"{k}{v}" for k, v in sorted(settings.items())), 1.0)

    race = candidates(rows, lambda _: None)
    best: Settings = {}
    tried: list[Settings] = []
    try:
        _, settings = next(race)
        while True:
            tried.append(settings)
            is_better = rate(settings) > rate(best)
            best = settings if is_better else best
            _, settings = race.send(is_better)
    except StopIteration:
        return tried, best


def test_flags_are_changed_one_at_a_time_on_top_of_the_best() -> None:
    tried, best = raced({"a1": 2.0, "a1,b1": 3.0})
    # After a pass that found something, the rows come again; nothing comes twice.
    assert tried == [{"a": 1}, {"a": 2}, {"a": 1, "b": 1}, {"a": 2, "b": 1}]
    assert best == {"a": 1, "b": 1}


def test_a_second_pass_finds_a_flag_that_gains_only_with_another() -> None:
    tried, best = raced({"b1": 2.0, "a2,b1": 4.0})
    assert tried == [{"a": 1}, {"a": 2}, {"b": 1}, {"a": 1, "b": 1}, {"a": 2, "b": 1}]
    assert best == {"a": 2, "b": 1}


def test_without_a_gain_there_is_one_pass() -> None:
    assert raced({})[0] == [{"a": 1}, {"a": 2}, {"b": 1}]
    assert raced({}, [])[0] == []


def test_impossible_settings_are_left_out() -> None:
    race = candidates(ROWS, lambda settings: "no" if settings.get("a") == 1 else None)
    assert next(race) == ("a", {"a": 2})


def test_only_a_rate_that_held_can_be_best() -> None:
    trials = [trial(0, 4.0), trial(1, 9.0, state="wrong"), trial(2, None, state="failed")]
    assert best_of(trials) == trials[0]
    assert rate_to_beat(trials) == pytest.approx(4.0 * (1 + MIN_GAIN))
    assert rate_to_beat([trial(0, None, state="no rate")]) is None
    assert best_of([trial(0, 4.0), trial(1, 4.0)]) == trial(0, 4.0)


def test_the_comparison_is_between_the_failing_rate_and_the_winners_rate() -> None:
    own = trial(0, 4.0, 5.0)
    assert contested_rate(own, trial(1, 8.0)) == pytest.approx(math.sqrt(5.0 * 8.0))
    assert contested_rate(own, trial(1, 4.9)) is None, "5 failed, so 4.9 may be the same"
    assert contested_rate(own, own) is None
    assert contested_rate(trial(0, 4.0), trial(1, 8.0)) is None, "no rate failed before"
    assert contested_rate(trial(0, None, state="no rate"), trial(1, 8.0)) == 8.0


def test_the_gain_has_an_interval_by_the_rates_that_failed() -> None:
    gain = gain_of(trial(0, 4.0, 5.0), trial(1, 8.0, 10.0))
    assert gain == (2.0, (1.6, 2.5))
    assert gain_of(trial(0, 4.0, 5.0), trial(1, 8.0)) == (2.0, (1.6, None))
    assert gain_of(trial(0, None, state="no rate"), trial(1, 8.0)) is None


@pytest.mark.parametrize(
    ("best", "is_won", "wins"),
    [(8.0, True, True), (8.0, False, False), (4.5, True, False), (None, True, False)],
)
def test_the_own_settings_stay_unless_they_are_surely_worse(
    best: float | None, is_won: bool, wins: bool
) -> None:
    own = trial(0, 4.0, 5.0)
    other = None if best is None else trial(1, best)
    found = winner_of(own, other, comparison(is_won=is_won))
    assert found.number == (1 if wins else 0)
    assert winner_of(own, trial(1, 8.0), None) == own


def test_the_times_that_the_budget_keeps() -> None:
    # 30 s of start, 150 requests at 10/s, and 6 s around them.
    assert time_of_trial(150, 10.0, 30.0) == pytest.approx(51.0)
    # Three starts of 30 s, and four runs of 300 requests at 20/s with 6 s each; times 1.3.
    best = trial(1, 20.0, num_requests=300, start_s=20.0)
    assert time_of_comparison(best, trial(0, 4.0, start_s=30.0)) == pytest.approx(1.3 * 174.0)


@pytest.mark.parametrize(
    ("num_given", "num_confirmed", "expected"),
    [(150, 300, 150), (150, 1500, 750), (150, None, 150)],
)
def test_a_trial_has_as_many_requests_as_the_own_settings_needed(
    num_given: int, num_confirmed: int | None, expected: int
) -> None:
    assert requests_of_trial(num_given, []) == num_given
    assert requests_of_trial(num_given, [trial(0, 2.0, num_requests=num_confirmed)]) == expected
