"""The command that renders Kubernetes manifests."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tuneline.commands.option_values import open_run, refuse, required
from tuneline.commands.options import (
    DEFAULT_RUNS,
    AsJson,
    Out,
    Overrides,
    RunFile,
    RunsDir,
)
from tuneline.commands.printing import emit


def deploy_render(
    run_file: RunFile,
    out: Out = None,
    release: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The release; by default the newest of the run's model."),
    ] = None,
    allow_unreleased: Annotated[
        bool,
        typer.Option("--allow-unreleased", help="Render without a release, and mark every object."),
    ] = False,
    overrides: Overrides = None,
    runs_dir: RunsDir = DEFAULT_RUNS,
    as_json: AsJson = False,
) -> None:
    """Write the Kubernetes manifests of a released run, with its image and model filled in.

    Exits with 6 without a release whose gates pass.
    """
    from tuneline.pipeline.deploy import render_run

    if allow_unreleased:
        refuse("with --allow-unreleased", {"--release": release})
    run = open_run(run_file, overrides, runs_dir)
    written = render_run(
        run, required(out, "--out"), release_dir=release, allow_unreleased=allow_unreleased
    )
    targets = [path for path in (written, written / "load-test") if path.is_dir()]
    emit(
        {"path": str(written)},
        [f"written: {written}", *(f"  kubectl apply -k {target}" for target in targets)],
        as_json,
    )
