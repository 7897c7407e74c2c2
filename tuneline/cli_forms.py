"""The commands that write a model in other forms, describe it and publish it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tuneline.cli_options import (
    DEFAULT_RUNS,
    AsJson,
    Overrides,
    RunOrDir,
    RunsDir,
    emit,
    emit_artifact,
    open_run,
)

ModelDir = Annotated[
    Path, typer.Option("--model", metavar="DIR", help="A model artifact or any model folder.")
]
OutDir = Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the result goes.")]


def export_onnx(
    model: ModelDir,
    out: OutDir,
    precision: Annotated[str, typer.Option(help="fp32, fp16, int8 or int4.")] = "fp32",
    graph: Annotated[
        str, typer.Option(help="decoder, which generates with a cache, or logits, in one pass.")
    ] = "decoder",
    as_json: AsJson = False,
) -> None:
    """Write a model as ONNX, with its tokenizer, chat template and stop tokens."""
    from export.config import OnnxConfig
    from export.forms import resolve_folder
    from export.to_onnx import export_onnx
    from tuneline.core.config import validate_config

    values = {"precision": precision, "graph": graph}
    config = validate_config(OnnxConfig, values, "tuneline export onnx")
    emit_artifact(export_onnx(config, resolve_folder(str(model)), out), as_json)


def export_torchscript(model: ModelDir, out: OutDir, as_json: AsJson = False) -> None:
    """Write a model as TorchScript, for runtimes that take nothing else."""
    from export.forms import resolve_folder
    from export.to_torchscript import export_torchscript

    emit_artifact(export_torchscript(resolve_folder(str(model)), out), as_json)


def export_torch_export(model: ModelDir, out: OutDir, as_json: AsJson = False) -> None:
    """Write a model as a torch.export program (.pt2), without a pickle."""
    from export.forms import resolve_folder
    from export.to_torch_export import export_torch_export

    emit_artifact(export_torch_export(resolve_folder(str(model)), out), as_json)


def export_prune(
    model: ModelDir,
    out: OutDir,
    sparsity: Annotated[
        float | None, typer.Option(help="Share of each matrix that becomes zero, e.g. 0.5.")
    ] = None,
    pattern: Annotated[str | None, typer.Option(help="2:4, two of each four inputs.")] = None,
    as_json: AsJson = False,
) -> None:
    """Set the smallest weights of a model to zero; prove says what it costs."""
    from export.config import PruneConfig
    from export.forms import resolve_folder
    from export.prune import prune
    from tuneline.core.config import validate_config

    values = {"sparsity": sparsity, "pattern": pattern}
    config = validate_config(PruneConfig, values, "tuneline export prune")
    emit_artifact(prune(config, resolve_folder(str(model)), out), as_json)


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
    from export.model_card import model_card
    from tuneline.core.artifact import open_artifact
    from tuneline.core.errors import ArtifactError
    from tuneline.pipeline import current

    if target.is_dir():
        model = open_artifact(target)
    else:
        (model,) = current(open_run(target, overrides, runs_dir), "model")
    text = model_card(model)
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
    from export.model_card import model_card
    from export.push import push as push_model
    from tuneline.core.artifact import MANIFEST, open_artifact

    text = model_card(open_artifact(model)) if (model / MANIFEST).is_file() else None
    where = push_model(model, to, text)
    emit({"path": where}, [f"published: {where}"], as_json)
