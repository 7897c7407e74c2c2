"""Latency and throughput against rate, or against streams at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from loadtest.client.headers import with_headers
from loadtest.client.records import records_path
from loadtest.config import LoadTestConfig
from loadtest.judging.verdict import worst
from loadtest.report.build import endpoint_report, scenario_report
from loadtest.report.part import Part
from loadtest.report.plots import plot_loads
from loadtest.report.schema import REPORT_FILE, SCHEMA_VERSION, ScenarioReport
from loadtest.run import check_served
from loadtest.studies.knee import find_knee
from loadtest.studies.load import Arrivals, Axis, Load, arrivals_of, unit_of
from loadtest.studies.measure_load import measure_load, summarize_load
from loadtest.studies.schema import Probe, SweepReport
from loadtest.studies.tries import REQUESTS_PER_STREAM, prompts_digest
from tuneline.core.artifact import Artifact, Draft, Input, new_artifact, open_artifact
from tuneline.core.disk import replace_file
from tuneline.core.documents import write_document
from tuneline.core.endpoint import Endpoint
from tuneline.core.environment import environment_facts
from tuneline.core.errors import ConfigError
from tuneline.core.files import file_sha256
from tuneline.core.messages import ChatPrompt
from tuneline.core.progress import logger


class Measured(Part):
    """A load that is measured, as the journal of an unfinished sweep has it."""

    probe: Probe
    scenario: ScenarioReport
    sha256: str
    """Of its records."""


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
    resume_key: str | None = None,
) -> Artifact:
    """Measure each load and draw latency and throughput against it; write a `load-sweep`.

    Args:
        config: Objectives, workload and client options; its scenarios are not used.
        axis: Whether `values` are rates, in requests per second, or streams at once.
        num_requests: Measured requests of each load; streams have at least 12 requests each.
        resume_key: Names the server with its settings. A sweep that was killed goes on after its
            last load, if this and the prompts are the same.

    Raises:
        ConfigError: There are no loads, or a load is not above 0.
        ServerError: The endpoint does not answer as it should (see `run_loadtest`).
    """
    arrivals = arrivals_of(config)
    loads = _loads(axis, values, arrivals)
    endpoint = with_headers(config, endpoint)
    served = check_served(config, endpoint, inputs)
    asked: dict[str, Any] = {
        "axis": axis,
        "values": [load.value for load in loads],
        "num_requests": num_requests,
    }
    goes_on = resume_key is not None
    if goes_on:
        asked |= {"server": resume_key, "prompts": prompts_digest(config, prompts)}
    resolved = {**config.model_dump(mode="json"), "sweep": asked}
    with new_artifact(
        out, "load-sweep", config=resolved, inputs=inputs, resumable=goes_on
    ) as draft:
        done = [] if not goes_on else _read_journal(draft, len(loads))
        for number, load in enumerate(loads[len(done) :], start=len(done)):
            count = max(num_requests, REQUESTS_PER_STREAM * (load.concurrency or 0))
            done.append(_measure(config, endpoint, prompts, load, count, number, draft.dir))
            if goes_on:
                _write_journal(draft, done)
        probes = [one.probe for one in done]
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
            scenarios=[one.scenario for one in done],
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


def _measure(
    config: LoadTestConfig, endpoint: Endpoint, prompts: Sequence[ChatPrompt], load: Load,
    num_requests: int, number: int, directory: Path,
) -> Measured:  # fmt: skip
    """Measure the load with a number, and write its records."""
    seed = config.seed + number
    result, _ = measure_load(config, endpoint, prompts, load, num_requests, seed, early=False)
    records = records_path(directory, result.scenario.name)
    result.records.save(records)
    probe = summarize_load(load, result, stopped=False)
    logger.info("  %s: %s", load, probe.verdict)
    return Measured(
        probe=probe,
        scenario=scenario_report(config, result),
        sha256=file_sha256(records),
    )


def _read_journal(draft: Draft, most: int) -> list[Measured]:
    """Return the loads of an earlier process whose records are whole. The journal's first line is
    the artifact's; a line that a kill cut off ends the list."""
    found: list[Measured] = []
    for line in draft.journal.read_text(encoding="utf-8").splitlines()[1 : most + 1]:
        try:
            one = Measured.model_validate_json(line)
            if file_sha256(records_path(draft.dir, one.scenario.name)) != one.sha256:
                break
        except (ValidationError, OSError):
            break
        logger.info("  %s: %s, measured before", one.scenario.name, one.probe.verdict)
        found.append(one)
    return found


def _write_journal(draft: Draft, done: Sequence[Measured]) -> None:
    first, _, _ = draft.journal.read_text(encoding="utf-8").partition("\n")
    lines = [first, *(one.model_dump_json() for one in done)]
    replace_file(draft.journal, "\n".join(lines) + "\n")


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
