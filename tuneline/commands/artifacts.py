"""The commands on finished artifacts: inspect, verify, card, push."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tuneline.commands.option_values import open_run
from tuneline.commands.options import (
    DEFAULT_RUNS,
    AsJson,
    ModelDir,
    Overrides,
    RunOrDir,
    RunsDir,
)
from tuneline.commands.printing import emit
from tuneline.core.errors import ArtifactError


def inspect(
    target: RunOrDir,
    overrides: Overrides = None,
    runs_dir: RunsDir = DEFAULT_RUNS,
    as_json: AsJson = False,
) -> None:
    """Show an artifact's manifest, or every artifact of a run."""
    from tuneline.core.artifact import open_artifact
    from tuneline.pipeline.artifact_summary import describe_artifact, summarize
    from tuneline.pipeline.plan import all_current

    if target.is_dir():
        artifact = open_artifact(target)
        emit(artifact.manifest.model_dump(), describe_artifact(artifact), as_json)
        return
    artifacts = all_current(open_run(target, overrides, runs_dir))
    document = {name: artifact.manifest.model_dump() for name, artifact in artifacts.items()}
    lines = [
        f"{name:18} {artifact.short_digest}  {summarize(artifact)}"
        for name, artifact in artifacts.items()
    ]
    emit(document, lines, as_json)


def verify(
    target: RunOrDir,
    overrides: Overrides = None,
    runs_dir: RunsDir = DEFAULT_RUNS,
    as_json: AsJson = False,
) -> None:
    """Compare every byte with the manifests."""
    from tuneline.core.artifact import open_artifact, verify_artifact
    from tuneline.pipeline.plan import all_current

    if target.is_dir():
        artifacts = {target.name: open_artifact(target)}
    else:
        artifacts = all_current(open_run(target, overrides, runs_dir))
    for artifact in artifacts.values():
        verify_artifact(artifact)
    document = {name: artifact.digest for name, artifact in artifacts.items()}
    lines = [
        f"ok  {name}: {len(artifact.manifest.files)} files, {artifact.digest}"
        for name, artifact in artifacts.items()
    ]
    emit(document, lines, as_json)


def card(
    target: RunOrDir,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="A README.md to write.")
    ] = None,
    overrides: Overrides = None,
    runs_dir: RunsDir = DEFAULT_RUNS,
    as_json: AsJson = False,
) -> None:
    """Write the model card of a run's model, or of a model artifact, from the manifests."""
    from export import write_model_card
    from tuneline.core.artifact import open_artifact
    from tuneline.pipeline.plan import current
    from tuneline.pipeline.stage import MODEL

    if target.is_dir():
        model = open_artifact(target)
    else:
        (model,) = current(open_run(target, overrides, runs_dir), MODEL)
    text = write_model_card(model)
    if out is None:
        emit({"card": text}, [text.rstrip()], as_json)
        return
    if out.exists():
        raise ArtifactError(f"{out}: exists already", hint="Remove it, or choose another --out.")
    out.write_text(text, encoding="utf-8")
    emit({"path": str(out), "card": text}, [f"written: {out}"], as_json)


def push(
    model: ModelDir,
    to: Annotated[
        str, typer.Option(metavar="hf:ORG/NAME|DIR|FILE.tar", help="Where it is published.")
    ],
    as_json: AsJson = False,
) -> None:
    """Publish a model with its card: to the Hugging Face Hub, a folder or a tar file."""
    from export import push_model, write_model_card
    from tuneline.core.artifact import MANIFEST, open_artifact

    text = write_model_card(open_artifact(model)) if (model / MANIFEST).is_file() else None
    where = push_model(model, to, text)
    emit({"path": where}, [f"published: {where}"], as_json)
