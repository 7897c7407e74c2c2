"""Latency and throughput against rate, or against streams at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from loadtest.client.headers import with_headers
from loadtest.client.records import records_path
from loadtest.config import LoadTestConfig
from loadtest.judging.verdict import worst
from loadtest.report.build import endpoint_report, scenario_report
from loadtest.report.plots import plot_loads
from loadtest.report.schema import REPORT_FILE, SCHEMA_VERSION
from loadtest.run import check_served
from loadtest.studies.knee import find_knee
from loadtest.studies.load import Arrivals, Axis, Load, arrivals_of, unit_of
from loadtest.studies.measure_load import measure_load, summarize_load
from loadtest.studies.schema import SweepReport
from loadtest.studies.tries import REQUESTS_PER_STREAM
from tuneline.core.artifact import Artifact, Input, new_artifact, open_artifact
from tuneline.core.documents import write_document
from tuneline.core.endpoint import Endpoint
from tuneline.core.environment import environment_facts
from tuneline.core.errors import ConfigError
from tuneline.core.messages import ChatPrompt
from tuneline.core.progress import logger

OPTIONS: dict[Axis, str] = {"rate": "--rates 1,2,4,8", "concurrency": "--concurrencies 1,4,16"}


def sweep_loads(
    config: LoadTestConfig,
    endpoint: Endpoint,
    out: Path,
    *,
    prompts: Sequence[ChatPrompt],
    axis: Axis,
    values: Sequence[float],
    inputs: Sequence[Input] = (),
    num_requests: int = 300,
) -> Artifact:
    """Measure each load and draw latency and throughput against it; write a `load-sweep`.

    Args:
        config: Objectives, workload and client options; its scenarios are not used.
        axis: Whether `values` are rates, in requests per second, or streams at once.
        num_requests: Measured requests of each load; streams have at least 12 requests each.

    Raises:
        ConfigError: There are no loads, or a load is not above 0.
        ServerError: The endpoint does not answer as it should (see `run_loadtest`).
    """
    arrivals = arrivals_of(config)
    loads = _loads(axis, values, arrivals)
    endpoint = with_headers(config, endpoint)
    served = check_served(config, endpoint, inputs)
    resolved = {
        **config.model_dump(mode="json"),
        "sweep": {
            "axis": axis, "values": [load.value for load in loads], "num_requests": num_requests
        },
    }  # fmt: skip
    with new_artifact(out, "load-sweep", config=resolved, inputs=inputs) as draft:
        scenarios, probes = [], []
        for number, load in enumerate(loads):
            count = max(num_requests, REQUESTS_PER_STREAM * (load.concurrency or 0))
            result, _ = measure_load(
                config, endpoint, prompts, load, count, config.seed + number, early=False
            )
            probe = summarize_load(load, result, stopped=False)
            probes.append(probe)
            scenarios.append(scenario_report(config, result))
            result.records.save(records_path(draft.dir, result.scenario.name))
            logger.info("  %s: %s", load, probe.verdict)
        report = SweepReport(
            schema_version=SCHEMA_VERSION,
            verdict=worst([probe.verdict for probe in probes]),
            problems=[
                f"{load}: {problem}"
                for load, probe in zip(loads, probes, strict=True)
                for problem in probe.problems
            ],
            endpoint=endpoint_report(endpoint, served),
            inputs=list(inputs),
            axis=axis,
            arrivals=arrivals,
            knee=None if axis == "rate" else find_knee(probes),
            scenarios=scenarios,
            probes=probes,
            environment=environment_facts(),
        )
        write_document(report, draft.dir / REPORT_FILE)
        plot_loads(probes, draft.dir, unit_of(axis, arrivals), report.knee)
        draft.metrics.update(
            verdict=report.verdict,
            problems=report.problems,
            loads={str(load): probe.verdict for load, probe in zip(loads, probes, strict=True)},
        )
    return open_artifact(out)


def _loads(axis: Axis, values: Sequence[float], arrivals: Arrivals) -> list[Load]:
    """Return the loads in their order, each once.

    Raises:
        ConfigError: There are no loads, or a load is not above 0.
    """
    if not values or not all(0 < value < math.inf for value in values):
        what = "rate above 0" if axis == "rate" else "number of streams above 0"
        raise ConfigError(f"a sweep needs at least one {what}", hint=f"Try: {OPTIONS[axis]}")
    # Rates are rounded as the names of their scenarios are, so that no two share a name.
    kept = {float(f"{value:.4g}") if axis == "rate" else float(value) for value in values}
    return [Load(axis, value, arrivals) for value in sorted(kept)]
