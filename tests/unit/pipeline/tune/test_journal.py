"""The trials on disk survive a kill in the middle of a line."""

from __future__ import annotations

from pathlib import Path

from tuneline.core.verdict import Verdict
from tuneline.pipeline.tune.journal import (
    read_comparison_of,
    read_trials,
    write_comparison,
    write_trials,
)
from tuneline.pipeline.tune.schema import Comparison, State, Trial


def trial(number: int, state: State = "held") -> Trial:
    return Trial(number=number, knob="", settings={"n": number}, state=state, rate_rps=1.5)


def test_trials_are_read_as_they_were_written(tmp_path: Path) -> None:
    assert read_trials(tmp_path) == []
    write_trials(tmp_path, [trial(0), trial(1, "failed")])
    assert read_trials(tmp_path) == [trial(0), trial(1, "failed")]


def test_a_cut_line_a_gap_and_a_trial_without_time_end_the_list(tmp_path: Path) -> None:
    write_trials(tmp_path, [trial(0), trial(1)])
    file = tmp_path / "trials.jsonl"
    file.write_text(file.read_text()[:-20])
    assert read_trials(tmp_path) == [trial(0)]
    write_trials(tmp_path, [trial(0), trial(2)])
    assert read_trials(tmp_path) == [trial(0)]
    write_trials(tmp_path, [trial(0), trial(1, "cut off"), trial(2)])
    assert read_trials(tmp_path) == [trial(0)]


def test_a_comparison_belongs_to_its_settings(tmp_path: Path) -> None:
    made = Comparison(
        settings={"n": 1}, rate_rps=2.0, own_verdicts=[Verdict.FAIL],
        tuned_verdicts=[Verdict.PASS], e2e_difference_s=-0.1, e2e_ci95=(-0.2, -0.05),
        is_won=True, problem=None,
    )  # fmt: skip
    assert read_comparison_of(tmp_path, {"n": 1}) is None
    write_comparison(tmp_path, made)
    assert read_comparison_of(tmp_path, {"n": 1}) == made
    assert read_comparison_of(tmp_path, {"n": 2}) is None
    write_comparison(tmp_path, made.model_copy(update={"own_verdicts": []}))
    assert read_comparison_of(tmp_path, {"n": 1}) is None, "nothing was measured"
