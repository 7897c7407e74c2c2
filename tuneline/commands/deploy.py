"""The command that renders Kubernetes manifests."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tuneline.commands.option_values import open_run, refuse, required
from tuneline.commands.options import AsJson, Out, Overrides, ReleaseDir, RunFile, RunsDir
from tuneline.commands.printing import emit
from tuneline.pipeline import DEFAULT_RUNS

if TYPE_CHECKING:
    from tuneline.pipeline.run_config import Run


def deploy_render(
    run_file: RunFile,
    out: Out = None,
    release: ReleaseDir = None,
    allow_unreleased: Annotated[
        bool,
        typer.Option("--allow-unreleased", help="Render without a release, and mark every object."),
    ] = False,
    helm: Annotated[
        bool, typer.Option("--helm", help="Write a Helm chart in place of a kustomization.")
    ] = False,
    training: Annotated[
        bool,
        typer.Option("--training", help="Render the training of k8s.training, before a release."),
    ] = False,
    overrides: Overrides = None,
    runs_dir: RunsDir = DEFAULT_RUNS,
    as_json: AsJson = False,
) -> None:
    """Write the Kubernetes manifests of a released run, with its image and model filled in.

    Exits with 6 without a release whose gates pass. With --training it writes those of the run's
    training, which needs no artifact.
    """
    if training:
        refuse(
            "with --training",
            {
                "--release": release,
                "--allow-unreleased": allow_unreleased or None,
                "--helm": helm or None,
            },
        )
        _render_training(open_run(run_file, overrides, runs_dir), required(out, "--out"), as_json)
        return
    from tuneline.pipeline.deploy import reference_to_copy, render_run

    if allow_unreleased:
        refuse("with --allow-unreleased", {"--release": release})
    run = open_run(run_file, overrides, runs_dir)
    written = render_run(
        run,
        required(out, "--out"),
        release_dir=release,
        allow_unreleased=allow_unreleased,
        helm=helm,
    )
    config = run.config
    server = f"kubectl apply -k {written}"
    if helm:
        server = f"helm upgrade --install {config.name} {written} -n {config.k8s.namespace}"
    loadtest = written / "load-test"
    lines = [f"written: {written}", f"  {server}"]
    lines += [f"  kubectl apply -k {loadtest}"] * loadtest.is_dir()
    if (reference := reference_to_copy(run)) is not None:
        here, there = reference
        lines += [
            f"copy this to the claim {config.k8s.results_claim} before:  {here} -> {there}",
            f"  kubectl apply -k {written / 'judge'}",
        ]
    if config.k8s.adapters is not None:
        lines.append(f"  kubectl apply -k {written / 'adapters'}")
    emit({"path": str(written)}, lines, as_json)


def _render_training(run: Run, out: Path, as_json: bool) -> None:
    from tuneline.pipeline.deploy_training import render_run_training

    written, files = render_run_training(run, out)
    lines = [f"written: {written}", f"  kubectl apply -k {written}"]
    if files:
        lines += ["copy these before:", *(f"  {here} -> {there}" for here, there in files.items())]
    emit({"path": str(written), "files": files}, lines, as_json)
