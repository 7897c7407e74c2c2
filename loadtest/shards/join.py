"""Several load pods as one client: each sends its share of one schedule; the raw results merge.

Every pod computes the same schedule from the same configuration and seed, and sends the requests
whose index falls to it; all begin at one wall-clock time. Merging is exact: figures are computed
once, from all requests, never from figures.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from loadtest.calibration.calibrate import Calibration, calibrate
from loadtest.client.plan import Plan, Records, merge_records
from loadtest.client.planning import make_plan, plan_digest
from loadtest.client.probe import Served
from loadtest.client.processes import Measured
from loadtest.config import LoadTestConfig, Scenario
from loadtest.judging.server_metrics import COUNTERS, Scrape, scrape, settled_scrape
from loadtest.report import terminal as report_files
from loadtest.report.build import plain, report_document, summary_metrics
from loadtest.run import judged, probe_artifact, run_plan, server_figures, write_report
from loadtest.workload.requests import Workload
from tuneline.core.artifact import Artifact, Input, new_artifact, open_artifact
from tuneline.core.config import validate_config
from tuneline.core.endpoint import Endpoint
from tuneline.core.errors import ArtifactError, ConfigError
from tuneline.core.messages import Messages
from tuneline.core.progress import logger

SHARD_FILE = "shard.json"
RECORDS_FILE = "records.npz"


def run_shard(
    config: LoadTestConfig,
    endpoint: Endpoint,
    out: Path,
    *,
    prompts: Sequence[Messages],
    shard: int,
    num_shards: int,
    start: Callable[[], float],
    inputs: Sequence[Input] = (),
) -> Artifact:
    """Run one pod's share of the configuration's only scenario; artifact `load-shard`.

    Args:
        config: With exactly one scenario, the same on every pod.
        endpoint: Where to.
        out: Where the artifact goes.
        prompts: The same on every pod.
        shard: This pod's number, from 0.
        num_shards: How many pods there are.
        start: Called when this pod is ready; says when all pods begin, in seconds since 1970, a
            few seconds ahead. Their clocks must agree: what they differ by shows as a shift between
            the pods' requests.
        inputs: As of `run_loadtest`.

    Raises:
        ConfigError: Not one scenario, a shard out of range, or a start in the past.
        ServerError: As of `run_loadtest`.
    """
    if len(config.scenarios) != 1:
        raise ConfigError(
            f"{len(config.scenarios)} scenarios; a sharded load test runs exactly one"
        )
    if not 0 <= shard < num_shards:
        raise ConfigError(f"shard {shard} of {num_shards}: expected 0 to {num_shards - 1}")
    (scenario,) = config.scenarios
    served = probe_artifact(config, endpoint, inputs)
    whole = config.model_copy(update={"num_workers": num_shards * config.num_workers})
    plan, workload = make_plan(whole, scenario, endpoint, prompts, seed=config.seed, is_shard=True)
    own = range(shard * config.num_workers, (shard + 1) * config.num_workers)
    resolved = config.model_dump(mode="json")
    calibration = None
    if config.calibrate:
        trace_s = (plan.arrivals_s or [])[shard::num_shards]
        calibration = calibrate(config, _share(scenario, num_shards), tls=plan.tls, trace_s=trace_s)
    with new_artifact(out, "load-shard", config=resolved, inputs=inputs) as draft:
        before = scrape(endpoint)
        label = f"{scenario.name} {shard + 1}/{num_shards}"
        measured = run_plan(label, plan, endpoint.api_key, workers=own, start=start)
        after = settled_scrape(endpoint, before, np.inf) if before is not None else None
        write_shard(
            draft.dir, plan, workload, endpoint, served, measured, shard, num_shards,
            calibration=calibration, scrapes=(before, after),
        )  # fmt: skip
    return open_artifact(out)


def write_shard(
    directory: Path,
    plan: Plan,
    workload: Workload,
    endpoint: Endpoint,
    served: Served,
    measured: Measured,
    shard: int,
    num_shards: int,
    *,
    calibration: Calibration | None = None,
    scrapes: tuple[Scrape | None, Scrape | None] = (None, None),
) -> None:
    """The raw results of one pod.

    Args:
        scrapes: The server's metrics before and after, which are of all pods' requests.
    """
    measured.records.save(directory / RECORDS_FILE)
    document = {
        "shard": shard,
        "num_shards": num_shards,
        "plan_digest": plan_digest(plan, workload),
        "plan": {**plan.to_json(), "bodies": []},
        "workload": {
            "path": workload.path,
            "output_tokens": workload.output_tokens,
            "models": workload.models,
            "digest": workload.digest,
        },
        "endpoint": {"url": endpoint.url, "model": endpoint.model},
        "served": {
            "names": served.names,
            "artifact_name": served.artifact_name,
            "short_digest": served.short_digest,
            "server": served.server,
        },
        "workers": measured.workers,
        "start_unix_s": measured.start_unix_s,
        "calibration": plain(calibration),
        "scrapes": [None if one is None else one.values for one in scrapes],
    }
    text = json.dumps(document, ensure_ascii=False, allow_nan=False)
    (directory / SHARD_FILE).write_text(text + "\n", encoding="utf-8")


def merge_shards(paths: Sequence[Path], out: Path) -> Artifact:
    """Join the shards of one load test into the report that a single pod would have written.

    Raises:
        ArtifactError: One is no shard, they are not of the same load test, or some are missing or
            there twice; every problem is named.
    """
    if not paths:
        raise ConfigError("no shards to merge; expected at least one directory")
    artifacts = [open_artifact(path, kind="load-shard") for path in paths]
    documents = [json.loads((one.path / SHARD_FILE).read_text("utf-8")) for one in artifacts]
    _require_one_run(paths, artifacts, documents)
    first = documents[0]
    config = validate_config(LoadTestConfig, artifacts[0].manifest.config, str(paths[0]))
    plan = Plan.from_json(first["plan"])
    workload = Workload(bodies=[], **first["workload"])
    documents.sort(key=lambda document: int(document["shard"]))
    records = merge_records([Records.load(one.path / RECORDS_FILE) for one in artifacts])
    measured = Measured(
        records,
        [worker for document in documents for worker in document["workers"]],
        min(float(document["start_unix_s"]) for document in documents),
    )
    (scenario,) = config.scenarios
    calibration = _worst_calibration(documents)
    if config.calibrate and calibration is None:
        raise ArtifactError("these shards cannot be merged: one of them was not calibrated")
    result = judged(
        config, scenario, plan, workload, measured, calibration,
        _server_figures(documents, records),
    )  # fmt: skip
    endpoint = Endpoint(first["endpoint"]["url"], first["endpoint"]["model"])
    inputs = [one.as_input("shard") for one in artifacts]
    with new_artifact(
        out, "load-report", config=config.model_dump(mode="json"), inputs=inputs
    ) as d:
        document = report_document(config, endpoint, Served(**first["served"]), inputs, [result])
        write_report(document, [result], d.dir)
        d.metrics.update(summary_metrics(document))
    for line in report_files.lines(document):
        logger.info("%s", line)
    return open_artifact(out)


def _share(scenario: Scenario, num_shards: int) -> Scenario:
    """What one pod sends of a scenario."""
    share: dict[str, Any] = {}
    for name in ("rate_rps", "rate_end_rps"):
        if getattr(scenario, name) is not None:
            share[name] = getattr(scenario, name) / num_shards
    if scenario.concurrency is not None:
        share["concurrency"] = -(-scenario.concurrency // num_shards)
    return scenario.model_copy(update=share)


def _worst_calibration(documents: Sequence[dict[str, Any]]) -> Calibration | None:
    """Of the pod that adds the most, with every pod's problems."""
    found = [Calibration(**d["calibration"]) for d in documents if d["calibration"] is not None]
    if len(found) < len(documents):
        return None

    def bias_s(one: Calibration) -> float:
        return max(abs(one.ttft_bias_p50_s or 0.0), abs(one.ttft_bias_p90_s or 0.0))

    problems = [
        f"shard {document['shard']}: {problem}"
        for document, one in zip(documents, found, strict=True)
        for problem in one.problems
    ]
    return replace(max(found, key=bias_s), problems=problems)


def _server_figures(documents: Sequence[dict[str, Any]], records: Records) -> dict[str, Any] | None:
    """From the earliest scrape to the last: counters only rise."""
    before, after = (
        [Scrape(document["scrapes"][place]) for document in documents if document["scrapes"][place]]
        for place in (0, 1)
    )
    if not before or not after:
        return None

    def total(one: Scrape) -> float:
        return one.values[COUNTERS["generation_tokens"]]

    return server_figures(min(before, key=total), max(after, key=total), records)


def _require_one_run(
    paths: Sequence[Path], artifacts: Sequence[Artifact], documents: Sequence[dict[str, Any]]
) -> None:
    problems = []
    first = documents[0]
    for path, artifact, document in zip(paths, artifacts, documents, strict=True):
        if document["plan_digest"] != first["plan_digest"]:
            problems.append(f"{path}: of another schedule or other requests than {paths[0]}")
        elif artifact.manifest.config != artifacts[0].manifest.config:
            problems.append(f"{path}: of another configuration than {paths[0]}")
        if document["served"]["artifact_name"] != first["served"]["artifact_name"]:
            problems.append(f"{path}: measured another artifact than {paths[0]}")
        for key, what in (
            ("endpoint", "asked another endpoint"),
            ("num_shards", "is of another number of shards"),
            ("start_unix_s", "began at another time"),
        ):
            if document[key] != first[key]:
                problems.append(f"{path}: {what} ({document[key]}) than {paths[0]} ({first[key]})")
    numbers = sorted(int(document["shard"]) for document in documents)
    missing = sorted(set(range(int(first["num_shards"]))) - set(numbers))
    twice = sorted({number for number in numbers if numbers.count(number) > 1})
    problems += [f"shard {number} of {first['num_shards']} is missing" for number in missing]
    problems += [f"shard {number} is there twice" for number in twice]
    if problems:
        lines = "\n".join(f"  {problem}" for problem in problems)
        raise ArtifactError(f"these shards cannot be merged:\n{lines}")
