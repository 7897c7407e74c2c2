"""The commands that plan a line and run its stages: check, plan, up, train."""

from __future__ import annotations

import shlex
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tuneline.commands.option_values import open_run, storage_place
from tuneline.commands.options import AsJson, Overrides, PushTo, RunFile, RunsDir
from tuneline.commands.printing import emit
from tuneline.commands.run_stages import run_stages
from tuneline.core.progress import logger
from tuneline.pipeline import DEFAULT_RUNS
from tuneline.pipeline.stage import ADAPTER

if TYPE_CHECKING:
    from tuneline.pipeline.run_config import Run


def check(
    run_file: RunFile,
    overrides: Overrides = None,
    runs_dir: RunsDir = DEFAULT_RUNS,
    as_json: AsJson = False,
) -> None:
    """Validate a run before anything is trained.

    Configuration, base model, chat template, stop tokens, vLLM's flags, and every row of the data
    by the data checks. The checked dataset stays in the run's folder, so `up` does not repeat them.
    """
    from tuneline.pipeline.check import check_run

    run = open_run(run_file, overrides, runs_dir)
    checked = check_run(run)
    lines = [f"ok    {name}: {what}" for name, what in checked.found.items()]
    for finding in checked.findings:
        lines += [
            f"{finding.action:4}  {finding.check}: {finding.what}",
            f"      {finding.example}",
            *([f"      {finding.advice}"] if finding.advice else []),
        ]
    lines += [f"warn  {warning}" for warning in checked.warnings]
    findings = [asdict(finding) for finding in checked.findings]
    document = {**checked.found, "findings": findings, "warnings": checked.warnings}
    emit(document, [*lines, f"Next: {_typed(run, 'up')}"], as_json)


def plan(
    run_file: RunFile,
    overrides: Overrides = None,
    runs_dir: RunsDir = DEFAULT_RUNS,
    probe: Annotated[
        bool, typer.Option("--probe", help="Train ten steps, and print how long training takes.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show what `up` would run, and why.

    It also prints the memory of training, merging and serving, and what `auto` means here.
    """
    from tuneline.pipeline.plan import estimate_run, made_elsewhere
    from tuneline.pipeline.plan import plan as plan_run
    from tuneline.pipeline.probe import probe_run

    run = open_run(run_file, overrides, runs_dir)
    planned = plan_run(run)
    estimate, estimate_text = estimate_run(run)
    found, time_text = probe_run(run) if probe else ({}, [])
    document = [
        {
            "stage": entry.stage.name,
            "state": entry.state,
            "reason": entry.reason,
            "path": None if entry.path is None else str(entry.path),
            **({"estimate": estimate, **found} if entry.stage.name == ADAPTER else {}),
        }
        for entry in planned
    ]
    lines = [f"{e.state:8} {e.stage.name:18} {e.stage.title} ({e.reason})" for e in planned]
    lines += ["", elsewhere] if (elsewhere := made_elsewhere(run)) else []
    emit(document, [*lines, "", *estimate_text, *time_text], as_json)


def up(
    run_file: RunFile,
    overrides: Overrides = None,
    push_to: PushTo = None,
    runs_dir: RunsDir = DEFAULT_RUNS,
    as_json: AsJson = False,
) -> None:
    """Run the whole line.

    It runs the stale stages, skips the current ones, and continues an interrupted run.
    """
    run = open_run(run_file, overrides, runs_dir)
    run_stages(run, (), as_json=as_json, push_to=storage_place(push_to))
    if run.config.training.method.answers_prompts:
        logger.info("\nNext:\n  %s\n  %s --port 8000", _typed(run, "chat"), _typed(run, "serve"))
    elif run.config.serving.pools:
        logger.info("\nNext:\n  %s --port 8000", _typed(run, "serve"))


def _typed(run: Run, command: str) -> str:
    """Return a command on the run, with the program as it was typed.

    `make demo` does not change the shell's PATH.
    """
    program = sys.argv[0] if Path(sys.argv[0]).name == "tuneline" else "tuneline"
    program = "tuneline" if shutil.which("tuneline") == program else program
    return run.command(command).replace("tuneline", shlex.quote(program), 1)


def train(
    run_file: RunFile,
    overrides: Overrides = None,
    push_to: PushTo = None,
    runs_dir: RunsDir = DEFAULT_RUNS,
    as_json: AsJson = False,
) -> None:
    """Train the model of a run, and record its answers."""
    from tuneline.pipeline.stages import stage_names

    run = open_run(run_file, overrides, runs_dir)
    until = stage_names(run, groups=("training",))
    run_stages(run, until, as_json=as_json, push_to=storage_place(push_to))
