"""The command that renders Kubernetes manifests."""

from __future__ import annotations

from tuneline.commands.option_values import open_run, required
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
    overrides: Overrides = None,
    runs_dir: RunsDir = DEFAULT_RUNS,
    as_json: AsJson = False,
) -> None:
    """Write the Kubernetes manifests of a run, with its image, model and digest filled in."""
    from tuneline.pipeline.deploy import render_run

    written = render_run(open_run(run_file, overrides, runs_dir), required(out, "--out"))
    targets = [path for path in (written, written / "load-test") if path.is_dir()]
    emit(
        {"path": str(written)},
        [f"written: {written}", *(f"  kubectl apply -k {target}" for target in targets)],
        as_json,
    )
