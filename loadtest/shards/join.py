"""Join the shards of several load pods into one report.

Figures are computed once, from all requests, never from figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from loadtest.client.plan import Plan
from loadtest.client.processes import Measured
from loadtest.client.records import Records, join_records
from loadtest.client.server_check import Served
from loadtest.config import LoadTestConfig
from loadtest.figures import client_totals
from loadtest.judging.cancellations import left_of
from loadtest.judging.server_metrics import COUNTERS, Scrape
from loadtest.measure import judged, server_figures, with_cancellations
from loadtest.report.build import load_report, summary_metrics
from loadtest.report.files import read_document
from loadtest.report.schema import Calibration
from loadtest.report.terminal import report_lines
from loadtest.run import save_records, write_report
from loadtest.shards.shard import RECORDS_FILE, SHARD_FILE, ShardReport
from loadtest.workload.build import Workload
from tuneline.core.artifact import Artifact, new_artifact, open_artifact
from tuneline.core.config import validate_config
from tuneline.core.endpoint import Endpoint
from tuneline.core.errors import ArtifactError, ConfigError
from tuneline.core.progress import logger


def join_shards(paths: Sequence[Path], out: Path) -> Artifact:
    """Write the report that a single pod would have written.

    Raises:
        ArtifactError: A directory is not a shard, the shards are of different load tests, or shards
            are missing or given twice; every problem is named.
    """
    if not paths:
        raise ConfigError("there are no shards to join; expected at least one directory")
    artifacts = [open_artifact(path, kind="load-shard") for path in paths]
    shards = [read_document(one.path / SHARD_FILE, ShardReport) for one in artifacts]
    _require_one_run(paths, artifacts, shards)
    first = shards[0]
    config = validate_config(LoadTestConfig, artifacts[0].manifest.config, str(paths[0]))
    plan = Plan.from_json(first.plan)
    workload = Workload(bodies=[], **first.workload.model_dump())
    records = join_records([Records.load(one.path / RECORDS_FILE) for one in artifacts])
    shards.sort(key=lambda one: one.shard)
    measured = Measured(
        records,
        [worker for one in shards for worker in one.workers],
        min(one.start_unix_s for one in shards),
    )
    (scenario,) = config.scenarios
    calibration = _worst_calibration(shards)
    if config.calibrate and calibration is None:
        raise ArtifactError("these shards cannot be joined: one of them has no calibration")
    scrapes = _scrapes(shards)
    server = None if scrapes is None else server_figures(*scrapes, client_totals(records))
    checks = None if first.checks is None else first.checks.checks()
    result = judged(config, scenario, plan, workload, measured, calibration, server, checks)
    if config.cancellations is not None:
        before, after = scrapes or (None, None)
        result = with_cancellations(result, config.cancellations, left_of(records), before, after)
    asked = first.endpoint
    endpoint = Endpoint(asked.url, asked.model)
    served = Served(
        asked.served_names,
        asked.artifact_name,
        asked.artifact_short_digest,
        asked.server,
        asked.is_listed,
    )
    inputs = [one.as_input("shard") for one in artifacts]
    resolved = config.model_dump(mode="json")
    with new_artifact(out, "load-report", config=resolved, inputs=inputs) as draft:
        report = load_report(config, endpoint, served, inputs, [result])
        save_records(result, draft.dir)
        write_report(report, [result], draft.dir)
        draft.metrics.update(summary_metrics(report))
    for line in report_lines(report):
        logger.info("%s", line)
    return open_artifact(out)


def _worst_calibration(shards: Sequence[ShardReport]) -> Calibration | None:
    """Return the calibration of the pod that adds the most, with every pod's problems."""
    found = [one.calibration for one in shards if one.calibration is not None]
    if len(found) < len(shards):
        return None

    def bias_s(one: Calibration) -> float:
        return max(abs(one.ttft_bias_p50_s or 0.0), abs(one.ttft_bias_p90_s or 0.0))

    problems = [
        f"shard {shard.shard}: {problem}"
        for shard, one in zip(shards, found, strict=True)
        for problem in one.problems
    ]
    return max(found, key=bias_s).model_copy(update={"problems": problems})


def _scrapes(shards: Sequence[ShardReport]) -> tuple[Scrape, Scrape] | None:
    """Return the earliest scrape and the last: counters only rise. None without both."""
    before = [Scrape(one.scrapes[0]) for one in shards if one.scrapes[0]]
    after = [Scrape(one.scrapes[1]) for one in shards if one.scrapes[1]]
    if not before or not after:
        return None

    def total(one: Scrape) -> float:
        return one.values[COUNTERS["generation_tokens"]]

    return min(before, key=total), max(after, key=total)


def _require_one_run(
    paths: Sequence[Path], artifacts: Sequence[Artifact], shards: Sequence[ShardReport]
) -> None:
    """Check that the shards are the whole of one load test.

    Raises:
        ArtifactError: They are not; every problem is named.
    """
    problems = []
    first = shards[0]
    for path, artifact, one in zip(paths, artifacts, shards, strict=True):
        if one.plan_digest != first.plan_digest:
            problems.append(f"{path}: of another schedule or other requests than {paths[0]}")
        elif one.checks != first.checks:
            problems.append(f"{path}: compares answers with another reference than {paths[0]}")
        elif artifact.manifest.config != artifacts[0].manifest.config:
            problems.append(f"{path}: of another configuration than {paths[0]}")
        if one.endpoint.artifact_name != first.endpoint.artifact_name:
            problems.append(f"{path}: measured another artifact than {paths[0]}")
        for what, found, expected in (
            ("asked another endpoint", one.endpoint.url, first.endpoint.url),
            ("asked another model", one.endpoint.model, first.endpoint.model),
            ("is of another number of shards", one.num_shards, first.num_shards),
            ("began at another time", one.start_unix_s, first.start_unix_s),
        ):
            if found != expected:
                problems.append(f"{path}: {what} ({found}) than {paths[0]} ({expected})")
    numbers = sorted(one.shard for one in shards)
    missing = sorted(set(range(first.num_shards)) - set(numbers))
    twice = sorted({number for number in numbers if numbers.count(number) > 1})
    problems += [f"shard {number} of {first.num_shards} is missing" for number in missing]
    problems += [f"shard {number} is there twice" for number in twice]
    if problems:
        lines = "\n".join(f"  {problem}" for problem in problems)
        raise ArtifactError(f"these shards cannot be joined:\n{lines}")
