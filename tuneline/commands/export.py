"""The commands that write a model: merge it, or write it in another form."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tuneline.commands.option_values import given, open_run, refuse, required
from tuneline.commands.options import (
    AsJson,
    GroupSize,
    ModelId,
    OptionalRun,
    Out,
    OutDir,
    Overrides,
    RunsDir,
)
from tuneline.commands.printing import emit, emit_artifact, set_goes_on
from tuneline.commands.run_stages import run_stages
from tuneline.core.errors import ConfigError
from tuneline.pipeline import DEFAULT_RUNS

if TYPE_CHECKING:
    from concurrent.futures import Future

    from tuneline.core.artifact import Artifact
    from tuneline.models.source import ModelSource


def export_merge(
    run_file: OptionalRun = None,
    base: Annotated[str | None, typer.Option(help="Model folder or Hugging Face id.")] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DIR[=WEIGHT]",
            help="Any PEFT adapter folder; given several times, their weighted sum.",
        ),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="auto (the default), float32, bfloat16 or float16.")
    ] = None,
    merge_base: Annotated[
        str | None,
        typer.Option(help="For an adapter trained in 4 bits: auto, original or dequantized."),
    ] = None,
    quantize: Annotated[
        str | None, typer.Option(help="Quantize in the same pass: fp8, int8 or w4a16.")
    ] = None,
    group_size: GroupSize = None,
    out: Out = None,
    overrides: Overrides = None,
    runs_dir: RunsDir = DEFAULT_RUNS,
    as_json: AsJson = False,
) -> None:
    """Merge an adapter into its base: a run's own, or any with --base and --adapter.

    A merge that was killed goes on where it stopped when the same command is given again.
    """
    chosen = {
        "dtype": dtype,
        "merge_base": merge_base,
        "quantize": quantize,
        "group_size": group_size,
    }
    if run_file is not None:
        flags = {f"--{name.replace('_', '-')}": value for name, value in chosen.items()}
        refuse("with RUN.yaml", {"--base": base, "--adapter": adapter, **flags, "--out": out})
        from tuneline.pipeline.stages import stage_names

        run = open_run(run_file, overrides, runs_dir)
        run_stages(run, stage_names(run, groups=("export", "parity")), as_json=as_json)
        return
    from export.config import MergeConfig
    from tuneline.core.config import validate_config

    refuse("without RUN.yaml", {"--set": overrides})
    if quantize != "w4a16":
        refuse("without --quantize w4a16", {"--group-size": group_size})
    config = validate_config(MergeConfig, given(chosen), "tuneline export merge")
    base, out = required(base, "--base"), required(out, "--out")
    adapters = _weighted(required(adapter, "--adapter"))
    # The base is read for its digest while torch is imported: both take seconds.
    source = _resolve_beside(base)
    from export import merge_adapter

    set_goes_on()
    emit_artifact(merge_adapter(config, source.result(), adapters, out), as_json)


def _resolve_beside(name: str) -> Future[ModelSource]:
    """Find a model in a thread that ends with the process, so that Ctrl-C need not wait for it."""
    from concurrent.futures import Future
    from threading import Thread

    from tuneline.models.source import resolve_model

    found: Future[ModelSource] = Future()

    def resolve() -> None:
        try:
            found.set_result(resolve_model(name))
        except Exception as error:  # noqa: BLE001 (raised where the result is asked for)
            found.set_exception(error)

    Thread(target=resolve, daemon=True).start()
    return found


def _weighted(given: list[str]) -> Path | list[tuple[Path | Artifact, float]]:
    """Return the adapter's path for a single `DIR`; for `DIR=WEIGHT` or several, the weighted
    sum."""
    if len(given) == 1 and ("=" not in given[0] or Path(given[0]).is_dir()):
        return Path(given[0])
    adapters: list[tuple[Path | Artifact, float]] = []
    for text in given:
        folder, equals, weight = text.rpartition("=")
        if not equals or Path(text).is_dir():
            adapters.append((Path(text), 1.0))
            continue
        try:
            value = float(weight)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or value == 0:
            raise ConfigError(
                f"--adapter {text}: the weight is {weight!r}; expected a number other than 0",
                hint=f"Try: --adapter {folder}=0.5",
            )
        adapters.append((Path(folder), value))
    return adapters


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
            "--num-calibration-samples", help="Conversations to calibrate on; 256 by default."
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
    from tuneline.pipeline.calibration import read_calibration

    chosen: dict[str, Any] = {
        "scheme": required(scheme, "--scheme"),
        "group_size": group_size,
        "method": method,
        "num_calibration_samples": num_samples,
    }
    values: dict[str, Any] = given(chosen)
    where = "tuneline export quantize"
    if scheme != "w4a16":
        refuse("without --scheme w4a16", {"--group-size": group_size})
    if method is None:
        refuse("without --method", {"--data": data, "--num-calibration-samples": num_samples})
        config = validate_config(QuantizeConfig, values, where)
        emit_artifact(quantize_model(config, resolve_model(model), out), as_json)
        return
    calibrated = validate_config(CalibratedConfig, values, where)
    rows = read_calibration(required(data, "--data"))
    emit_artifact(quantize_calibrated(calibrated, resolve_model(model), out, rows), as_json)


def install_calibration(as_json: AsJson = False) -> None:
    """Make the environment that --method gptq and awq run in: llm-compressor, over 1 GB."""
    from export import install_calibration as install

    folder = install()
    emit({"path": str(folder)}, [f"installed: {folder}"], as_json)
