"""`tuneline loadtest`: measure an endpoint, search what it holds, compare two."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tuneline.commands import reports as cli_reports
from tuneline.commands.options import (
    DEFAULT_RUNS,
    AsJson,
    DefaultCommand,
    KeyEnv,
    ModelName,
    OptionalRun,
    Out,
    Overrides,
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
from tuneline.core.errors import ConfigError, InvalidError, VerdictError
from tuneline.core.progress import logger

if TYPE_CHECKING:
    from tuneline.core.artifact import Artifact
    from tuneline.pipeline.targets import LoadTarget


class _LoadTestGroup(DefaultCommand):
    default = "run"


loadtest_app = typer.Typer(
    cls=_LoadTestGroup, help="Measure an endpoint under load.", no_args_is_help=True
)

Rate = Annotated[float | None, typer.Option(help="Open loop: requests per second.")]
Concurrency = Annotated[int | None, typer.Option(help="Closed loop: streams at once.")]
Requests = Annotated[int | None, typer.Option(help="How many requests to send.")]
Duration = Annotated[float | None, typer.Option(help="For how many seconds to send.")]
LATEST_START = 1e10
"""Seconds since 1970: the year 2286."""

MaxTokens = Annotated[int | None, typer.Option(help="Most tokens per answer.")]
Prompts = Annotated[Path | None, typer.Option(help="JSON Lines, a list of chat messages per line.")]


@loadtest_app.command("run")
def loadtest_run(
    run_file: OptionalRun = None,
    url: Url = None,
    model: ModelName = None,
    api_key_env: KeyEnv = None,
    rate: Rate = None,
    concurrency: Concurrency = None,
    requests: Requests = None,
    duration: Duration = None,
    max_tokens: MaxTokens = None,
    prompts: Prompts = None,
    shard: Annotated[
        str | None,
        typer.Option(metavar="K/N", help="Send one share of N of the schedule; K counts from 0."),
    ] = None,
    start_at: Annotated[
        float | None, typer.Option(metavar="UNIX_S", help="When all shards begin.")
    ] = None,
    gather: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Or: a folder that all shards share; 0 merges."),
    ] = None,
    out: Out = None,
    overrides: Overrides = None,
    runs_dir: RunsDir = DEFAULT_RUNS,
    as_json: AsJson = False,
) -> None:
    """Load-test a run's endpoint, or any OpenAI-compatible server with --url."""
    quick = _quick(rate, concurrency, requests, duration, max_tokens)
    if run_file is not None and url is None:
        refuse("beside RUN.yaml; use --set loadtest...", _flags(quick))
        refuse(
            "without --url",
            {
                "--model": model,
                "--api-key-env": api_key_env,
                "--prompts": prompts,
                "--out": out,
                "--shard": shard,
                "--start-at": start_at,
                "--gather": gather,
            },
        )
        from tuneline.pipeline.stages import stage_names

        run = open_run(run_file, overrides, runs_dir)
        run_stages(run, stage_names(run, kind="load-report"), as_json)
        return
    from loadtest.run import run_loadtest
    from loadtest.shards.join import run_shard
    from loadtest.shards.rendezvous import run_together
    from tuneline.core.verdict import require_verdict

    if shard is None:
        refuse("without --shard", {"--start-at": start_at, "--gather": gather})
    elif (start_at is None) == (gather is None):
        raise ConfigError(
            "--shard goes with --start-at or with --gather",
            hint="Give every pod the one start, some half a minute ahead: date -d 1min +%s\n"
            "  Or one folder that all of them share: --gather DIR",
        )
    if start_at is not None and not 0 <= start_at < LATEST_START:
        raise ConfigError(f"--start-at {start_at}: expected seconds since 1970")
    if gather is not None:
        refuse("with --gather", {"--out": out})
    out_dir = gather or required(out, "--out")
    with _target(run_file, overrides, runs_dir, url, model, api_key_env, prompts, quick) as target:
        if shard is not None:
            number, total = _shard(shard)
            send: Callable[..., Artifact] = run_together
            if start_at is not None:
                send = functools.partial(run_shard, start=functools.partial(float, start_at))
            report = send(
                target.config,
                target.endpoint,
                out_dir,
                prompts=target.prompts,
                shard=number,
                num_shards=total,
            )
            emit_artifact(report, as_json)
            if report.kind == "load-report":
                require_verdict(report)
            return
        report = run_loadtest(target.config, target.endpoint, out_dir, prompts=target.prompts)
    emit_artifact(report, as_json)
    require_verdict(report)


@loadtest_app.command()
def search(
    run_file: OptionalRun = None,
    url: Url = None,
    model: ModelName = None,
    api_key_env: KeyEnv = None,
    start_rate: Annotated[float, typer.Option(help="The first rate tried, requests/s.")] = 1.0,
    max_rate: Annotated[float, typer.Option(help="No higher rate is tried.")] = 1000.0,
    requests: Annotated[int, typer.Option(help="Measured requests of each probe.")] = 300,
    precision: Annotated[float, typer.Option(help="Share by which the result is known.")] = 0.1,
    peak_rate: Annotated[
        float | None, typer.Option(help="Say how many replicas hold this rate.")
    ] = None,
    max_tokens: MaxTokens = None,
    prompts: Prompts = None,
    out: Out = None,
    overrides: Overrides = None,
    runs_dir: RunsDir = DEFAULT_RUNS,
    as_json: AsJson = False,
) -> None:
    """Find the highest rate at which every objective holds.

    Objectives stand in RUN.yaml, or: --set loadtest.slo.ttft_p90_s=0.5
    """
    from loadtest.studies.search import require_objective
    from loadtest.studies.search import search as search_rate
    from tuneline.core.verdict import require_verdict

    quick = _quick(None, None, None, None, max_tokens)
    out_dir = required(out, "--out")
    require_objective(_config(run_file, overrides, runs_dir, quick), requests)
    with _target(run_file, overrides, runs_dir, url, model, api_key_env, prompts, quick) as target:
        found = search_rate(
            target.config,
            target.endpoint,
            out_dir,
            prompts=target.prompts,
            inputs=target.inputs,
            start_rps=start_rate,
            max_rps=max_rate,
            num_requests=requests,
            precision=precision,
            peak_rps=peak_rate,
        )
    emit_artifact(found, as_json)
    require_verdict(found)


@loadtest_app.command()
def sweep(
    run_file: OptionalRun = None,
    rates: Annotated[
        str | None, typer.Option(metavar="R,R,...", help="Rates to measure, requests/s.")
    ] = None,
    url: Url = None,
    model: ModelName = None,
    api_key_env: KeyEnv = None,
    requests: Annotated[int, typer.Option(help="Measured requests of each rate.")] = 300,
    max_tokens: MaxTokens = None,
    prompts: Prompts = None,
    out: Out = None,
    overrides: Overrides = None,
    runs_dir: RunsDir = DEFAULT_RUNS,
    as_json: AsJson = False,
) -> None:
    """Measure several rates and draw latency and throughput against them."""
    from loadtest.studies.search import sweep as sweep_rates
    from tuneline.core.verdict import require_verdict

    text = required(rates, "--rates")
    try:
        rates_rps = [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(
            f"--rates {text}: expected numbers", hint="Try: --rates 1,2,4,8"
        ) from None
    quick = _quick(None, None, None, None, max_tokens)
    out_dir = required(out, "--out")
    with _target(run_file, overrides, runs_dir, url, model, api_key_env, prompts, quick) as target:
        measured = sweep_rates(
            target.config,
            target.endpoint,
            out_dir,
            prompts=target.prompts,
            inputs=target.inputs,
            rates_rps=rates_rps,
            num_requests=requests,
        )
    emit_artifact(measured, as_json)
    require_verdict(measured)


@loadtest_app.command()
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="The baseline: a load report or a URL.")],
    b: Annotated[str, typer.Argument(metavar="B", help="What is held against it.")],
    run_file: Annotated[
        Path | None, typer.Option("--run", metavar="RUN.yaml", help="Take its load test.")
    ] = None,
    model: ModelName = None,
    model_b: Annotated[
        str | None, typer.Option("--model-b", help="The name on B, where it differs.")
    ] = None,
    api_key_env: KeyEnv = None,
    rate: Rate = None,
    concurrency: Concurrency = None,
    requests: Requests = None,
    max_tokens: MaxTokens = None,
    prompts: Prompts = None,
    rounds: Annotated[int | None, typer.Option(help="Runs of each, in turns (4).")] = None,
    margin: Annotated[
        float, typer.Option(help="Share by which B may be slower and count as equal.")
    ] = 0.05,
    out: Out = None,
    overrides: Overrides = None,
    runs_dir: RunsDir = DEFAULT_RUNS,
    as_json: AsJson = False,
) -> None:
    """Say whether B is slower than A.

    Two URLs are measured in turns on one schedule; two reports of equal plans are compared request
    by request.
    """
    from loadtest.studies.compare import compare as compare_endpoints
    from loadtest.studies.compare import compare_reports
    from tuneline.core.verdict import require_verdict

    found: Artifact
    out_dir = required(out, "--out")
    quick = _quick(rate, concurrency, requests, None, max_tokens)
    if not _is_url(a) and not _is_url(b):
        options: dict[str, Any] = {
            "--run": run_file,
            "--model": model,
            "--model-b": model_b,
            "--prompts": prompts,
        }
        options |= {"--rounds": rounds, "--set": overrides, **_flags(quick)}
        refuse("between two reports", options)
        found = compare_reports(Path(a), Path(b), out_dir, margin=margin)
    elif _is_url(a) and _is_url(b):
        with _target(
            run_file, overrides, runs_dir, a, model, api_key_env, prompts, quick
        ) as target:
            found = compare_endpoints(
                target.config,
                target.endpoint,
                endpoint_of(b, model_b or model, api_key_env),
                out_dir,
                prompts=target.prompts,
                num_rounds=4 if rounds is None else rounds,
                margin=margin,
            )
    else:
        raise ConfigError(f"{a} and {b}: expected two URLs or two directories of load reports")
    emit_artifact(found, as_json)
    require_verdict(found)


@loadtest_app.command()
def calibrate(
    run_file: OptionalRun = None,
    rate: Rate = None,
    concurrency: Concurrency = None,
    tls: Annotated[bool, typer.Option("--tls", help="As for an https:// endpoint.")] = False,
    overrides: Overrides = None,
    runs_dir: RunsDir = DEFAULT_RUNS,
    as_json: AsJson = False,
) -> None:
    """Measure what the client itself adds, against a bundled server of known delays."""
    from loadtest.calibration.calibrate import calibrate as calibrate_load
    from loadtest.judging.verdict import calibration_problems, lag_budget_s
    from loadtest.report.terminal import calibration_lines

    config = _config(run_file, overrides, runs_dir, _quick(rate, concurrency, None, None, None))
    found = {one.name: calibrate_load(config, one, tls=tls) for one in config.scenarios}
    document = {name: dataclasses.asdict(one) for name, one in found.items()}
    lines = [line for name, one in document.items() for line in (name, *calibration_lines(one))]
    emit(document, lines, as_json)
    budget_s = {s.name: lag_budget_s(config, s.slo or config.slo) for s in config.scenarios}
    problems = [
        f"  {name}: {problem}"
        for name, one in found.items()
        for problem in calibration_problems(one, budget_s[name])
    ]
    if problems:
        raise InvalidError("the client is not fit for this load\n" + "\n".join(problems))


@loadtest_app.command("cross-check")
def cross_check(
    run_file: OptionalRun = None,
    url: Url = None,
    model: ModelName = None,
    api_key_env: KeyEnv = None,
    rate: Rate = None,
    requests: Requests = None,
    max_tokens: MaxTokens = None,
    prompts: Prompts = None,
    overrides: Overrides = None,
    runs_dir: RunsDir = DEFAULT_RUNS,
    as_json: AsJson = False,
) -> None:
    """Send one open-loop schedule with the openai client too, and compare what both saw."""
    from loadtest.studies.cross_check import openai_check

    quick = _quick(rate, None, requests, None, max_tokens)
    config = _config(run_file, overrides, runs_dir, quick)
    scenario = next((s for s in config.scenarios if s.loop == "open"), None)
    if scenario is None:
        raise ConfigError("the cross-check needs an open-loop scenario", hint="Try: --rate 2")
    if config.workload.source in ("synthetic", "mooncake"):
        raise ConfigError(
            f"the cross-check sends chat messages; workload.source: {config.workload.source} has "
            "token ids",
            hint="Try: --set loadtest.workload.source=prompts",
        )
    with _target(run_file, overrides, runs_dir, url, model, api_key_env, prompts, quick) as target:
        found = openai_check(target.config, scenario, target.endpoint, prompts=target.prompts)
    document = {
        field.name: getattr(found, field.name)
        for field in dataclasses.fields(found)
        if field.name != "result"
    }
    lines = [
        f"{found.num_succeeded} of {found.num_requests} requests succeeded through the openai "
        f"client, {found.num_equal_tokens} with the token count that the load client read",
        f"TTFT p50: {_ms(found.ttft_p50_s)} by the openai client, "
        f"{_ms(found.our_ttft_p50_s)} by the load client",
    ]
    emit(document, lines, as_json)
    if found.num_equal_tokens < found.num_requests:
        raise VerdictError(
            f"{found.num_requests - found.num_equal_tokens} of {found.num_requests} requests were "
            "not read alike by both clients",
            hint="Answers must be repeatable: temperature 0, and a server that is not overloaded.",
        )


loadtest_app.command("merge")(cli_reports.merge)
loadtest_app.command("report")(cli_reports.report)


@contextmanager
def _target(
    run_file: Path | None,
    overrides: list[str] | None,
    runs_dir: Path,
    url: str | None,
    model: str | None,
    api_key_env: str | None,
    prompts: Path | None,
    quick: dict[str, Any],
) -> Iterator[LoadTarget]:
    """A run's own endpoint, served for as long as the block lasts, or the one at `url`."""
    from loadtest.run import read_prompts
    from tuneline.pipeline.plan import current
    from tuneline.pipeline.stage import DATASET
    from tuneline.pipeline.stages import heldout_prompts
    from tuneline.pipeline.targets import LoadTarget, load_target

    if url is None and run_file is not None:
        refuse("beside RUN.yaml; use --set loadtest...", _flags(quick))
        options = {"--model": model, "--api-key-env": api_key_env, "--prompts": prompts}
        refuse("without --url", options)
        with load_target(open_run(run_file, overrides, runs_dir)) as target:
            yield target
        return
    endpoint = endpoint_of(required(url, "RUN.yaml or --url"), model, api_key_env)
    config = _config(run_file, overrides, runs_dir, quick)
    if run_file is not None and prompts is None and config.workload.source == "prompts":
        (dataset,) = current(open_run(run_file, overrides, runs_dir), DATASET)
        chosen = heldout_prompts(dataset)
    else:
        chosen = read_prompts(prompts)
        if prompts is None and config.workload.source == "prompts":
            logger.info("  %d built-in questions; give your own with --prompts", len(chosen))
    yield LoadTarget(config, endpoint, chosen, [])


def _config(
    run_file: Path | None, overrides: list[str] | None, runs_dir: Path, quick: dict[str, Any]
) -> Any:
    """The section `loadtest` of a run, or one scenario from options."""
    from loadtest.config import quick_config
    from tuneline.pipeline.stages import loadtest_config

    if run_file is None:
        return quick_config(**quick, overrides=overrides or ())
    refuse("beside RUN.yaml; use --set loadtest...", _flags(quick))
    return loadtest_config(open_run(run_file, overrides, runs_dir))


def _quick(
    rate: float | None,
    concurrency: int | None,
    requests: int | None,
    duration: float | None,
    max_tokens: int | None,
) -> dict[str, Any]:
    return {
        "rate_rps": rate,
        "concurrency": concurrency,
        "num_requests": requests,
        "duration_s": duration,
        "max_tokens": max_tokens,
    }


def _flags(quick: dict[str, Any]) -> dict[str, Any]:
    names = {"rate_rps": "--rate", "num_requests": "--requests", "duration_s": "--duration"}
    return {names.get(key, f"--{key.replace('_', '-')}"): value for key, value in quick.items()}


def _shard(text: str) -> tuple[int, int]:
    number, slash, total = text.partition("/")
    if not (slash and number.isdecimal() and total.isdecimal() and int(total) > 0):
        raise ConfigError(f"--shard {text}: expected K/N, such as 0/4")
    return int(number), int(total)


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:.2f} ms"


def _is_url(text: str) -> bool:
    return text.startswith(("http://", "https://"))
