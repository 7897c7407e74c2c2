"""The commands on finished artifacts: inspect, card, push, pull."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tuneline.commands.option_values import open_run, refuse, required, storage_place
from tuneline.commands.options import AsJson, OptionalRun, Out, Overrides, RunOrDir, RunsDir
from tuneline.commands.printing import emit
from tuneline.core.errors import ArtifactError
from tuneline.pipeline import DEFAULT_RUNS

if TYPE_CHECKING:
    from tuneline.pipeline.run_config import Run


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
        refuse("of a directory", {"--set": overrides})
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
    from tuneline.core.disk import replace_file
    from tuneline.pipeline.plan import current
    from tuneline.pipeline.stage import MODEL

    if target.is_dir():
        refuse("of a directory", {"--set": overrides})
        model = open_artifact(target)
    else:
        (model,) = current(open_run(target, overrides, runs_dir), MODEL)
    text = write_model_card(model)
    if out is None:
        emit({"card": text}, [text.rstrip()], as_json)
        return
    if out.exists():
        raise ArtifactError(f"{out}: exists already", hint="Remove it, or choose another --out.")
    replace_file(out, text)
    emit({"path": str(out), "card": text}, [f"written: {out}"], as_json)


def push(
    run_file: OptionalRun = None,
    to: Annotated[
        str | None,
        typer.Option(
            metavar="PLACE",
            help="hf:ORG/NAME, a folder, a FILE.tar, or s3://BUCKET/PATH (gs://, az://).",
        ),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option("--model", metavar="DIR", help="One artifact or any model folder."),
    ] = None,
    overrides: Overrides = None,
    runs_dir: RunsDir = DEFAULT_RUNS,
    as_json: AsJson = False,
) -> None:
    """Publish a model with its card, or copy artifacts to object storage.

    The model of RUN.yaml, or any, goes to the Hugging Face Hub, a folder or a tar file. An
    artifact, or every current artifact of RUN.yaml, goes to object storage.
    """
    from tuneline.core.artifact import open_artifact
    from tuneline.core.storage import is_storage_url, push_artifact
    from tuneline.pipeline.plan import current
    from tuneline.pipeline.stage import MODEL

    place = required(to, "--to")
    is_stored = is_storage_url(place)
    if run_file is not None:
        refuse("with a run.yaml", {"--model": model})
        if is_stored:
            storage_place(place)
            _push_run(open_run(run_file, overrides, runs_dir), place, as_json)
            return
        (made,) = current(open_run(run_file, overrides, runs_dir), MODEL)
        directory = made.path
    else:
        refuse("without a run.yaml", {"--set": overrides or None})
        directory = required(model, "--model")
    if is_stored:
        is_new = push_artifact(open_artifact(directory, check_sizes=False), place)
        emit({"path": place}, [f"{'published' if is_new else 'there already'}: {place}"], as_json)
        return
    from export import push_model, write_model_card
    from tuneline.core.files import MANIFEST

    is_artifact = (directory / MANIFEST).is_file()
    text = write_model_card(open_artifact(directory)) if is_artifact else None
    where = push_model(directory, place, text)
    emit({"path": where}, [f"published: {where}"], as_json)


def _push_run(run: Run, place: str, as_json: bool) -> None:
    from tuneline.core.storage import push_artifact
    from tuneline.pipeline.plan import all_current
    from tuneline.pipeline.stored import place_of

    document: dict[str, str] = {}
    lines = []
    for name, artifact in all_current(run).items():
        url = place_of(run, artifact, place)
        is_new = push_artifact(artifact, url)
        document[name] = url
        lines.append(f"{'published' if is_new else 'there already'}: {url}")
    emit(document, lines, as_json)


def pull(
    target: Annotated[
        str, typer.Argument(metavar="RUN.yaml|URL", help="A run, or one place in object storage.")
    ],
    source: Annotated[
        str | None,
        typer.Option("--from", metavar="URL", help="Of a run: where its artifacts are."),
    ] = None,
    out: Out = None,
    files: Annotated[
        bool, typer.Option("--files", help="Of a URL: any files, such as data; no manifest.")
    ] = False,
    overrides: Overrides = None,
    runs_dir: RunsDir = DEFAULT_RUNS,
    as_json: AsJson = False,
) -> None:
    """Copy an artifact, or all artifacts of a run, from object storage.

    Every byte is compared with the manifest. A place whose upload has not ended is refused.
    """
    from tuneline.core.storage import is_storage_url, pull_artifact, pull_files

    if is_storage_url(target):
        refuse("with a URL", {"--from": source, "--set": overrides or None})
        directory = required(out, "--out")
        if files:
            number = pull_files(target, directory)
            emit({"path": str(directory)}, [f"{number} files: {directory}"], as_json)
            return
        artifact = pull_artifact(target, directory)
        document = {"path": str(directory), "digest": artifact.digest}
        emit(document, [f"ok  {directory}: {artifact.digest}"], as_json)
        return
    refuse("with a run.yaml", {"--out": out, "--files": files or None})
    from tuneline.pipeline.stored import pull_run

    run = open_run(Path(target), overrides, runs_dir)
    found = pull_run(run, required(source, "--from"))
    emit(
        {name: str(path) for name, path in found.items()},
        [f"ok  {path}" for path in found.values()],
        as_json,
    )
