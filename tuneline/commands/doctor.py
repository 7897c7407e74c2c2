"""The command that says what this machine has and lacks."""

from __future__ import annotations

from tuneline.commands.option_values import open_run, refuse
from tuneline.commands.options import AsJson, OptionalRun, Overrides, RunsDir
from tuneline.commands.printing import emit
from tuneline.pipeline import DEFAULT_RUNS


def doctor(
    run_file: OptionalRun = None,
    overrides: Overrides = None,
    runs_dir: RunsDir = DEFAULT_RUNS,
    as_json: AsJson = False,
) -> None:
    """Say what this machine has and lacks."""
    from tuneline.pipeline.doctor import examine_machine, require_rooms

    if run_file is None:
        refuse("without RUN.yaml", {"--set": overrides})
    run = None if run_file is None else open_run(run_file, overrides, runs_dir)
    findings = examine_machine(runs_dir)
    lines = [f"{'ok' if f['ok'] else '--':3} {f['what']:22} {f['found']}" for f in findings]
    emit(findings, lines, as_json)
    if run is not None:
        require_rooms(findings)
