"""`tuneline tune`: find vLLM's flags for the highest rate that keeps the objectives."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tuneline.commands.option_values import open_run, seconds_of
from tuneline.commands.options import AsJson, NewRun, Overrides, RunFile, RunsDir
from tuneline.commands.printing import emit, emit_artifact, set_goes_on
from tuneline.pipeline import DEFAULT_RUNS

if TYPE_CHECKING:
    from tuneline.pipeline.tune.run import Tuned


def tune(
    run_file: RunFile,
    budget: Annotated[
        str, typer.Option(metavar="TIME", help="For all trials: 20m, 1.5h, 900s.")
    ] = "20m",
    requests: Annotated[int, typer.Option(help="Measured requests of each probe.")] = 300,
    precision: Annotated[float, typer.Option(help="Share by which a rate is known.")] = 0.1,
    max_rate: Annotated[float, typer.Option(help="No higher rate is tried.")] = 1000.0,
    drafter: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A smaller model, for speculative decoding."),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="FLAG", help='Try this row of the table only, such as "sequences".'),
    ] = None,
    out: NewRun = None,
    overrides: Overrides = None,
    runs_dir: RunsDir = DEFAULT_RUNS,
    as_json: AsJson = False,
) -> None:
    """Find vLLM's flags for the highest rate that keeps the objectives of RUN.yaml.

    The winner's answers are proven, a comparison in turns confirms its rate, and it is written as
    a run.yaml. If nothing is surely better, the run's own settings stay. The same command
    continues a tuning that was killed.
    """
    from tuneline.core.verdict import require_verdict
    from tuneline.pipeline.tune.run import Options, tune_run

    run = open_run(run_file, overrides, runs_dir)
    budget_s = seconds_of(budget, "--budget")
    options = Options(budget_s, requests, precision, max_rate, drafter, only or ())
    set_goes_on()
    tuned = tune_run(run, options, out)
    if as_json:
        emit_artifact(tuned.artifact, as_json)
    else:
        emit({}, _lines(tuned, run_file), as_json)
    require_verdict(tuned.artifact)


def _lines(tuned: Tuned, run_file: Path) -> list[str]:
    """Return the trials and the result for people."""
    from tuneline.pipeline.artifact_summary import summarize
    from tuneline.pipeline.tune.bench import describe_trial
    from tuneline.pipeline.tune.tune import is_tried_again

    report = tuned.report
    lines = [f"trial {trial.number:>2}: {describe_trial(trial)}" for trial in report.trials]
    if not report.is_complete:
        lines.append("the budget ended before every setting was tried; a larger --budget goes on")
    if any(is_tried_again(trial) for trial in report.trials):
        lines.append("a trial failed; the same command tries it again, if the budget has the time")
    lines += [f"! {problem}" for problem in report.problems]
    lines += [summarize(tuned.artifact), f"evidence: {tuned.artifact.path}"]
    if tuned.winner is not None:
        return [*lines, f"tuned run: {tuned.winner}"]
    return [*lines, f"the settings of {run_file} stay: nothing is surely better"]
