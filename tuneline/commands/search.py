"""`tuneline search`: find better settings by many trainings."""

from __future__ import annotations

from dataclasses import replace

from tuneline.commands.option_values import open_run
from tuneline.commands.options import AsJson, NewRun, Overrides, RunFile, RunsDir
from tuneline.commands.printing import emit, set_goes_on
from tuneline.pipeline import DEFAULT_RUNS


def search(
    run_file: RunFile,
    out: NewRun = None,
    overrides: Overrides = None,
    runs_dir: RunsDir = DEFAULT_RUNS,
    as_json: AsJson = False,
) -> None:
    """Find better settings by many trainings, and write the best ones as a run.yaml.

    The section `search` of RUN.yaml says which keys are searched. The same command continues an
    interrupted search; several processes may run it at once.
    """
    from tuneline.pipeline.search import search_run

    run = open_run(run_file, overrides, runs_dir)
    set_goes_on()
    found = search_run(run, out)
    document = {
        "folder": str(found.folder),
        "winner": str(found.winner),
        "trials": list(found.trials),
        "plots": list(found.plots),
    }
    metric = run.config.search.metric
    lines = [f"{metric:>14}  trial  values"]
    for trial in found.trials:
        value = trial["state"] if trial["value"] is None else f"{trial['value']:.6g}"
        values = ", ".join(f"{name}={value}" for name, value in trial["values"].items())
        lines.append(f"{value:>{max(14, len(metric))}}  {trial['number']:>5}  {values}")
    lines += [f"plot: {path}" for path in found.plots]
    winner = replace(run, path=found.winner, overrides=())  # the new file has them
    lines += [f"best run: {found.winner}", f"Next: {winner.command('up')}"]
    emit(document, lines, as_json)
