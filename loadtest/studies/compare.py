"""Is B slower than A? Paired differences of runs that asked the same at the same times."""

from __future__ import annotations

import itertools
import json
import math
import secrets
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from loadtest.client.headers import with_headers
from loadtest.client.records import records_path
from loadtest.config import LoadTestConfig, Scenario
from loadtest.measure import measure_scenario
from loadtest.report.build import Result, endpoint_report, scenario_report
from loadtest.report.files import load_requests, report_of
from loadtest.report.schema import REPORT_FILE, SCHEMA_VERSION, EndpointReport, LoadReport
from loadtest.run import check_served
from loadtest.studies.differences import answer_tokens, differences, judge_comparison
from loadtest.studies.schema import SIDES, ComparedScenario, ComparisonReport, Side
from tuneline.core.artifact import Artifact, Draft, Input, new_artifact, open_artifact
from tuneline.core.digests import short_digest
from tuneline.core.documents import write_document
from tuneline.core.endpoint import Endpoint
from tuneline.core.environment import environment_facts
from tuneline.core.errors import ArtifactError, ConfigError
from tuneline.core.messages import ChatPrompt
from tuneline.core.progress import logger

Open = Callable[[], AbstractContextManager[Endpoint]]

DEFAULT_MARGIN = 0.05
DEFAULT_ROUNDS = 4


def compare_endpoints(
    config: LoadTestConfig,
    endpoint_a: Endpoint,
    endpoint_b: Endpoint,
    out: Path,
    *,
    prompts: Sequence[ChatPrompt],
    num_rounds: int = DEFAULT_ROUNDS,
    margin: float = DEFAULT_MARGIN,
) -> Artifact:
    """Run each scenario on both endpoints in turns, A B B A ..., and compare request by request.

    Both answer the same prompts at the same times (common random numbers), round by round, and a
    drift of the machine affects both alike. Writes an artifact of kind `load-comparison`: FAIL
    if B is slower by more than `margin`, INCONCLUSIVE if that cannot be said, INVALID if a
    run is.

    Args:
        config: Scenarios, workload and client options.
        endpoint_a: The baseline.
        endpoint_b: The endpoint that is compared with it.
        out: Where the artifact goes.
        prompts: Chat messages of each prompt.
        num_rounds: Runs of each endpoint.
        margin: The share of A's mean by which B may be slower and still count as no slower.

    Raises:
        ConfigError: There is less than one round, or the margin is not a share.
        ServerError: An endpoint does not answer as it should (see `run_loadtest`).
    """
    for endpoint in (endpoint_a, endpoint_b):
        check_served(config, with_headers(config, endpoint), ())
    return compare_servers(
        config, lambda: nullcontext(endpoint_a), lambda: nullcontext(endpoint_b), out,
        prompts=prompts, num_rounds=num_rounds, margin=margin, inputs=(),
    )  # fmt: skip


def compare_servers(
    config: LoadTestConfig,
    open_a: Open,
    open_b: Open,
    out: Path,
    *,
    prompts: Sequence[ChatPrompt],
    num_rounds: int,
    inputs: Sequence[Input],
    margin: float = DEFAULT_MARGIN,
) -> Artifact:
    """Compare two servers that do not run at once, because they share a machine.

    Goes like `compare_endpoints`. Each server is started for its turn, and two turns of one server
    that follow each other share the start: two rounds take three starts.

    Args:
        open_a: Serves the baseline as long as the block lasts.
        open_b: Serves the server that is compared with it.
        inputs: The artifacts that the servers are known to serve.
    """
    if num_rounds < 1:
        raise ConfigError(f"{num_rounds} rounds: expected at least 1")
    _check_margin(margin)
    opens: dict[Side, Open] = {"a": open_a, "b": open_b}
    resolved = {
        **config.model_dump(mode="json"),
        "compare": {"num_rounds": num_rounds, "margin": margin},
    }
    with new_artifact(out, "load-comparison", config=resolved, inputs=inputs) as draft:
        found = []
        described: dict[Side, EndpointReport] = {}
        for number, scenario in enumerate(config.scenarios):
            seed = config.seed + 100 * number
            runs = _in_turns(
                config, scenario, opens, prompts, num_rounds, seed, draft.dir, described
            )
            pairs = [(a.records, b.records) for a, b in zip(runs["a"], runs["b"], strict=True)]
            found.append(
                ComparedScenario(
                    name=scenario.name,
                    differences=differences(pairs, margin),
                    answer_tokens=answer_tokens(pairs),
                    runs={
                        side: [scenario_report(config, result) for result in results]
                        for side, results in runs.items()
                    },
                )
            )
        _finish(draft, found, described, margin, interleaved=True)
    return open_artifact(out)


def _in_turns(
    config: LoadTestConfig,
    scenario: Scenario,
    opens: dict[Side, Open],
    prompts: Sequence[ChatPrompt],
    num_rounds: int,
    seed: int,
    directory: Path,
    described: dict[Side, EndpointReport],
) -> dict[Side, list[Result]]:
    """Run one scenario on both sides, A B B A ..., and save the records of each run; fill in
    `described`."""
    runs: dict[Side, list[Result]] = {"a": [], "b": []}
    # The same for both sides, and another than any earlier run's: a prefix cache may hold what
    # that run sent.
    permutation_seeds = [secrets.randbits(64) for _ in range(num_rounds)]
    turns = [side for number in range(num_rounds) for side in SIDES[:: (-1) ** number]]
    for side, group in itertools.groupby(turns):
        with opens[side]() as opened:
            endpoint = with_headers(config, opened)
            if side not in described:
                described[side] = endpoint_report(endpoint, check_served(config, endpoint, ()))
            for _ in group:
                round_number = len(runs[side])
                result = measure_scenario(
                    config,
                    scenario,
                    endpoint,
                    prompts,
                    seed=seed + round_number,
                    permutation_seed=permutation_seeds[round_number],
                )
                runs[side].append(result)
                stem = f"{scenario.name}-{side}{round_number}"
                result.records.save(records_path(directory, stem))
    return runs


def compare_reports(
    path_a: Path, path_b: Path, out: Path, *, margin: float = DEFAULT_MARGIN
) -> Artifact:
    """Compare two load reports request by request, without running anything.

    The reports were not measured in turns, so a change of the machine between them counts as a
    difference; `interleaved` in the document is false.

    Raises:
        ArtifactError: A directory is not a load report that can be read, or the two did not ask the
            same at the same times; every difference is named.
        ConfigError: The margin is not a share.
    """
    _check_margin(margin)
    a, b = (open_artifact(path, kind="load-report") for path in (path_a, path_b))
    report_a, report_b = report_of(a), report_of(b)
    problems = _incomparable(report_a, report_b, path_a, path_b)
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
        for scenario in report_a.scenarios:
            name = scenario.name
            pairs = [(load_requests(a.path, name), load_requests(b.path, name))]
            found.append(
                ComparedScenario(
                    name=name,
                    differences=differences(pairs, margin),
                    answer_tokens=answer_tokens(pairs),
                    runs={"a": [scenario], "b": [report_b.scenario(name)]},
                )
            )
        endpoints: dict[Side, EndpointReport] = {"a": report_a.endpoint, "b": report_b.endpoint}
        _finish(draft, found, endpoints, margin, interleaved=False)
    return open_artifact(out)


def _incomparable(a: LoadReport, b: LoadReport, path_a: Path, path_b: Path) -> list[str]:
    """Return why two reports are not of the same requests at the same times."""
    plans_a, plans_b = (
        {scenario.name: scenario.plan_digest for scenario in report.scenarios} for report in (a, b)
    )
    problems = [
        f"scenario {name}: only in {path_a if name in plans_a else path_b}"
        for name in sorted(plans_a.keys() ^ plans_b.keys())
    ]
    problems += [
        f"scenario {name}: other requests or other times (plan {short_digest(plan)} and "
        f"{short_digest(plans_b[name])})"
        for name, plan in plans_a.items()
        if name in plans_b and plan != plans_b[name]
    ]
    workload_a, workload_b = (report.workload.model_dump(mode="json") for report in (a, b))
    return problems + [
        f"{key} differs: {json.dumps(workload_a[key])} and {json.dumps(workload_b[key])}"
        for key in sorted(workload_a)
        if workload_a[key] != workload_b[key]
    ]


def _check_margin(margin: float) -> None:
    """Raise ConfigError unless the margin is a share."""
    if not 0 <= margin < math.inf:
        raise ConfigError(f"margin {margin:g}: expected a share, such as {DEFAULT_MARGIN:g}")


def _finish(
    draft: Draft,
    scenarios: list[ComparedScenario],
    endpoints: dict[Side, EndpointReport],
    margin: float,
    *,
    interleaved: bool,
) -> None:
    """Judge the comparison and write its report."""
    verdict, problems = judge_comparison(scenarios, margin)
    report = ComparisonReport(
        schema_version=SCHEMA_VERSION,
        verdict=verdict,
        problems=problems,
        margin=margin,
        interleaved=interleaved,
        endpoints=endpoints,
        scenarios=scenarios,
        environment=environment_facts(),
    )
    write_document(report, draft.dir / REPORT_FILE)
    draft.metrics.update(verdict=verdict, problems=problems)
    for scenario in scenarios:
        for one in scenario.differences:
            logger.info(
                "  %s %s: A %.2f ms, B %.2f ms, B - A %+.2f ms (%+.2f to %+.2f, N = %d): %s",
                scenario.name, one.metric, one.mean_a * 1e3, one.mean_b * 1e3,
                one.difference * 1e3, one.ci95_low * 1e3, one.ci95_high * 1e3,
                one.num_pairs, one.verdict,
            )  # fmt: skip
