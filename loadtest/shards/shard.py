"""One load pod's share of a load test, and the file that it leaves.

Every pod computes the same schedule from the same configuration and seed, and sends the requests
whose index falls to it. All pods begin at one wall-clock time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ConfigDict

from loadtest.arrivals.table import rates
from loadtest.calibration.calibrate import calibrate
from loadtest.client.headers import with_headers
from loadtest.client.plan import Plan
from loadtest.client.prepare import make_plan, plan_digest
from loadtest.client.processes import Measured
from loadtest.client.server_check import Served
from loadtest.config import LoadTestConfig, Scenario
from loadtest.judging.server_metrics import Scrape, scrape, settled_scrape
from loadtest.measure import run_plan
from loadtest.report.build import endpoint_report
from loadtest.report.part import Part
from loadtest.report.schema import SCHEMA_VERSION, Calibration, EndpointReport, SchemaVersion
from loadtest.run import check_served, checks_of
from loadtest.workload.build import Workload
from loadtest.workload.checks import Checks
from tuneline.core.artifact import Artifact, new_artifact, open_artifact
from tuneline.core.documents import write_document
from tuneline.core.endpoint import Endpoint
from tuneline.core.errors import ConfigError
from tuneline.core.messages import ChatPrompt
from tuneline.core.reference import Continuation
from tuneline.core.tolerances import Tolerances

SHARD_FILE = "shard.json"
RECORDS_FILE = "records.npz"


class Asked(Part):
    """The requests' properties, without their bodies."""

    path: str
    output_tokens: list[int]
    models: list[str]
    digest: str
    images: list[tuple[int, int]]


class SharedChecks(Part):
    """The prompts of the reference with their answers: the pod that joins may not have the
    reference."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=True)

    expected: list[Continuation]
    settings: dict[str, int]
    template_kwargs: dict[str, str]
    tolerances: Tolerances
    share: float
    max_length_drift: float

    def checks(self) -> Checks:
        return Checks(
            self.expected,
            self.settings,
            self.template_kwargs,
            self.tolerances,
            self.share,
            self.max_length_drift,
        )


class ShardReport(Part):
    """`shard.json` of an artifact of kind `load-shard`."""

    schema_version: SchemaVersion
    shard: int
    num_shards: int
    plan_digest: str
    plan: dict[str, Any]
    """The plan of all pods, without the bodies."""
    workload: Asked
    endpoint: EndpointReport
    workers: list[dict[str, Any]]
    """The account of each client process."""
    start_unix_s: float
    calibration: Calibration | None
    scrapes: tuple[dict[str, float] | None, dict[str, float] | None]
    """The server's metrics before and after, which count all pods' requests."""
    checks: SharedChecks | None = None


def run_shard(
    config: LoadTestConfig,
    endpoint: Endpoint,
    out: Path,
    *,
    prompts: Sequence[ChatPrompt],
    shard: int,
    num_shards: int,
    start: Callable[[], float],
) -> Artifact:
    """Run one pod's share of the configuration's only scenario; write an artifact `load-shard`.

    Args:
        config: The same on every pod, with exactly one scenario.
        endpoint: Where to send.
        out: Where the artifact goes.
        prompts: The same on every pod.
        shard: This pod's number, from 0.
        num_shards: How many pods there are.
        start: Called when this pod is ready. Returns when all pods begin, in seconds since 1970, a
            few seconds ahead. The pods' clocks must agree: a difference shifts the requests of one
            pod against those of another.

    Raises:
        ConfigError: There is not exactly one scenario, the shard is out of range, the start is in
            the past, or `config.answers` names no reference.
        ServerError: The endpoint does not answer as it should (see `run_loadtest`).
    """
    if len(config.scenarios) != 1:
        raise ConfigError(
            f"{len(config.scenarios)} scenarios; a sharded load test runs exactly one"
        )
    if not 0 <= shard < num_shards:
        raise ConfigError(f"shard {shard} of {num_shards}: expected 0 to {num_shards - 1}")
    (scenario,) = config.scenarios
    checks = checks_of(config, None, None)
    endpoint = with_headers(config, endpoint)
    served = check_served(config, endpoint, ())
    whole = config.model_copy(update={"num_workers": num_shards * config.num_workers})
    plan, workload = make_plan(
        whole, scenario, endpoint, prompts, seed=config.seed, is_shard=True, checks=checks
    )
    own = range(shard * config.num_workers, (shard + 1) * config.num_workers)
    resolved = config.model_dump(mode="json")
    calibration = None
    if config.calibrate:
        times_s = (plan.arrivals_s or [])[shard::num_shards]
        per_arrival = 1.0 if plan.sessions is None else plan.sessions.mean_turns
        calibration = calibrate(
            config,
            _share(scenario, num_shards),
            tls=plan.tls,
            times_s=times_s,
            requests_per_arrival=per_arrival,
        )
    with new_artifact(out, "load-shard", config=resolved) as draft:
        before = scrape(endpoint)
        label = f"{scenario.name} {shard + 1}/{num_shards}"
        measured = run_plan(label, plan, endpoint.api_key, workers=own, start=start)
        after = settled_scrape(endpoint, before, np.inf) if before is not None else None
        write_shard(
            draft.dir, plan, workload, endpoint, served, measured, shard, num_shards,
            calibration=calibration, scrapes=(before, after), checks=checks,
        )  # fmt: skip
    return open_artifact(out)


def _share(scenario: Scenario, num_shards: int) -> Scenario:
    """Return what one pod sends of a scenario."""
    share: dict[str, Any] = {}
    if scenario.concurrency is not None:
        share["concurrency"] = -(-scenario.concurrency // num_shards)
    else:
        share |= {key: rate / num_shards for key, rate in rates(scenario).items()}
    return scenario.model_copy(update=share)


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
    checks: Checks | None = None,
) -> None:
    """Write the raw results of one pod.

    Args:
        scrapes: The server's metrics before and after, which count all pods' requests.
        checks: The prompts of the reference that the pods ask.
    """
    measured.records.save(directory / RECORDS_FILE)
    before, after = scrapes
    report = ShardReport(
        schema_version=SCHEMA_VERSION,
        shard=shard,
        num_shards=num_shards,
        plan_digest=plan_digest(plan, workload),
        plan={**asdict(plan), "bodies": []},
        workload=Asked(
            path=workload.path,
            output_tokens=workload.output_tokens,
            models=workload.models,
            digest=workload.digest,
            images=workload.images,
        ),
        endpoint=endpoint_report(endpoint, served),
        workers=measured.workers,
        start_unix_s=measured.start_unix_s,
        calibration=calibration,
        scrapes=(
            None if before is None else before.values,
            None if after is None else after.values,
        ),
        checks=None if checks is None else SharedChecks(**vars(checks)),
    )
    write_document(report, directory / SHARD_FILE)
