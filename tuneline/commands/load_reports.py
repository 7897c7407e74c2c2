"""The commands on finished load reports: join shards, write a report in another format."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tuneline.commands.option_values import refuse, required
from tuneline.commands.options import (
    AsJson,
    Out,
)
from tuneline.commands.printing import emit, emit_artifact, write_out
from tuneline.core.errors import ConfigError

KINDS = ("load-report", "load-search", "load-sweep", "load-pareto", "load-comparison")


class Form(StrEnum):
    table = "table"
    html = "html"
    markdown = "markdown"
    json = "json"
    csv = "csv"
    vllm = "vllm"
    prometheus = "prometheus"
    otlp = "otlp"
    mlflow = "mlflow"


def join(
    shards: Annotated[
        list[Path], typer.Argument(metavar="DIR", help="The shards of one load test.")
    ],
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Join the shards of several load pods into one report."""
    from loadtest import join_shards
    from tuneline.core.verdict import require_verdict

    report = join_shards(shards, required(out, "--out"))
    emit_artifact(report, as_json)
    require_verdict(report)


def report(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A load report, or a study.")],
    form: Annotated[Form | None, typer.Option("--format", help="How to write it (table).")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="A file, in place of stdout.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print a load report in another form, or log it to MLflow."""
    from loadtest import report_text
    from tuneline.core.artifact import open_artifact
    from tuneline.core.disk import replace_file

    if as_json and out is None and form is not Form.json:
        refuse("with --json, which prints the report itself", {"--format": form})
    if out is not None and not out.absolute().parent.is_dir():
        raise ConfigError(f"--out {out}: no directory {out.absolute().parent}")
    if out is not None and out.is_dir():
        raise ConfigError(f"--out {out}: a directory; expected a file")
    artifact = open_artifact(directory, kind=KINDS)
    if form is None:
        form = Form.json if as_json else Form.table
    if form is Form.table and artifact.kind != "load-report":
        form = Form.markdown
    text = report_text(artifact, form)
    if out is None:
        write_out(text.removesuffix("\n"))
        return
    # Renamed into place: a collector of text files never reads half of one.
    replace_file(out, text)
    emit({"path": str(out)}, [f"written: {out}"], as_json)
