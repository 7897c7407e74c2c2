"""The command line: the table of contents of Tuneline.

Each command opens its inputs, calls one function and prints a short summary; `--json` prints one
JSON document on stdout instead. Progress and logs go to stderr. Nothing here imports a
machine-learning library, and the rooms are imported by the command that needs them.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from tuneline import __version__
from tuneline.commands import forms as cli_forms
from tuneline.commands import options as cli_options
from tuneline.commands import serving as cli_serving
from tuneline.commands.form_group import form_app
from tuneline.commands.loadtest import loadtest_app
from tuneline.commands.options import (
    DEFAULT_RUNS,
    AsJson,
    DefaultCommand,
    GroupSize,
    KeyEnv,
    ModelName,
    OptionalRun,
    Out,
    Overrides,
    RunFile,
    RunOrDir,
    RunsDir,
    Url,
    emit,
    emit_artifact,
    endpoint_of,
    open_run,
    refuse,
    required,
    run_stages,
)
from tuneline.core.environment import refuse_fetched_kernels
from tuneline.core.errors import ConfigError, TunelineError
from tuneline.core.progress import logger, set_up_logging

if TYPE_CHECKING:
    from concurrent.futures import Future

    from tuneline.core.artifact import Artifact
    from tuneline.models.source import ModelSource


class _ExportGroup(DefaultCommand):
    default = "merge"


app = typer.Typer(
    help="From a data file to a proven, load-tested OpenAI-compatible endpoint.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
export_app = typer.Typer(
    cls=_ExportGroup,
    help="Merge the adapter into the base; write the model in other forms.",
    no_args_is_help=True,
)
deploy_app = typer.Typer(help="Write Kubernetes manifests from a run.", no_args_is_help=True)


@app.callback(invoke_without_command=True)
def _root(
    verbose: Annotated[bool, typer.Option("--verbose", help="Show debugging messages.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    set_up_logging(verbose)
    if version:
        print(f"tuneline {__version__}")
        raise typer.Exit


@app.command()
def check(
    run_file: RunFile,
    overrides: Overrides = None,
    runs_dir: RunsDir = DEFAULT_RUNS,
    as_json: AsJson = False,
) -> None:
    """Validate a run before anything is trained.

    Configuration, every row of the data, the base model, its chat template and stop tokens.
    """
    from tuneline.pipeline.check import check_run

    run = open_run(run_file, overrides, runs_dir)
    found = check_run(run)
    emit(found, [f"ok  {name}: {what}" for name, what in found.items()], as_json)


@app.command()
def plan(
    run_file: RunFile,
    overrides: Overrides = None,
    runs_dir: RunsDir = DEFAULT_RUNS,
    as_json: AsJson = False,
) -> None:
    """Show what `up` would run, and why."""
    from tuneline.pipeline.plan import plan as plan_run

    planned = plan_run(open_run(run_file, overrides, runs_dir))
    document = [
        {
            "stage": entry.stage.name,
            "state": entry.state,
            "reason": entry.reason,
            "path": None if entry.path is None else str(entry.path),
        }
        for entry in planned
    ]
    lines = [f"{e.state:8} {e.stage.name:18} {e.stage.title} ({e.reason})" for e in planned]
    emit(document, lines, as_json)


@app.command()
def up(
    run_file: RunFile,
    overrides: Overrides = None,
    runs_dir: RunsDir = DEFAULT_RUNS,
    as_json: AsJson = False,
) -> None:
    """Run the whole line.

    What is stale runs, what is current is skipped, and an interrupted run goes on.
    """
    run_stages(open_run(run_file, overrides, runs_dir), (), as_json)
    # As it was typed: `make demo` leaves the shell's PATH alone.
    program = sys.argv[0] if Path(sys.argv[0]).name == "tuneline" else "tuneline"
    logger.info(
        "\nNext:\n  %s chat %s\n  %s serve %s --port 8000", program, run_file, program, run_file
    )


@app.command()
def train(
    run_file: RunFile,
    overrides: Overrides = None,
    runs_dir: RunsDir = DEFAULT_RUNS,
    as_json: AsJson = False,
) -> None:
    """Fine-tune a LoRA adapter and record its answers."""
    from tuneline.pipeline.stages import stage_names

    run = open_run(run_file, overrides, runs_dir)
    run_stages(run, stage_names(run, groups=("training",)), as_json)


@app.command()
def evaluate(
    run_file: RunFile,
    url: Url = None,
    model: ModelName = None,
    api_key_env: KeyEnv = None,
    out: Out = None,
    overrides: Overrides = None,
    runs_dir: RunsDir = DEFAULT_RUNS,
    as_json: AsJson = False,
) -> None:
    """Score base, tuned and served model on held-out rows.

    With --url, score any OpenAI-compatible endpoint.
    """
    run = open_run(run_file, overrides, runs_dir)
    if url is None:
        refuse("without --url", {"--model": model, "--out": out, "--api-key-env": api_key_env})
        from tuneline.pipeline.stages import stage_names

        run_stages(run, stage_names(run, kind="evaluation"), as_json)
        return
    from training.evaluation.evaluate import evaluate_endpoint
    from tuneline.pipeline.stage import DATASET
    from tuneline.pipeline.up import up as up_run

    dataset = up_run(run, (DATASET,))[DATASET]
    endpoint = endpoint_of(url, model, api_key_env)
    result = evaluate_endpoint(run.config.evaluation, dataset, endpoint, required(out, "--out"))
    emit_artifact(result, as_json)


@export_app.command("merge")
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
    if run_file is not None:
        options = {
            "--base": base,
            "--adapter": adapter,
            "--dtype": dtype,
            "--merge-base": merge_base,
            "--quantize": quantize,
            "--group-size": group_size,
            "--out": out,
        }
        refuse("beside RUN.yaml", options)
        from tuneline.pipeline.stages import stage_names

        run = open_run(run_file, overrides, runs_dir)
        run_stages(run, stage_names(run, groups=("export", "parity")), as_json)
        return
    from export.config import MergeConfig
    from tuneline.core.config import validate_config

    chosen = {
        "dtype": dtype,
        "merge_base": merge_base,
        "quantize": quantize,
        "group_size": group_size,
    }
    values = {key: value for key, value in chosen.items() if value is not None}
    config = validate_config(MergeConfig, values, "tuneline export merge")
    base, out = required(base, "--base"), required(out, "--out")
    adapters = _weighted(required(adapter, "--adapter"))
    # The base is read for its digest while torch is imported: both take seconds.
    source = _resolve_beside(base)
    from export import merge_adapter

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


@deploy_app.command("render")
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


@app.command()
def inspect(
    target: RunOrDir,
    overrides: Overrides = None,
    runs_dir: RunsDir = DEFAULT_RUNS,
    as_json: AsJson = False,
) -> None:
    """Show an artifact's manifest, or every artifact of a run."""
    from tuneline.core.artifact import open_artifact
    from tuneline.pipeline.plan import all_current
    from tuneline.pipeline.results import describe_artifact, summarize

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


@app.command()
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


@app.command()
def doctor(
    run_file: OptionalRun = None,
    overrides: Overrides = None,
    runs_dir: RunsDir = DEFAULT_RUNS,
    as_json: AsJson = False,
) -> None:
    """Say what this machine has and lacks."""
    from tuneline.pipeline.doctor import examine_machine, require_rooms

    run = None if run_file is None else open_run(run_file, overrides, runs_dir)
    findings = examine_machine(runs_dir)
    lines = [f"{'ok' if f['ok'] else '--':3} {f['what']:22} {f['found']}" for f in findings]
    emit(findings, lines, as_json)
    if run is not None:
        require_rooms(findings)


app.command("serve")(cli_serving.serve)
app.command("chat")(cli_serving.chat)
export_app.add_typer(form_app, name="form")
export_app.command("quantize")(cli_forms.export_quantize)
export_app.command("install-calibration")(cli_forms.install_calibration)
export_app.command("onnx")(cli_forms.export_onnx)
export_app.command("torchscript")(cli_forms.export_torchscript)
export_app.command("torch-export")(cli_forms.export_torch_export)
export_app.command("prune")(cli_forms.export_prune)
app.command("prove")(cli_forms.prove)
app.command("card")(cli_forms.card)
app.command("push")(cli_forms.push)
app.add_typer(export_app, name="export")
app.add_typer(loadtest_app, name="loadtest")
app.add_typer(deploy_app, name="deploy")


def main() -> NoReturn:
    """Run the command line; the only place that turns errors into exit codes."""
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGINT, _interrupt)
    refuse_fetched_kernels()
    try:
        app()
    except TunelineError as error:
        # One document on stdout: where a command has printed its result, that is it.
        if "--json" in sys.argv and not cli_options.emitted:
            fault = {
                "type": type(error).__name__,
                "message": error.message,
                "hint": error.hint,
                "exit_code": error.exit_code,
            }
            print(json.dumps({"error": fault}, indent=2))
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # The reader of stdout has gone (`| head`): nothing more can be said there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    sys.exit(0)


def _interrupt(signum: int, _frame: Any) -> NoReturn:
    """Unwind, so that servers are ended and half-written artifacts removed, then exit as killed."""
    signal.signal(signum, signal.SIG_DFL)
    logger.info("interrupted; the same command goes on from what is finished")
    raise SystemExit(128 + signum)


def _weighted(given: list[str]) -> Path | list[tuple[Path | Artifact, float]]:
    """`DIR` alone is that adapter as it is; `DIR=WEIGHT`, or several, is a weighted sum."""
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
                f"--adapter {text}: {weight!r} is no weight; expected a number other than 0",
                hint=f"Try: --adapter {folder}=0.5",
            )
        adapters.append((Path(folder), value))
    return adapters
