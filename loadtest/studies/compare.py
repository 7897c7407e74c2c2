"""Is B slower than A? Paired differences of runs that asked the same at the same times."""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loadtest.client.plan import SUCCEEDED, Records
from loadtest.config import LoadTestConfig
from loadtest.judging.intervals import MIN_BLOCKS, block_length, paired_difference
from loadtest.judging.statistics import mean_in_flight, tpot_s
from loadtest.report.build import SCHEMA_VERSION, Result, endpoint_document, scenario_document
from loadtest.run import measure_scenario, probe_artifact
from tuneline.core.artifact import Artifact, Input, new_artifact, open_artifact
from tuneline.core.endpoint import Endpoint
from tuneline.core.environment import environment_facts
from tuneline.core.errors import ArtifactError, ConfigError
from tuneline.core.messages import Messages
from tuneline.core.progress import logger

DEFAULT_MARGIN = 0.05

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Difference:
    """B minus A of one metric, over requests that both answered."""

    metric: str
    unit: str
    num_pairs: int
    mean_a: float
    mean_b: float
    difference: float
    """Mean paired difference, B minus A."""
    ci95_low: float
    ci95_high: float
    verdict: str
    """`slower`, `faster` or `no difference`: whether the 95 % interval leaves the margin around
    0 on one side, contains both, or lies within it; `unclear` where it reaches over its edge."""
    num_needed: int | None = None
    """Pairs that a verdict needs at least, where too few are why it is unclear."""


def compare(
    config: LoadTestConfig,
    endpoint_a: Endpoint,
    endpoint_b: Endpoint,
    out: Path,
    *,
    prompts: Sequence[Messages],
    num_rounds: int = 4,
    margin: float = DEFAULT_MARGIN,
    inputs: Sequence[Input] = (),
) -> Artifact:
    """Run each scenario on both endpoints in turns, A B B A ..., and compare request by request.

    Both answer the same prompts at the same times (common random numbers), round by round, and
    drift of the machine falls on both alike. Writes an artifact of kind `load-comparison` whose
    verdict is FAIL where B is slower by more than `margin`, INCONCLUSIVE where that cannot be
    said, and INVALID where a run was.

    Args:
        config: Scenarios, workload and client options.
        endpoint_a: The baseline.
        endpoint_b: What is held against it.
        out: Where the artifact goes.
        prompts: As of `run_loadtest`.
        num_rounds: Runs of each endpoint.
        margin: By how much of A's mean B may be slower and still count as no slower.
        inputs: As of `run_loadtest`.

    Raises:
        ConfigError: Less than one round, or a margin that is none.
        ServerError: As of `run_loadtest`, for either endpoint.
    """
    if num_rounds < 1:
        raise ConfigError(f"{num_rounds} rounds: expected at least 1")
    _check_margin(margin)
    served = [probe_artifact(config, one, ()) for one in (endpoint_a, endpoint_b)]
    resolved = {
        **config.model_dump(mode="json"),
        "compare": {"num_rounds": num_rounds, "margin": margin},
    }
    with new_artifact(out, "load-comparison", config=resolved, inputs=inputs) as draft:
        found = []
        for number, scenario in enumerate(config.scenarios):
            runs: dict[str, list[Result]] = {"a": [], "b": []}
            for round_number in range(num_rounds):
                seed = config.seed + 100 * number + round_number
                # One for both sides, and no earlier run's: a prefix cache may hold that one's.
                permutation_seed = secrets.randbits(64)
                order = ("a", "b") if round_number % 2 == 0 else ("b", "a")
                for side in order:
                    endpoint = endpoint_a if side == "a" else endpoint_b
                    result = measure_scenario(
                        config,
                        scenario,
                        endpoint,
                        prompts,
                        seed=seed,
                        permutation_seed=permutation_seed,
                    )
                    runs[side].append(result)
                    stem = f"records-{scenario.name}-{side}{round_number}"
                    result.records.save(draft.dir / f"{stem}.npz")
            pairs = [(a.records, b.records) for a, b in zip(runs["a"], runs["b"], strict=True)]
            found.append(
                {
                    "name": scenario.name,
                    "differences": [asdict(d) for d in differences(pairs, margin)],
                    "answer_tokens": answer_tokens(pairs),
                    "runs": {
                        side: [scenario_document(config, result) for result in results]
                        for side, results in runs.items()
                    },
                }
            )
        document = comparison_document(found, margin)
        document["endpoints"] = {
            "a": endpoint_document(endpoint_a, served[0]),
            "b": endpoint_document(endpoint_b, served[1]),
        }
        _finish(document, draft.dir, draft.metrics)
    return open_artifact(out)


def compare_reports(
    path_a: Path, path_b: Path, out: Path, *, margin: float = DEFAULT_MARGIN
) -> Artifact:
    """Compare two load reports request by request, without running anything.

    They were not run in turns, so what changed on the machine between them counts as a difference;
    the document says so.

    Raises:
        ArtifactError: One is no load report, or they did not ask the same at the same times: a
            scenario is missing or its plan digest differs; every difference is named.
        ConfigError: The margin is none.
    """
    _check_margin(margin)
    a, b = (open_artifact(path, kind="load-report") for path in (path_a, path_b))
    documents = [json.loads((one.path / "report.json").read_text("utf-8")) for one in (a, b)]
    by_name = [{s["name"]: s for s in document["scenarios"]} for document in documents]
    problems = [
        f"scenario {name}: only in {path_a if name in by_name[0] else path_b}"
        for name in sorted(by_name[0].keys() ^ by_name[1].keys())
    ]
    names = [name for name in by_name[0] if name in by_name[1]]
    problems += [
        f"scenario {name}: other requests or other times (plan "
        f"{by_name[0][name]['plan_digest'][7:19]} and {by_name[1][name]['plan_digest'][7:19]})"
        for name in names
        if by_name[0][name]["plan_digest"] != by_name[1][name]["plan_digest"]
    ]
    problems += [
        f"{key} differs: {documents[0]['workload'].get(key)!r} and "
        f"{documents[1]['workload'].get(key)!r}"
        for key in sorted(documents[0]["workload"].keys() | documents[1]["workload"].keys())
        if documents[0]["workload"].get(key) != documents[1]["workload"].get(key)
    ]
    if problems:
        lines = "\n".join(f"  {problem}" for problem in problems)
        raise ArtifactError(
            f"{path_a} and {path_b} cannot be compared:\n{lines}",
            hint="Run both with the same loadtest section, seed and prompts.",
        )
    config = {"margin": margin, "interleaved": False}
    inputs = [a.as_input("a"), b.as_input("b")]
    with new_artifact(out, "load-comparison", config=config, inputs=inputs) as draft:
        found = []
        for name in names:
            pair = tuple(Records.load(one.path / f"records-{name}.npz") for one in (a, b))
            pairs = [(pair[0], pair[1])]
            found.append(
                {
                    "name": name,
                    "differences": [asdict(d) for d in differences(pairs, margin)],
                    "answer_tokens": answer_tokens(pairs),
                    "runs": {side: [by_name[i][name]] for i, side in enumerate("ab")},
                }
            )
        document = comparison_document(found, margin)
        document["endpoints"] = {"a": documents[0]["endpoint"], "b": documents[1]["endpoint"]}
        document["interleaved"] = False
        _finish(document, draft.dir, draft.metrics)
    return open_artifact(out)


def _check_margin(margin: float) -> None:
    if not 0 <= margin < math.inf:
        raise ConfigError(f"margin {margin:g}: expected a share, such as {DEFAULT_MARGIN:g}")


def answer_tokens(pairs: Sequence[tuple[Records, Records]]) -> tuple[float, float] | None:
    """Mean output tokens of A and of B, of the requests that both answered; None where the server
    does not say."""
    left, right = [], []
    for a, b in pairs:
        rows_a, rows_b = _both_answered(a, b)
        left.append(a.tokens[rows_a])
        right.append(b.tokens[rows_b])
    tokens = np.stack([np.concatenate(left), np.concatenate(right)])
    tokens = tokens[:, ~np.isnan(tokens).any(axis=0)]
    return (float(tokens[0].mean()), float(tokens[1].mean())) if tokens.size else None


def _both_answered(a: Records, b: Records) -> tuple[Rows, Rows]:
    """Rows of the measured requests that succeeded on both sides."""
    _, rows_a, rows_b = np.intersect1d(a.index, b.index, return_indices=True)
    keep = (a.state[rows_a] == SUCCEEDED) & (b.state[rows_b] == SUCCEEDED) & ~a.warmup[rows_a]
    return rows_a[keep], rows_b[keep]


def differences(pairs: Sequence[tuple[Records, Records]], margin: float) -> list[Difference]:
    """Paired differences of requests with the same index, over all rounds."""
    found = []
    for metric in ("ttft_s", "tpot_s", "e2e_s"):
        left, right, overlap = [], [], 1.0
        for a, b in pairs:
            rows_a, rows_b = _both_answered(a, b)
            values_a, values_b = _values(a, metric)[rows_a], _values(b, metric)[rows_b]
            both = ~np.isnan(values_a) & ~np.isnan(values_b)
            left.append(values_a[both])
            right.append(values_b[both])
            overlap = max(overlap, mean_in_flight(a) or 1.0, mean_in_flight(b) or 1.0)
        values_a, values_b = np.concatenate(left), np.concatenate(right)
        if not len(values_a):
            continue
        block = block_length(overlap)
        mean, low, high = paired_difference(values_b - values_a, block)
        num_needed = MIN_BLOCKS * block
        enough = len(values_a) >= num_needed
        mean_a = float(np.mean(values_a))
        found.append(
            Difference(
                metric=metric,
                unit="s",
                num_pairs=len(values_a),
                mean_a=mean_a,
                mean_b=float(np.mean(values_b)),
                difference=mean,
                ci95_low=low,
                ci95_high=high,
                verdict=_judge(low, high, margin * mean_a) if enough else "unclear",
                num_needed=None if enough else num_needed,
            )
        )
    return found


def _values(records: Records, metric: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    if metric == "ttft_s":
        return records.first_token_s - records.intended_s
    if metric == "e2e_s":
        return records.last_token_s - records.intended_s
    return tpot_s(records)


def _judge(low: float, high: float, margin: float) -> str:
    if low > margin:
        return "slower"
    if high < -margin:
        return "faster"
    return "no difference" if high <= margin else "unclear"


def comparison_document(scenarios: list[dict[str, Any]], margin: float) -> dict[str, Any]:
    """The document but for its endpoints."""
    problems, verdict = [], "PASS"
    for scenario in scenarios:
        runs = [run for side in scenario["runs"].values() for run in side]
        invalid = [run for run in runs if run["verdict"] == "INVALID"]
        for difference in scenario["differences"]:
            text = (
                f"{scenario['name']}: {difference['metric']}: B - A is "
                f"{difference['difference'] * 1e3:+.2f} ms ({difference['ci95_low'] * 1e3:+.2f} "
                f"to {difference['ci95_high'] * 1e3:+.2f}, N = {difference['num_pairs']})"
            )
            if difference["verdict"] == "slower":
                problems.append(text)
                verdict = "FAIL"
            elif difference["verdict"] == "unclear":
                needed = difference["num_needed"]
                few = f"; it takes at least {needed} pairs to tell" if needed else ""
                problems.append(f"{text}: unclear{few}")
                verdict = "INCONCLUSIVE" if verdict == "PASS" else verdict
        tokens = scenario["answer_tokens"]
        if tokens and abs(tokens[1] - tokens[0]) > margin * tokens[0]:
            problems.append(
                f"{scenario['name']}: answers have {tokens[0]:.4g} tokens on A and {tokens[1]:.4g} "
                "on B: their times are not of the same work (loadtest.ignore_eos: true makes them)"
            )
            verdict = "INCONCLUSIVE" if verdict == "PASS" else verdict
        lost = [
            sum(run["requests"]["failed"] + run["requests"]["unfinished"] for run in of_side)
            for of_side in scenario["runs"].values()
        ]
        if lost[1] > lost[0]:
            problems.append(
                f"{scenario['name']}: {lost[1]} requests of B failed or did not end, {lost[0]} of A"
            )
            verdict = "FAIL"
        if not scenario["differences"]:
            problems.append(
                f"{scenario['name']}: no request succeeded on both sides: nothing to compare"
            )
            verdict = "INVALID"
            break
        if invalid:
            problems += [f"{scenario['name']}: {p}" for run in invalid for p in run["problems"]]
            verdict = "INVALID"
            break
    return {
        "schema_version": SCHEMA_VERSION,
        "verdict": verdict,
        "problems": problems,
        "margin": margin,
        "interleaved": True,
        "scenarios": scenarios,
        "environment": environment_facts(),
    }


def _finish(document: dict[str, Any], directory: Path, metrics: dict[str, Any]) -> None:
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    (directory / "report.json").write_text(text + "\n", encoding="utf-8")
    metrics.update(verdict=document["verdict"], problems=document["problems"])
    for scenario in document["scenarios"]:
        for one in scenario["differences"]:
            logger.info(
                "  %s %s: A %.2f ms, B %.2f ms, B - A %+.2f ms (%+.2f to %+.2f, N = %d): %s",
                scenario["name"], one["metric"], one["mean_a"] * 1e3, one["mean_b"] * 1e3,
                one["difference"] * 1e3, one["ci95_low"] * 1e3, one["ci95_high"] * 1e3,
                one["num_pairs"], one["verdict"],
            )  # fmt: skip
