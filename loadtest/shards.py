"""Several load pods as one client: each sends its share of one schedule; the raw results merge.

Every pod computes the same schedule from the same configuration and seed, and sends the requests
whose index falls to it; all begin at one wall-clock time. Merging is exact: figures are computed
once, from all requests, never from figures.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loadtest import report as report_files
from loadtest.config import LoadTestConfig
from loadtest.document import report_document, summary_metrics
from loadtest.plan import Plan, Records, merge_records
from loadtest.planning import make_plan, plan_digest
from loadtest.probe import Served
from loadtest.run import judged, probe_artifact, run_plan, write_report
from loadtest.workers import Measured
from loadtest.workload import Messages, Workload
from tuneline.core.artifact import Artifact, Input, new_artifact, open_artifact
from tuneline.core.config import validate_config
from tuneline.core.endpoint import Endpoint
from tuneline.core.errors import ArtifactError, ConfigError
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
    start_unix_s: float,
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
        start_unix_s: When all pods begin; a few seconds ahead. Their clocks must agree: what they
            differ by shows as a shift between the pods' requests.
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
    plan, workload = make_plan(whole, scenario, endpoint, prompts, seed=config.seed)
    own = range(shard * config.num_workers, (shard + 1) * config.num_workers)
    resolved = config.model_dump(mode="json")
    with new_artifact(out, "load-shard", config=resolved, inputs=inputs) as draft:
        label = f"{scenario.name} {shard + 1}/{num_shards}"
        measured = run_plan(label, plan, endpoint.api_key, workers=own, start_unix_s=start_unix_s)
        write_shard(draft.dir, plan, workload, endpoint, served, measured, shard, num_shards)
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
) -> None:
    """The raw results of one pod."""
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
    result = judged(config, scenario, plan, workload, measured)
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
    numbers = sorted(int(document["shard"]) for document in documents)
    missing = sorted(set(range(int(first["num_shards"]))) - set(numbers))
    twice = sorted({number for number in numbers if numbers.count(number) > 1})
    problems += [f"shard {number} of {first['num_shards']} is missing" for number in missing]
    problems += [f"shard {number} is there twice" for number in twice]
    if problems:
        lines = "\n".join(f"  {problem}" for problem in problems)
        raise ArtifactError(f"these shards cannot be merged:\n{lines}")
