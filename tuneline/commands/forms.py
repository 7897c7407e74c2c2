"""The commands that write a model in other forms, prove, describe and publish them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tuneline.commands.options import (
    DEFAULT_RUNS,
    AsJson,
    GroupSize,
    KeyEnv,
    ModelName,
    OptionalRun,
    Overrides,
    RunOrDir,
    RunsDir,
    emit,
    emit_artifact,
    endpoint_of,
    open_run,
    refuse,
    required,
    run_stages,
)
from tuneline.core.errors import ArtifactError, ConfigError, VerdictError

if TYPE_CHECKING:
    from export import CalibrationData
    from tuneline.core.artifact import Artifact
    from tuneline.core.endpoint import Endpoint

ModelDir = Annotated[
    Path, typer.Option("--model", metavar="DIR", help="A model artifact or any model folder.")
]
ModelId = Annotated[str, typer.Option("--model", help="Model folder or Hugging Face id.")]
OutDir = Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the result goes.")]


def export_quantize(
    model: ModelId,
    out: OutDir,
    scheme: Annotated[str | None, typer.Option(help="fp8, int8 or w4a16.")] = None,
    group_size: GroupSize = None,
    method: Annotated[
        str | None, typer.Option(help="gptq or awq: calibrate on --data, by llm-compressor.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(metavar="FILE|DIR", help="Training rows, or a dataset artifact."),
    ] = None,
    num_samples: Annotated[
        int | None,
        typer.Option(
            "--num-calibration-samples",
            "--num-samples",
            help="Conversations to calibrate on; 256 by default.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Quantize a model's linear layers to compressed-tensors.

    From the weights only, or with --method calibrated on conversations.
    """
    from export import quantize_calibrated, quantize_model
    from export.config import CalibratedConfig, QuantizeConfig
    from tuneline.core.config import validate_config
    from tuneline.models.source import resolve_model

    chosen = {"scheme": required(scheme, "--scheme"), "group_size": group_size, "method": method}
    chosen["num_calibration_samples"] = num_samples
    values = {key: value for key, value in chosen.items() if value is not None}
    where = "tuneline export quantize"
    if method is None:
        refuse("without --method", {"--data": data, "--num-calibration-samples": num_samples})
        config = validate_config(QuantizeConfig, values, where)
        emit_artifact(quantize_model(config, resolve_model(model), out), as_json)
        return
    calibrated = validate_config(CalibratedConfig, values, where)
    rows = calibration_data(required(data, "--data"))
    emit_artifact(quantize_calibrated(calibrated, resolve_model(model), out, rows), as_json)


def install_calibration(as_json: AsJson = False) -> None:
    """Make the environment that --method gptq and awq run in: llm-compressor, over 1 GB."""
    from export import install_calibration as install

    folder = install()
    emit({"path": str(folder)}, [f"installed: {folder}"], as_json)


def export_onnx(
    model: ModelDir,
    out: OutDir,
    weights: Annotated[
        str, typer.Option("--weights", "--precision", help="float32, float16, int8 or int4.")
    ] = "float32",
    graph: Annotated[
        str, typer.Option(help="decoder, which generates with a cache, or logits, in one pass.")
    ] = "decoder",
    as_json: AsJson = False,
) -> None:
    """Write a model as ONNX, with its tokenizer, chat template and stop tokens."""
    from export import export_onnx, resolve_folder
    from export.config import OnnxConfig
    from tuneline.core.config import validate_config

    values = {"weights": weights, "graph": graph}
    config = validate_config(OnnxConfig, values, "tuneline export onnx")
    emit_artifact(export_onnx(config, resolve_folder(str(model)), out), as_json)


def export_torchscript(model: ModelDir, out: OutDir, as_json: AsJson = False) -> None:
    """Write a model as TorchScript, for runtimes that take nothing else."""
    from export import make_form, resolve_folder

    emit_artifact(make_form("torchscript", resolve_folder(str(model)), out), as_json)


def export_torch_export(model: ModelDir, out: OutDir, as_json: AsJson = False) -> None:
    """Write a model as a torch.export program (.pt2), without a pickle."""
    from export import make_form, resolve_folder

    emit_artifact(make_form("torch-export", resolve_folder(str(model)), out), as_json)


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
    from export import prune_model, resolve_folder
    from export.config import PruneConfig
    from tuneline.core.config import validate_config

    values = {"sparsity": sparsity, "pattern": pattern}
    config = validate_config(PruneConfig, values, "tuneline export prune")
    emit_artifact(prune_model(config, resolve_folder(str(model)), out), as_json)


def prove(
    run_file: OptionalRun = None,
    reference: Annotated[Path | None, typer.Option(help="A reference artifact.")] = None,
    candidate: Annotated[
        str | None, typer.Option(metavar="DIR|URL", help="A model in any form, or a URL.")
    ] = None,
    model: ModelName = None,
    dtype: Annotated[
        str | None, typer.Option(help="What a server computes in: float32, float16, bfloat16.")
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The folder that the URL serves, if it was reduced."),
    ] = None,
    api_key_env: KeyEnv = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where the proof goes: ./parity-NAME.")
    ] = None,
    overrides: Overrides = None,
    runs_dir: RunsDir = DEFAULT_RUNS,
    as_json: AsJson = False,
) -> None:
    """Prove that later forms are the trained model.

    Holds every form that the run makes, from the merged to the served model, or any --candidate,
    against the reference, and exits with 6 where one differs by more than its tolerances.
    """
    from tuneline.core.verdict import require_verdict
    from tuneline.pipeline.stages import stage_names

    if run_file is not None:
        options = {
            "--reference": reference,
            "--candidate": candidate,
            "--model": model,
            "--dtype": dtype,
            "--weights": weights,
            "--out": out,
        }
        refuse("beside RUN.yaml", options)
        run = open_run(run_file, overrides, runs_dir)
        run_stages(run, stage_names(run, kind="parity"), as_json, ladder=True)
        return
    from tuneline.core.artifact import open_artifact

    golden = open_artifact(required(reference, "--reference"), kind="reference")
    form = required(candidate, "--candidate")
    if form.startswith(("http://", "https://")):
        result = _prove_url(golden, endpoint_of(form, model, api_key_env), weights, dtype, out)
        emit_artifact(result, as_json)
        try:
            require_verdict(result)
        except VerdictError as error:
            if weights is not None:
                raise
            hint = (
                f"{error.hint}\n  If the server's weights were reduced, name the folder that it "
                f"serves: tuneline prove --reference {reference} --candidate {form} "
                f"--model {model} --weights DIR --out {result.path}-weights"
            )
            raise VerdictError(error.message, hint=hint) from None
        return
    from export import form_name, prove_model, resolve_form
    from export.config import ParityConfig

    options = {
        "--model": model,
        "--dtype": dtype,
        "--weights": weights,
        "--api-key-env": api_key_env,
    }
    refuse("with a model on disk", options)
    source = resolve_form(form)
    out_dir = _proof_dir(out, source.path.resolve().name)
    result = prove_model(ParityConfig(), golden, source, out_dir, form=form_name(source))
    emit_artifact(result, as_json)
    require_verdict(result)


def _prove_url(
    golden: Artifact, endpoint: Endpoint, weights: Path | None, dtype: str | None, out: Path | None
) -> Artifact:
    """Hold a server's answers against the reference, by tolerances that fit its weights where the
    caller says which they are."""
    from serving.config import ServedParityConfig
    from serving.parity import prove_served
    from tuneline.core.tolerances import ARITHMETIC_TOLERANCES
    from tuneline.models.source import computed_dtype

    computed = dtype or "float32"
    rounding, stated, inputs = None, None, []
    if weights is not None:
        from export import resolve_weights, weight_tolerances, weights_of_folder

        source = resolve_weights(weights)
        computed = dtype or computed_dtype("auto", source)
        rounding = weight_tolerances(source, computed)
        stated = weights_of_folder(source.path)
        inputs = [source.as_input("weights")]
    if computed not in ARITHMETIC_TOLERANCES:
        raise ConfigError(f"--dtype {computed}: expected {' or '.join(ARITHMETIC_TOLERANCES)}")
    return prove_served(
        ServedParityConfig(), golden, endpoint, _proof_dir(out, endpoint.model),
        inputs=inputs, dtype=computed, weights=rounding, stated_weights=stated,
    )  # fmt: skip


def _proof_dir(out: Path | None, name: str) -> Path:
    """Where a proof goes; refused before the work of it where something is there already."""
    out_dir = out or Path(f"parity-{name.replace('/', '-')}")
    if out_dir.exists():
        raise ArtifactError(
            f"{out_dir}: exists already", hint="Remove it, or choose another --out."
        )
    return out_dir


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
    from tuneline.core.errors import ArtifactError
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


def calibration_data(path: Path) -> CalibrationData:
    """Return the conversations of a data file, or of a dataset artifact's training rows."""
    from export import CalibrationData
    from tuneline.core.artifact import open_artifact

    if path.is_dir():
        from training.data.prepare import TRAIN_FILE, dataset_rows

        dataset = open_artifact(path, kind="dataset")
        rows = dataset_rows(dataset, TRAIN_FILE)
        return CalibrationData([row.messages for row in rows], dataset.as_input("data"))
    from training.data.prepare import file_input
    from training.data.rows import read_rows

    return CalibrationData([row.messages for row in read_rows(path)], file_input("data", path))
