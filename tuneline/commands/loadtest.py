"""`tuneline loadtest run`: measure an endpoint under load."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tuneline.commands.load_target import Chosen, load_target
from tuneline.commands.option_values import open_run, refuse, required
from tuneline.commands.options import (
    AsJson,
    Concurrency,
    Duration,
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
from tuneline.commands.printing import emit_artifact
from tuneline.commands.run_stages import run_stages
from tuneline.core.errors import ConfigError
from tuneline.pipeline import DEFAULT_RUNS

if TYPE_CHECKING:
    from tuneline.core.artifact import Artifact
    from tuneline.pipeline.finished_run import LoadTarget


LATEST_START = 1e10
"""Seconds since 1970: the year 2286."""


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
        typer.Option(metavar="DIR", help="Or: a folder that all shards share; pod 0 joins them."),
    ] = None,
    out: Out = None,
    overrides: Overrides = None,
    runs_dir: RunsDir = DEFAULT_RUNS,
    as_json: AsJson = False,
) -> None:
    """Load-test a run's endpoint, or any OpenAI-compatible server with --url."""
    quick = {
        "rate_rps": rate,
        "concurrency": concurrency,
        "num_requests": requests,
        "duration_s": duration,
        "max_tokens": max_tokens,
    }
    chosen = Chosen(run_file, overrides, runs_dir, url, model, api_key_env, prompts, quick)
    share = {"--shard": shard, "--start-at": start_at, "--gather": gather}
    if run_file is not None and url is None:
        from tuneline.pipeline.stages import stage_names

        chosen.refuse_quick()
        refuse("without --url", {**chosen.url_options(), "--out": out, **share})
        run = open_run(run_file, overrides, runs_dir)
        run_stages(run, stage_names(run, kinds=("load-report",)), as_json=as_json)
        return
    from loadtest import run_loadtest
    from tuneline.core.verdict import require_verdict

    _check_share(shard, start_at, gather, out)
    out_dir = gather or required(out, "--out")
    with load_target(chosen) as target:
        if shard is None:
            report = run_loadtest(target.config, target.endpoint, out_dir, prompts=target.prompts)
        else:
            report = _run_share(target, shard, start_at, out_dir)
    emit_artifact(report, as_json)
    require_verdict(report)


def _check_share(
    shard: str | None, start_at: float | None, gather: Path | None, out: Path | None
) -> None:
    """Check that the options of one share of a load test go together."""
    if shard is None:
        refuse("without --shard", {"--start-at": start_at, "--gather": gather})
    elif (start_at is None) == (gather is None):
        raise ConfigError(
            "--shard goes with --start-at or with --gather",
            hint="Give every pod the same start, half a minute ahead: date -d 1min +%s\n"
            "  Or a folder that all of them share: --gather DIR",
        )
    if start_at is not None and not 0 <= start_at < LATEST_START:
        raise ConfigError(f"--start-at {start_at}: expected seconds since 1970")
    if gather is not None:
        refuse("with --gather", {"--out": out})


def _run_share(target: LoadTarget, shard: str, start_at: float | None, out: Path) -> Artifact:
    """Send one share at the given start, or at the start that the shares agree on in `out`."""
    from loadtest import run_shard, run_together

    number, total = _shard(shard)
    send: Callable[..., Artifact] = run_together
    if start_at is not None:
        send = functools.partial(run_shard, start=functools.partial(float, start_at))
    return send(
        target.config,
        target.endpoint,
        out,
        prompts=target.prompts,
        shard=number,
        num_shards=total,
    )


def _shard(text: str) -> tuple[int, int]:
    number, slash, total = text.partition("/")
    if not (slash and number.isdecimal() and total.isdecimal() and int(total) > 0):
        raise ConfigError(f"--shard {text}: expected K/N, such as 0/4")
    return int(number), int(total)
