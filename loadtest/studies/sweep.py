"""Latency and throughput against rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from loadtest.config import LoadTestConfig
from loadtest.judging.verdict import worst
from loadtest.report.build import endpoint_report, scenario_report
from loadtest.report.files import records_path
from loadtest.report.plots import plot_loads
from loadtest.report.schema import REPORT_FILE, SCHEMA_VERSION
from loadtest.run import check_served
from loadtest.studies.load import Load
from loadtest.studies.measure_load import measure_load, summarize_load
from loadtest.studies.schema import SweepReport
from tuneline.core.artifact import Artifact, Input, new_artifact, open_artifact
from tuneline.core.documents import write_document
from tuneline.core.endpoint import Endpoint
from tuneline.core.environment import environment_facts
from tuneline.core.errors import ConfigError
from tuneline.core.messages import ChatPrompt
from tuneline.core.progress import logger


def sweep_rates(
    config: LoadTestConfig,
    endpoint: Endpoint,
    out: Path,
    *,
    prompts: Sequence[ChatPrompt],
    rates_rps: Sequence[float],
    inputs: Sequence[Input] = (),
    num_requests: int = 300,
) -> Artifact:
    """Measure each rate and draw latency and throughput against it; write a `load-sweep`.

    Args:
        config: Objectives, workload and client options; its scenarios are not used.
        rates_rps: Requests per second.
        num_requests: Measured requests of each rate.

    Raises:
        ConfigError: There are no rates, or a rate is not above 0.
        ServerError: The endpoint does not answer as it should (see `run_loadtest`).
    """
    if not rates_rps or not all(0 < rate_rps < math.inf for rate_rps in rates_rps):
        raise ConfigError("a sweep needs at least one rate above 0", hint="Try: --rates 1,2,4,8")
    served = check_served(config, endpoint, inputs)
    # Rounded as the names of their scenarios are, so that no two share a name.
    rates = sorted({float(f"{rate_rps:.4g}") for rate_rps in rates_rps})
    resolved = {
        **config.model_dump(mode="json"),
        "sweep": {"rates_rps": rates, "num_requests": num_requests},
    }
    with new_artifact(out, "load-sweep", config=resolved, inputs=inputs) as draft:
        scenarios, probes = [], []
        for number, rate_rps in enumerate(rates):
            seed = config.seed + number
            load = Load("rate", rate_rps)
            result, _ = measure_load(
                config, endpoint, prompts, load, num_requests, seed, early=False
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
                f"{probe.rate_rps:g} requests/s: {problem}"
                for probe in probes
                for problem in probe.problems
            ],
            endpoint=endpoint_report(endpoint, served),
            inputs=list(inputs),
            scenarios=scenarios,
            probes=probes,
            environment=environment_facts(),
        )
        write_document(report, draft.dir / REPORT_FILE)
        plot_loads(probes, draft.dir)
        draft.metrics.update(
            verdict=report.verdict,
            problems=report.problems,
            rates={str(probe.rate_rps): probe.verdict for probe in probes},
        )
    return open_artifact(out)
