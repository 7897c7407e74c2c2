"""Several servers under several numbers of streams: which serve the most, and each user fastest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtest.client.headers import with_headers
from loadtest.client.server_check import Served
from loadtest.config import LoadTestConfig
from loadtest.judging.verdict import worst
from loadtest.report.build import Result, endpoint_report
from loadtest.report.plots import plot_pareto
from loadtest.report.schema import REPORT_FILE, SCHEMA_VERSION
from loadtest.run import check_served
from loadtest.studies.load import Load, arrivals_of
from loadtest.studies.measure_load import mean_e2e, measure_load
from loadtest.studies.schema import ParetoPoint, ParetoReport, ParetoServer
from loadtest.studies.tries import REQUESTS_PER_STREAM
from tuneline.core.artifact import Artifact, Input, new_artifact, open_artifact
from tuneline.core.documents import write_document
from tuneline.core.endpoint import Endpoint
from tuneline.core.environment import environment_facts
from tuneline.core.errors import ConfigError, TunelineError
from tuneline.core.messages import ChatPrompt
from tuneline.core.progress import logger
from tuneline.core.verdict import Verdict

Open = Callable[[], AbstractContextManager[Endpoint]]


@dataclass(frozen=True)
class Contender:
    """A server that is started for its turn.

    Attributes:
        settings: How it differs from the others, for the report.
        open: Serves as long as the block lasts.
    """

    settings: Mapping[str, Any]
    open: Open


def sweep_servers(
    config: LoadTestConfig,
    contenders: Mapping[str, Contender],
    out: Path,
    *,
    prompts: Sequence[ChatPrompt],
    concurrencies: Sequence[int],
    inputs: Sequence[Input] = (),
    num_requests: int = 100,
) -> Artifact:
    """Measure each server with each number of streams, and draw its Pareto picture.

    The picture has tokens/s per user against tokens/s of the server. A server that does not start
    or dies is reported, and the others go on. Writes a `load-pareto`.

    Args:
        config: Objectives, workload and client options; its scenarios are not used.
        contenders: The servers by name; one runs at a time.
        concurrencies: Numbers of streams.
        num_requests: Measured requests of each point, and at least 12 per stream.

    Raises:
        ConfigError: There is no server or no number of streams, or a number is below 1.
    """
    streams = sorted(set(concurrencies))
    if not contenders or not streams or streams[0] < 1:
        raise ConfigError(
            f"{len(contenders)} servers with {len(streams)} numbers of streams: expected at least "
            "one server, and streams of 1 or more",
            hint="Try: --concurrencies 1,4,16",
        )
    resolved = {
        **config.model_dump(mode="json"),
        "sweep": {
            "servers": {name: dict(one.settings) for name, one in contenders.items()},
            "concurrencies": streams,
            "num_requests": num_requests,
        },
    }
    with new_artifact(out, "load-pareto", config=resolved, inputs=inputs) as draft:
        servers, points = [], []
        for name, contender in contenders.items():
            logger.info("server %s", name)
            server, own = _measure_server(
                config, name, contender, prompts, streams, inputs, num_requests
            )
            servers.append(server)
            points += own
        report = _report(config, inputs, servers, with_front(points))
        write_document(report, draft.dir / REPORT_FILE)
        plot_pareto(report.points, draft.dir)
        draft.metrics.update(
            verdict=report.verdict,
            problems=report.problems,
            front=[f"{one.server} x {one.concurrency}" for one in report.points if one.is_on_front],
        )
    for line in pareto_lines(report):
        logger.info("%s", line)
    return open_artifact(out)


def _measure_server(
    config: LoadTestConfig,
    name: str,
    contender: Contender,
    prompts: Sequence[ChatPrompt],
    streams: Sequence[int],
    inputs: Sequence[Input],
    num_requests: int,
) -> tuple[ParetoServer, list[ParetoPoint]]:
    """Return a server and its points; a server that fails keeps the points that it has."""
    points: list[ParetoPoint] = []
    endpoint: Endpoint | None = None
    served: Served | None = None
    problem = None
    try:
        with contender.open() as opened:
            endpoint = with_headers(config, opened)
            served = check_served(config, endpoint, inputs)
            for number, concurrency in enumerate(streams):
                load = Load("concurrency", float(concurrency), arrivals_of(config))
                num = max(num_requests, REQUESTS_PER_STREAM * concurrency)
                result, _ = measure_load(
                    config, endpoint, prompts, load, num, config.seed + number, early=False
                )
                points.append(_point(name, concurrency, result))
                logger.info("  %s: %s", load, points[-1].verdict)
    except TunelineError as error:
        problem = error.message.partition("\n")[0]
        logger.warning("  %s: %s", name, problem)
    report = None if endpoint is None or served is None else endpoint_report(endpoint, served)
    return ParetoServer(
        name=name, settings=dict(contender.settings), endpoint=report, problem=problem
    ), points


def _point(server: str, concurrency: int, result: Result) -> ParetoPoint:
    stats, judgement = result.stats, result.judgement
    tpot = stats.latencies["tpot_s"]
    median_s, tpot_ci95 = tpot.at(50), tpot.ci95.get("p50", (None, None))
    mean_s, e2e_ci95 = mean_e2e(result)
    tokens_per_s = stats.throughput.output_tokens_per_s
    per_user_ci95 = tokens_ci95 = None
    if tpot_ci95[0] and tpot_ci95[1]:
        per_user_ci95 = (1 / tpot_ci95[1], 1 / tpot_ci95[0])
    if mean_s and e2e_ci95 and tokens_per_s is not None:
        # By Little's law, the throughput of a closed loop is inverse to the mean latency.
        tokens_ci95 = (tokens_per_s * mean_s / e2e_ci95[1], tokens_per_s * mean_s / e2e_ci95[0])
    return ParetoPoint(
        server=server,
        concurrency=concurrency,
        verdict=judgement.verdict,
        problems=judgement.problems,
        num_requests=stats.num_offered,
        tokens_per_s_per_user=1 / median_s if median_s else None,
        tokens_per_s_per_user_ci95=per_user_ci95,
        tokens_per_s=tokens_per_s,
        tokens_per_s_ci95=tokens_ci95,
        ttft_p90_s=stats.latencies["ttft_s"].at(90),
        is_on_front=False,
    )


def with_front(points: Sequence[ParetoPoint]) -> list[ParetoPoint]:
    """Return the points, with those marked that no other usable point dominates."""
    usable = [point.place for point in points if point.is_usable]

    def is_on_front(point: ParetoPoint) -> bool:
        user, server = point.place
        return point.is_usable and not any(
            other != (user, server) and other[0] >= user and other[1] >= server for other in usable
        )

    return [point.model_copy(update={"is_on_front": is_on_front(point)}) for point in points]


def _report(
    config: LoadTestConfig,
    inputs: Sequence[Input],
    servers: Sequence[ParetoServer],
    points: Sequence[ParetoPoint],
) -> ParetoReport:
    failed = [server for server in servers if server.problem is not None]
    verdicts = [point.verdict for point in points] + [Verdict.FAIL for _ in failed]
    return ParetoReport(
        schema_version=SCHEMA_VERSION,
        verdict=worst(verdicts),
        problems=[
            *(f"{server.name}: {server.problem}" for server in failed),
            *(
                f"{point.server}, {point.concurrency} streams: {problem}"
                for point in points
                for problem in point.problems
            ),
        ],
        inputs=list(inputs),
        slo=config.slo,
        servers=list(servers),
        points=list(points),
        environment=environment_facts(),
    )


def pareto_lines(report: ParetoReport) -> list[str]:
    """Return the points as a table in plain text; a star marks the front."""
    width = max([len(server.name) for server in report.servers] + [6])
    lines = [f"{'server':{width}}  streams  tokens/s per user  tokens/s of the server  verdict"]
    for point in report.points:
        star = " *" if point.is_on_front else ""
        lines.append(
            f"{point.server:{width}}  {point.concurrency:>7}  {_n(point.tokens_per_s_per_user):>17}"
            f"  {_n(point.tokens_per_s):>22}  {point.verdict}{star}"
        )
    return lines


def _n(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
