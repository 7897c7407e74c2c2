"""`tune.json`, the content of an artifact of kind `tune`."""

from __future__ import annotations

from typing import Any, Literal

from loadtest.config import SLO
from tuneline.core.artifact_kinds import TUNE
from tuneline.core.config import StrictModel
from tuneline.core.verdict import Verdict

TUNE_FILE = TUNE

State = Literal[
    "held", "beaten", "undecided", "no rate", "wrong", "failed", "refused", "invalid", "cut off"
]
"""The result of a trial.

- `held`: a rate above the best so far held twice, and the answers are the reference's.
- `beaten`: the rate to beat did not hold. `no rate`: no rate holds, and none is to beat.
- `undecided`: a verdict on the rate needs more requests than were sent.
- `wrong`: the rate held, and the answers are not the reference's.
- `failed`: the server did not start or died. `refused`: vLLM does not take the flags.
- `invalid`: the client was the limit. `cut off`: the budget ended.
"""


class Trial(StrictModel):
    """One configuration of the server, measured."""

    number: int
    knob: str
    """The row of the table that it tries; empty for the run's own settings."""
    settings: dict[str, Any]
    """All changes of run.yaml."""
    state: State
    rate_rps: float | None = None
    """The highest rate that held twice."""
    failing_rps: float | None = None
    """The lowest rate above it that failed."""
    to_beat_rps: float | None = None
    num_requests: int | None = None
    """Requests of the probe that confirmed the rate."""
    parity: Verdict | None = None
    problem: str | None = None
    attempts: int = 1
    """A failed trial is tried once more when the tuning goes on."""
    start_s: float = 0.0
    """From the start of the server until it was ready."""
    total_s: float = 0.0
    """Of all attempts."""


class Offer(StrictModel):
    """A row of the table, as it applies to this run."""

    knob: str
    reason: str
    settings: list[dict[str, Any]]
    unsuited: str | None


class Comparison(StrictModel):
    """The run's own settings (A) and the tuned ones (B), in turns at one rate."""

    settings: dict[str, Any]
    rate_rps: float
    own_verdicts: list[Verdict]
    tuned_verdicts: list[Verdict]
    e2e_difference_s: float | None
    """Mean paired difference of the end-to-end latency, B minus A."""
    e2e_ci95: tuple[float, float] | None
    is_won: bool
    """Every run of B keeps the objectives, and no run of A does."""
    problem: str | None


class TuneReport(StrictModel):
    """The trials, the winner, and its gain."""

    schema_version: Literal[1] = 1
    verdict: Verdict
    problems: list[str]
    slo: SLO
    is_changed: bool
    """Whether other settings than the run's own won."""
    settings: dict[str, Any]
    """The winner's changes of run.yaml."""
    rate_rps: float | None
    own_rate_rps: float | None
    gain: float | None
    """The winner's rate divided by the rate of the run's own settings."""
    gain_interval: tuple[float, float | None] | None
    """From the winner's rate over the lowest rate that failed with the run's own settings, to the
    lowest rate that failed with the winner over the rate of the run's own settings."""
    comparison: Comparison | None
    is_complete: bool
    """Whether every offered setting was tried; otherwise the budget ended."""
    budget_s: float
    spent_s: float
    offers: list[Offer]
    trials: list[Trial]
    winner: str | None
    """The file with the winner's run."""
