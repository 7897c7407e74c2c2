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
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import typer
from typer.core import TyperGroup

from tuneline import __version__
from tuneline.core.errors import ConfigError, TunelineError
from tuneline.core.progress import logger, set_up_logging

if TYPE_CHECKING:
    from tuneline.config import Run
    from tuneline.core.artifact import Artifact
    from tuneline.core.endpoint import Endpoint


class DefaultCommand(TyperGroup):
    """A group that can be used without naming a command: `loadtest RUN.yaml` is
    `loadtest run RUN.yaml`, and `export RUN.yaml` is `export merge RUN.yaml`."""

    default: str

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("-h", "--help"):
            args = [self.default, *args]
        return super().parse_args(ctx, args)


class _ExportGroup(DefaultCommand):
    default = "merge"


class _LoadTestGroup(DefaultCommand):
    default = "run"


app = typer.Typer(
    help="From a data file to a proven, load-tested OpenAI-compatible endpoint.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
export_app = typer.Typer(
    cls=_ExportGroup,
    help="Merge the adapter into the base; quantize a model.",
    no_args_is_help=True,
)
loadtest_app = typer.Typer(
    cls=_LoadTestGroup, help="Measure an endpoint under load.", no_args_is_help=True
)
deploy_app = typer.Typer(help="Write Kubernetes manifests from a run.", no_args_is_help=True)

RunFile = Annotated[Path, typer.Argument(metavar="RUN.yaml", help="The run's configuration.")]
RunOrDir = Annotated[
    Path, typer.Argument(metavar="RUN.yaml|DIR", help="A run, or the directory of one artifact.")
]
OptionalRun = Annotated[
    Path | None, typer.Argument(metavar="[RUN.yaml]", help="The run's configuration.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key: training.learning_rate=1e-4"),
]
RunsDir = Annotated[
    Path, typer.Option("--runs-dir", help="Where runs keep their artifacts.", metavar="DIR")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Out = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Where the result goes.")]
Url = Annotated[
    str | None, typer.Option("--url", help="An OpenAI-compatible server, up to and with /v1.")
]
ModelName = Annotated[str | None, typer.Option("--model", help="The model's name on that server.")]
KeyEnv = Annotated[
    str,
    typer.Option("--api-key-env", metavar="VARIABLE", help="Environment variable with the key."),
]
T = TypeVar("T")
_emitted = False
DEFAULT_RUNS = Path("runs")
DEFAULT_KEY_ENV = "VLLM_API_KEY"


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
    from tuneline.checks import check_run

    run = _run(run_file, overrides, runs_dir)
    found = check_run(run)
    _emit(found, [f"ok  {name}: {what}" for name, what in found.items()], as_json)


@app.command()
def plan(
    run_file: RunFile,
    overrides: Overrides = None,
    runs_dir: RunsDir = DEFAULT_RUNS,
    as_json: AsJson = False,
) -> None:
    """Show what `up` would run, and why."""
    from tuneline.pipeline import plan as plan_run

    planned = plan_run(_run(run_file, overrides, runs_dir))
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
    _emit(document, lines, as_json)


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
    _run_stages(_run(run_file, overrides, runs_dir), (), as_json)


@app.command()
def train(
    run_file: RunFile,
    overrides: Overrides = None,
    runs_dir: RunsDir = DEFAULT_RUNS,
    as_json: AsJson = False,
) -> None:
    """Fine-tune a LoRA adapter and record its answers."""
    _run_stages(_run(run_file, overrides, runs_dir), ("adapter", "reference"), as_json)


@app.command()
def evaluate(
    run_file: RunFile,
    url: Url = None,
    model: ModelName = None,
    api_key_env: KeyEnv = DEFAULT_KEY_ENV,
    out: Out = None,
    overrides: Overrides = None,
    runs_dir: RunsDir = DEFAULT_RUNS,
    as_json: AsJson = False,
) -> None:
    """Score base, tuned and served model on held-out rows.

    With --url, score any OpenAI-compatible endpoint.
    """
    run = _run(run_file, overrides, runs_dir)
    if url is None:
        _refuse("without --url", {"--model": model, "--out": out})
        wanted = ("evaluation-base", "evaluation-tuned", "evaluation-served")
        _run_stages(run, wanted, as_json)
        return
    from training.evaluate import evaluate_endpoint
    from tuneline.pipeline import up as up_run

    dataset = up_run(run, ("dataset",))["dataset"]
    endpoint = _endpoint(url, model, api_key_env)
    result = evaluate_endpoint(run.config.evaluation, dataset, endpoint, _required(out, "--out"))
    _emit_artifact(result, as_json)


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
    group_size: Annotated[
        int | None, typer.Option(help="Under w4a16, values that share a scale: 128, 64 or 32.")
    ] = None,
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
        _refuse("beside RUN.yaml", options)
        _run_stages(_run(run_file, overrides, runs_dir), ("model", "parity-merged"), as_json)
        return
    from export.config import MergeConfig
    from export.merge import merge
    from tuneline.core.config import validate_config
    from tuneline.core.model_source import resolve_model

    chosen = {
        "dtype": dtype,
        "merge_base": merge_base,
        "quantize": quantize,
        "group_size": group_size,
    }
    values = {key: value for key, value in chosen.items() if value is not None}
    config = validate_config(MergeConfig, values, "tuneline export merge")
    source = resolve_model(_required(base, "--base"))
    adapters = _weighted(_required(adapter, "--adapter"))
    model = merge(config, source, adapters, _required(out, "--out"))
    _emit_artifact(model, as_json)


@export_app.command("quantize")
def export_quantize(
    model: Annotated[str | None, typer.Option(help="Model folder or Hugging Face id.")] = None,
    scheme: Annotated[str | None, typer.Option(help="fp8, int8 or w4a16.")] = None,
    group_size: Annotated[
        int | None, typer.Option(help="Under w4a16, values that share a scale: 128, 64 or 32.")
    ] = None,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Quantize a model's linear layers to compressed-tensors, from the weights alone."""
    from export.config import QuantizeConfig
    from export.quantize import quantize
    from tuneline.core.config import validate_config
    from tuneline.core.model_source import resolve_model

    chosen = {"scheme": _required(scheme, "--scheme"), "group_size": group_size}
    values = {key: value for key, value in chosen.items() if value is not None}
    config = validate_config(QuantizeConfig, values, "tuneline export quantize")
    source = resolve_model(_required(model, "--model"))
    _emit_artifact(quantize(config, source, _required(out, "--out")), as_json)


@app.command()
def prove(
    run_file: OptionalRun = None,
    reference: Annotated[Path | None, typer.Option(help="A reference artifact.")] = None,
    candidate: Annotated[str | None, typer.Option(help="A model folder, or a URL.")] = None,
    model: ModelName = None,
    dtype: Annotated[
        str | None, typer.Option(help="What a server computes in: float32, float16, bfloat16.")
    ] = None,
    api_key_env: KeyEnv = DEFAULT_KEY_ENV,
    out: Out = None,
    overrides: Overrides = None,
    runs_dir: RunsDir = DEFAULT_RUNS,
    as_json: AsJson = False,
) -> None:
    """Prove that later forms are the trained model.

    Holds the merged and the served model, or any --candidate, against the reference, and exits
    with 6 where one differs by more than its tolerances.
    """
    from tuneline.pipeline import require_verdict

    if run_file is not None:
        options = {
            "--reference": reference,
            "--candidate": candidate,
            "--model": model,
            "--dtype": dtype,
            "--out": out,
        }
        _refuse("beside RUN.yaml", options)
        run = _run(run_file, overrides, runs_dir)
        _run_stages(run, ("parity-merged", "parity-served"), as_json)
        return
    from tuneline.core.artifact import open_artifact

    golden = open_artifact(_required(reference, "--reference"), kind="reference")
    form = _required(candidate, "--candidate")
    out_dir = _required(out, "--out")
    if form.startswith(("http://", "https://")):
        from serving.config import ServedParityConfig
        from serving.parity import COMPUTED_TOLERANCES, prove_served

        endpoint = _endpoint(form, model, api_key_env)
        computed = dtype or "float32"
        if computed not in COMPUTED_TOLERANCES:
            raise ConfigError(f"--dtype {computed}: expected {' or '.join(COMPUTED_TOLERANCES)}")
        result = prove_served(ServedParityConfig(), golden, endpoint, out_dir, dtype=computed)
    else:
        from export.config import ParityConfig
        from export.parity import prove_model
        from tuneline.core.model_source import resolve_model

        _refuse("with a model folder", {"--model": model, "--dtype": dtype})
        result = prove_model(ParityConfig(), golden, resolve_model(form), out_dir, form="candidate")
    _emit_artifact(result, as_json)
    require_verdict(result)


@app.command()
def serve(
    target: RunOrDir,
    overrides: Overrides = None,
    runs_dir: RunsDir = DEFAULT_RUNS,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
    as_json: AsJson = False,
) -> None:
    """Serve a run's model, or any folder, with vLLM."""
    from serving.server import serve as serve_model

    config, model, adapter, name = _to_serve(target, overrides, runs_dir, host, port)
    log_path = runs_dir / name / "serve.log"

    def on_ready(endpoint: Endpoint) -> None:
        document = {"url": endpoint.url, "model": endpoint.model, "log": str(log_path)}
        lines = [
            f"ready: {endpoint.url}  model {endpoint.model}",
            f"  tuneline chat --url {endpoint.url} --model {endpoint.model}",
        ]
        _emit(document, lines, as_json)

    code = serve_model(
        config, model, name=name, adapter=adapter, log_path=log_path, on_ready=on_ready
    )
    raise typer.Exit(code)


@app.command()
def chat(
    target: Annotated[Path | None, typer.Argument(metavar="[RUN.yaml|DIR]")] = None,
    url: Url = None,
    model: ModelName = None,
    api_key_env: KeyEnv = DEFAULT_KEY_ENV,
    system: Annotated[str | None, typer.Option(help="A system message.")] = None,
    message: Annotated[str | None, typer.Option("--message", help="Ask once and exit.")] = None,
    overrides: Overrides = None,
    runs_dir: RunsDir = DEFAULT_RUNS,
    as_json: AsJson = False,
) -> None:
    """Talk to a run's model, or to any endpoint."""
    if as_json and message is None:
        raise ConfigError("--json needs --message", hint='Try: --message "Hello" --json')
    if url is not None:
        _refuse("with --url", {"RUN.yaml": target, "--set": overrides})
        _chat(_endpoint(url, model, api_key_env), system, message, as_json)
        return
    from serving.server import running

    where = _required(target, "RUN.yaml, a model folder, or --url")
    config, source, adapter, name = _to_serve(where, overrides, runs_dir, None, None)
    log_path = runs_dir / name / "chat.log"
    with running(config, source, name=name, adapter=adapter, log_path=log_path) as server:
        _chat(server.endpoint, system, message, as_json)


@loadtest_app.command("run")
def loadtest_run(
    run_file: OptionalRun = None,
    url: Url = None,
    model: ModelName = None,
    api_key_env: KeyEnv = DEFAULT_KEY_ENV,
    rate: Annotated[float | None, typer.Option(help="Open loop: requests per second.")] = None,
    concurrency: Annotated[int | None, typer.Option(help="Closed loop: streams at once.")] = None,
    requests: Annotated[int | None, typer.Option(help="How many requests to send.")] = None,
    duration: Annotated[float | None, typer.Option(help="For how many seconds to send.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Most tokens per answer.")] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="JSON Lines, a list of chat messages per line.")
    ] = None,
    out: Out = None,
    overrides: Overrides = None,
    runs_dir: RunsDir = DEFAULT_RUNS,
    as_json: AsJson = False,
) -> None:
    """Load-test a run's endpoint, or any OpenAI-compatible server with --url."""
    quick = {
        "--rate": rate,
        "--concurrency": concurrency,
        "--requests": requests,
        "--duration": duration,
        "--max-tokens": max_tokens,
    }
    if run_file is not None:
        _refuse("beside RUN.yaml; use --set loadtest...", quick)
    if run_file is not None and url is None:
        _refuse("without --url", {"--model": model, "--prompts": prompts, "--out": out})
        _run_stages(_run(run_file, overrides, runs_dir), ("load",), as_json)
        return
    from loadtest.config import LoadTestConfig, quick_config
    from loadtest.run import read_prompts, run_loadtest
    from tuneline.pipeline import require_verdict

    config: LoadTestConfig
    if run_file is not None:
        config = _run(run_file, overrides, runs_dir).config.loadtest
    else:
        config = quick_config(
            rate_rps=rate,
            concurrency=concurrency,
            num_requests=requests,
            duration_s=duration,
            max_tokens=max_tokens,
        )
    endpoint = _endpoint(_required(url, "--url"), model, api_key_env)
    report = run_loadtest(config, endpoint, _required(out, "--out"), prompts=read_prompts(prompts))
    _emit_artifact(report, as_json)
    require_verdict(report)


@deploy_app.command("render")
def deploy_render(
    run_file: RunFile,
    out: Out = None,
    overrides: Overrides = None,
    runs_dir: RunsDir = DEFAULT_RUNS,
    as_json: AsJson = False,
) -> None:
    """Write the Kubernetes manifests of a run, with its image, model and digest filled in."""
    from tuneline.deploy import render_run

    written = render_run(_run(run_file, overrides, runs_dir), _required(out, "--out"))
    targets = [path for path in (written, written / "load-test") if path.is_dir()]
    _emit(
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
    from tuneline.summary import describe_artifact, summarize

    if target.is_dir():
        artifact = open_artifact(target)
        _emit(artifact.manifest.model_dump(), describe_artifact(artifact), as_json)
        return
    artifacts = _artifacts(_run(target, overrides, runs_dir))
    document = {name: artifact.manifest.model_dump() for name, artifact in artifacts.items()}
    lines = [
        f"{name:18} {artifact.short_digest}  {summarize(artifact)}"
        for name, artifact in artifacts.items()
    ]
    _emit(document, lines, as_json)


@app.command()
def verify(
    target: RunOrDir,
    overrides: Overrides = None,
    runs_dir: RunsDir = DEFAULT_RUNS,
    as_json: AsJson = False,
) -> None:
    """Compare every byte with the manifests."""
    from tuneline.core.artifact import open_artifact, verify_artifact

    if target.is_dir():
        artifacts = {target.name: open_artifact(target)}
    else:
        artifacts = _artifacts(_run(target, overrides, runs_dir))
    for artifact in artifacts.values():
        verify_artifact(artifact)
    document = {name: artifact.digest for name, artifact in artifacts.items()}
    lines = [
        f"ok  {name}: {len(artifact.manifest.files)} files, {artifact.digest}"
        for name, artifact in artifacts.items()
    ]
    _emit(document, lines, as_json)


@app.command()
def doctor(
    run_file: OptionalRun = None,
    overrides: Overrides = None,
    runs_dir: RunsDir = DEFAULT_RUNS,
    as_json: AsJson = False,
) -> None:
    """Say what this machine has and lacks."""
    from tuneline.checks import examine_machine, require_rooms

    run = None if run_file is None else _run(run_file, overrides, runs_dir)
    findings = examine_machine(runs_dir)
    lines = [f"{'ok' if f['ok'] else '--':3} {f['what']:22} {f['found']}" for f in findings]
    _emit(findings, lines, as_json)
    if run is not None:
        require_rooms(findings)


app.add_typer(export_app, name="export")
app.add_typer(loadtest_app, name="loadtest")
app.add_typer(deploy_app, name="deploy")


def main() -> NoReturn:
    """Run the command line; the only place that turns errors into exit codes."""
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGINT, _interrupt)
    try:
        app()
    except TunelineError as error:
        # One document on stdout: where a command has printed its result, that is it.
        if "--json" in sys.argv and not _emitted:
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


def _run(run_file: Path, overrides: list[str] | None, runs_dir: Path) -> Run:
    from tuneline.config import load_run

    return load_run(run_file, overrides or (), runs_dir)


def _run_stages(run: Run, until: tuple[str, ...], as_json: bool) -> None:
    """Run stages of a line with a summary line each, then print the line's results."""
    from tuneline.pipeline import Planned
    from tuneline.pipeline import up as up_run
    from tuneline.summary import results, summarize

    stages: list[dict[str, Any]] = []

    def on_stage(entry: Planned, artifact: Artifact, wall_s: float) -> None:
        ran = "up to date" if entry.state == "current" else f"{wall_s:.1f} s"
        logger.info("  %-18s %-10s  %s", entry.stage.name, ran, summarize(artifact))
        made[entry.stage.name] = artifact
        stages.append(
            {
                "stage": entry.stage.name,
                "ran": entry.state != "current",
                "wall_s": round(wall_s, 3),
                "path": str(artifact.path),
                "digest": artifact.digest,
                "metrics": artifact.manifest.metrics,
            }
        )

    made: dict[str, Artifact] = {}
    try:
        up_run(run, until, on_stage)
    finally:
        # What has been measured is shown, also where a verdict ends the line.
        if stages:
            _emit({"name": run.config.name, "stages": stages}, results(made), as_json)


def _artifacts(run: Run) -> dict[str, Artifact]:
    from tuneline.core.artifact import open_artifact
    from tuneline.pipeline import plan as plan_run

    found = {
        entry.stage.name: open_artifact(entry.path)
        for entry in plan_run(run)
        if entry.state == "current" and entry.path is not None
    }
    if not found:
        from tuneline.core.errors import NotAnArtifactError

        raise NotAnArtifactError(
            f"{run.dir}: holds no artifact of {run.path}", hint=f"Try: tuneline up {run.path}"
        )
    return found


def _to_serve(
    target: Path,
    overrides: list[str] | None,
    runs_dir: Path,
    host: str | None,
    port: int | None,
) -> tuple[Any, Any, Artifact | None, str]:
    """Serving configuration, model, adapter and name, from a run or from a model folder."""
    from serving.config import ServingConfig
    from tuneline.core.config import validate_config
    from tuneline.core.model_source import resolve_model
    from tuneline.pipeline import served_model

    if target.is_dir():
        _refuse("with a model folder", {"--set": overrides})
    chosen = {
        key: value for key, value in {"host": host, "port": port}.items() if value is not None
    }
    if target.is_dir():
        model = resolve_model(str(target))
        config = validate_config(ServingConfig, chosen, "tuneline serve")
        return config, model, None, target.resolve().name
    run = _run(target, overrides, runs_dir)
    model, adapter = served_model(run)
    values = {**run.config.serving.model_dump(), **chosen}
    config = validate_config(ServingConfig, values, "tuneline serve")
    return config, model, adapter, run.config.name


def _chat(endpoint: Endpoint, system: str | None, message: str | None, as_json: bool) -> None:
    from serving.chat import ask
    from serving.chat import chat as chat_loop

    if message is None:
        # Here Ctrl-C ends an answer, not the program.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        chat_loop(endpoint, system)
        return
    messages = [{"role": "system", "content": system}] if system else []
    answer = ask(endpoint, [*messages, {"role": "user", "content": message}])
    _emit({"model": endpoint.model, "answer": answer}, [answer], as_json)


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


def _endpoint(url: str, model: str | None, api_key_env: str) -> Endpoint:
    from tuneline.core.endpoint import Endpoint

    return Endpoint(url.rstrip("/"), _required(model, "--model"), os.environ.get(api_key_env))


def _refuse(where: str, options: dict[str, Any]) -> None:
    """An option that would do nothing is an error, not a surprise."""
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise ConfigError(f"{', '.join(given)}: has no meaning {where}")


def _required(value: T | None, option: str) -> T:
    if value is None:
        raise ConfigError(f"{option} is required here")
    return value


def _emit_artifact(artifact: Artifact, as_json: bool) -> None:
    from tuneline.summary import describe_artifact

    document = {"path": str(artifact.path), **artifact.manifest.model_dump()}
    if artifact.kind == "load-report":
        # A pod's log is all that outlives it: the whole report goes there.
        document["report"] = json.loads((artifact.path / "report.json").read_text("utf-8"))
    _emit(document, describe_artifact(artifact), as_json)


def _emit(document: Any, lines: list[str], as_json: bool) -> None:
    global _emitted
    _emitted = True
    print(json.dumps(document, indent=2) if as_json else "\n".join(lines), flush=True)
