"""The command that removes what a run no longer needs."""

from __future__ import annotations

from typing import Annotated

import typer

from tuneline.commands.option_values import open_run
from tuneline.commands.options import AsJson, Overrides, RunFile, RunsDir
from tuneline.commands.printing import emit
from tuneline.core.page.numbers import size
from tuneline.pipeline import DEFAULT_RUNS


def clean(
    run_file: RunFile,
    remove: Annotated[bool, typer.Option("--remove", help="Remove them.")] = False,
    overrides: Overrides = None,
    runs_dir: RunsDir = DEFAULT_RUNS,
    as_json: AsJson = False,
) -> None:
    """List or remove the artifacts that no configuration of a run leads to any more.

    Current artifacts, releases, and what they were made from are kept.
    """
    from tuneline.pipeline.leftovers import find_leftovers, remove_leftovers

    run = open_run(run_file, overrides, runs_dir)
    left = find_leftovers(run)
    if remove:
        remove_leftovers(run, left.found)
    total = sum(one.size_bytes for one in left.found)
    lines = [f"  {size(one.size_bytes):>11}  {one.path}   {one.reason}" for one in left.found]
    for name in left.undecided:
        lines.append(f"kept: {name}-*, until {run.command('up')} has made the stages before it")
    what = f"{len(left.found)} folder{'' if len(left.found) == 1 else 's'}, {size(total)}"
    if not left.found:
        lines.append(f"{run.dir}: nothing to remove")
    elif remove:
        lines.append(f"removed: {what}")
    else:
        lines += [f"{what}; nothing is removed yet", f"  Try: {run.command('clean')} --remove"]
    document = {
        "found": [
            {"path": str(one.path), "size_bytes": one.size_bytes, "reason": one.reason}
            for one in left.found
        ],
        "size_bytes": total,
        "removed": remove,
        "undecided": left.undecided,
    }
    emit(document, lines, as_json)
