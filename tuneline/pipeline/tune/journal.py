"""The trials of a tuning on disk: a tuning that was killed goes on after the last whole trial."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from tuneline.core.disk import replace_file
from tuneline.pipeline.tune.schema import Comparison, Trial

TRIALS, COMPARISON = "trials.jsonl", "comparison.json"


def read_trials(folder: Path) -> list[Trial]:
    """Return the finished trials; a line that a kill cut off ends the list.

    A trial that the budget cut off is not finished: it is run again.
    """
    try:
        lines = (folder / TRIALS).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    found: list[Trial] = []
    for line in lines:
        try:
            trial = Trial.model_validate_json(line)
        except ValidationError:
            break
        if trial.number != len(found) or trial.state == "cut off":
            break
        found.append(trial)
    return found


def write_trials(folder: Path, trials: Sequence[Trial]) -> None:
    """Replace the file of trials, so that a kill leaves the old file or the new one."""
    text = "".join(trial.model_dump_json() + "\n" for trial in trials)
    replace_file(folder / TRIALS, text)


def read_comparison_of(folder: Path, settings: dict[str, object]) -> Comparison | None:
    """Return the comparison of these settings, if an earlier process has made it."""
    try:
        found = Comparison.model_validate_json((folder / COMPARISON).read_text(encoding="utf-8"))
    except (OSError, ValidationError):
        return None
    return found if found.settings == settings and found.own_verdicts else None


def write_comparison(folder: Path, comparison: Comparison) -> None:
    """Keep the comparison for a later process."""
    replace_file(folder / COMPARISON, comparison.model_dump_json(indent=2) + "\n")
