"""The commands that measure several times: search, sweep, compare, calibrate, cross-check."""

from __future__ import annotations

import dataclasses
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tuneline.commands.load_target import Chosen, flags, load_target
from tuneline.commands.option_values import (
    endpoint_of,
    given,
    is_url,
    refuse,
    required,
    seconds_of,
    whole_numbers,
)
from tuneline.commands.options import (
    AsJson,
    Concurrency,
    KeyEnv,
    MaxTokens,
    ModelName,
    OptionalRun,
    Out,
    Overrides,
    Prompts,
    Rate,
    Requests,
    RunsDir,
    Url,
)
from tuneline.commands.printing import emit, emit_artifact, set_goes_on
from tuneline.core.errors import ConfigError, InvalidError, VerdictError
from tuneline.pipeline import DEFAULT_RUNS

if TYPE_CHECKING:
    from tuneline.core.artifact import Artifact


class By(StrEnum):
    rate = "rate"
    concurrency = "concurrency"


def search(
    run_file: OptionalRun = None,
    url: Url = None,
    model: ModelName = None,
    api_key_env: KeyEnv = None,
    by: Annotated[
        By, typer.Option(help="Search the highest rate, or the most streams at once.")
    ] = By.rate,
    start_rate: Annotated[
        float | None, typer.Option(help="The first rate tried, requests/s (1).")
    ] = None,
    max_rate: Annotated[float | None, typer.Option(help="No higher rate is tried (1000).")] = None,
    start_concurrency: Annotated[
        int | None, typer.Option(help="The first number of streams tried (1).")
    ] = None,
    max_concurrency: Annotated[
        int | None, typer.Option(help="No more streams are tried (1024).")
    ] = None,
    requests: Annotated[int, typer.Option(help="Measured requests of each probe.")] = 300,
    precision: Annotated[float, typer.Option(help="Share by which the result is known.")] = 0.1,
    peak_rate: Annotated[
        float | None, typer.Option(help="Say how many replicas hold this rate.")
    ] = None,
    time_limit: Annotated[
        str | None, typer.Option(metavar="TIME", help="No probe starts after it: 90s, 20m, 1h.")
    ] = None,
    max_tokens: MaxTokens = None,
    prompts: Prompts = None,
    out: Out = None,
    overrides: Overrides = None,
    runs_dir: RunsDir = DEFAULT_RUNS,
    as_json: AsJson = False,
) -> None:
    """Find the highest rate, or the most streams at once, at which every objective holds.

    RUN.yaml has the objectives, or: --set loadtest.slo.ttft_s.p90=0.5. A search that was killed
    goes on where it stopped.
    """
    # Over 60 lines: typer reads the options from the signature, which has half of the lines.
    from loadtest import require_objective, search_concurrency, search_rate
    from tuneline.core.verdict import require_verdict

    chosen = Chosen(
        run_file, overrides, runs_dir, url, model, api_key_env, prompts, {"max_tokens": max_tokens}
    )
    out_dir = required(out, "--out")
    of_rate = {"--start-rate": start_rate, "--max-rate": max_rate, "--peak-rate": peak_rate}
    of_streams = {"--start-concurrency": start_concurrency, "--max-concurrency": max_concurrency}
    if by is By.rate:
        refuse("without --by concurrency", of_streams)
    else:
        refuse("with --by concurrency", of_rate)
    limit_s = None if time_limit is None else seconds_of(time_limit, "--time-limit")
    require_objective(chosen.config(), requests)
    with load_target(chosen) as target:
        common: dict[str, Any] = {
            "prompts": target.prompts,
            "inputs": target.inputs,
            "num_requests": requests,
            "precision": precision,
            "time_limit_s": limit_s,
            "resume_key": target.server_key,
        }
        set_goes_on()
        if by is By.rate:
            bounds: dict[str, Any] = given(
                {"start_rps": start_rate, "max_rps": max_rate, "peak_rps": peak_rate}
            )
            found = search_rate(target.config, target.endpoint, out_dir, **bounds, **common)
        else:
            streams: dict[str, Any] = given({"start": start_concurrency, "most": max_concurrency})
            found = search_concurrency(target.config, target.endpoint, out_dir, **streams, **common)
    emit_artifact(found, as_json)
    require_verdict(found)


def sweep(
    run_file: OptionalRun = None,
    rates: Annotated[
        str | None, typer.Option(metavar="R,R,...", help="Rates to measure, requests/s.")
    ] = None,
    servers: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A YAML list of servers, each with its settings."),
    ] = None,
    concurrencies: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,...", help="Streams at once to measure (with --servers: 1,2,4,8,16)."
        ),
    ] = None,
    url: Url = None,
    model: ModelName = None,
    api_key_env: KeyEnv = None,
    requests: Annotated[
        int | None, typer.Option(help="Measured requests of each rate (300), or point (100).")
    ] = None,
    max_tokens: MaxTokens = None,
    prompts: Prompts = None,
    out: Out = None,
    overrides: Overrides = None,
    runs_dir: RunsDir = DEFAULT_RUNS,
    as_json: AsJson = False,
) -> None:
    """Measure several rates, numbers of streams or servers, and draw latency and throughput.

    A sweep of rates or streams that was killed goes on after its last load.

    With --servers, each server of the list serves the run in turn. The picture has tokens/s per
    user against tokens/s of the server.
    """
    from loadtest import sweep_loads
    from tuneline.core.verdict import require_verdict

    chosen = Chosen(
        run_file, overrides, runs_dir, url, model, api_key_env, prompts, {"max_tokens": max_tokens}
    )
    measured: Artifact
    if servers is not None:
        refuse("with --servers", {"--rates": rates, **chosen.url_options(), "--url": url})
        measured = _sweep_servers(chosen, servers, concurrencies, requests, out)
    else:
        of_axis = _loads_of(rates, concurrencies)
        out_dir = required(out, "--out")
        with load_target(chosen) as target:
            set_goes_on()
            measured = sweep_loads(
                target.config,
                target.endpoint,
                out_dir,
                prompts=target.prompts,
                inputs=target.inputs,
                num_requests=300 if requests is None else requests,
                resume_key=target.server_key,
                **of_axis,
            )
    emit_artifact(measured, as_json)
    require_verdict(measured)


def _loads_of(rates: str | None, concurrencies: str | None) -> dict[str, Any]:
    """Return the loads of a sweep as arguments of `sweep_loads`."""
    if concurrencies is not None:
        refuse("with --concurrencies", {"--rates": rates})
        streams = whole_numbers(concurrencies, "--concurrencies", "1,4,16")
        return {"axis": "concurrency", "values": streams}
    return {
        "axis": "rate",
        "values": _rates(required(rates, "--rates, --concurrencies or --servers")),
    }


def _rates(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(
            f"--rates {text}: expected numbers", hint="Try: --rates 1,2,4,8"
        ) from None


def _sweep_servers(
    chosen: Chosen, servers: Path, concurrencies: str | None, requests: int | None, out: Path | None
) -> Artifact:
    """Serve the run with each server's settings in turn, and measure it."""
    from tuneline.pipeline.server_sweep import sweep_run

    chosen.refuse_quick()
    streams = whole_numbers(concurrencies or "1,2,4,8,16", "--concurrencies", "1,4,16")
    return sweep_run(
        required(chosen.run_file, "RUN.yaml"), chosen.overrides or (), chosen.runs_dir, servers,
        required(out, "--out"), concurrencies=streams,
        num_requests=100 if requests is None else requests,
    )  # fmt: skip


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="The baseline: a load report or a URL.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The candidate: a load report or a URL.")],
    run_file: Annotated[
        Path | None, typer.Option("--run", metavar="RUN.yaml", help="Take its load test.")
    ] = None,
    model: ModelName = None,
    model_b: Annotated[
        str | None, typer.Option("--model-b", help="The name on B, if it is another.")
    ] = None,
    api_key_env: KeyEnv = None,
    api_key_env_b: Annotated[
        str | None,
        typer.Option("--api-key-env-b", metavar="VARIABLE", help="That of B, if it is another."),
    ] = None,
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
    from loadtest import compare_endpoints, compare_reports
    from tuneline.core.verdict import require_verdict

    found: Artifact
    out_dir = required(out, "--out")
    quick = {"rate_rps": rate, "concurrency": concurrency}
    quick |= {"num_requests": requests, "max_tokens": max_tokens}
    if not is_url(a) and not is_url(b):
        options = {"--run": run_file, "--model": model, "--model-b": model_b, "--prompts": prompts}
        keys = {"--api-key-env": api_key_env, "--api-key-env-b": api_key_env_b}
        more = {**keys, "--rounds": rounds, "--set": overrides, **flags(quick)}
        refuse("between two reports", {**options, **more})
        found = compare_reports(Path(a), Path(b), out_dir, margin=margin)
    elif is_url(a) and is_url(b):
        chosen = Chosen(run_file, overrides, runs_dir, a, model, api_key_env, prompts, quick)
        with load_target(chosen) as target:
            found = compare_endpoints(
                target.config,
                target.endpoint,
                endpoint_of(b, model_b or model, api_key_env_b or api_key_env),
                out_dir,
                prompts=target.prompts,
                num_rounds=4 if rounds is None else rounds,
                margin=margin,
            )
    else:
        raise ConfigError(f"{a} and {b}: expected two URLs or two directories of load reports")
    emit_artifact(found, as_json)
    require_verdict(found)


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
    from loadtest import calibrate_client, calibration_lines

    quick = {"rate_rps": rate, "concurrency": concurrency}
    config = Chosen(run_file, overrides, runs_dir, quick=quick).config()
    found, problems = calibrate_client(config, tls=tls)
    document = {name: one.model_dump() for name, one in found.items()}
    lines = [line for name, one in found.items() for line in (name, *calibration_lines(one))]
    emit(document, lines, as_json)
    if problems:
        listed = "\n".join(f"  {problem}" for problem in problems)
        raise InvalidError(f"the client is not fit for this load\n{listed}")


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
    from loadtest import cross_check as check_with_openai

    quick = {"rate_rps": rate, "num_requests": requests, "max_tokens": max_tokens}
    chosen = Chosen(run_file, overrides, runs_dir, url, model, api_key_env, prompts, quick)
    config = chosen.config()
    scenario = next((s for s in config.scenarios if s.loop == "open"), None)
    if scenario is None:
        raise ConfigError("the cross-check needs an open-loop scenario", hint="Try: --rate 2")
    workload = config.workload
    for is_unfit, what, hint in (
        (
            workload.source in ("synthetic", "mooncake"),
            f"source: {workload.source}",
            "source=prompts",
        ),
        (workload.route != "chat", f"route: {workload.route}", "route=chat"),
        (workload.sessions is not None, "sessions", "sessions=null"),
    ):
        if is_unfit:
            raise ConfigError(
                "the cross-check sends single requests of chat messages; expected no "
                f"workload.{what}",
                hint=f"Try: --set loadtest.workload.{hint}",
            )
    with load_target(chosen) as target:
        found = check_with_openai(target.config, scenario, target.endpoint, prompts=target.prompts)
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


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:.2f} ms"
