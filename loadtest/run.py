"""One load test: measure every scenario of the configuration, and write the report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from loadtest.client.headers import with_headers
from loadtest.client.processes import SpillTo
from loadtest.client.records import records_path
from loadtest.client.server_check import Served, probe, unlisted
from loadtest.client.spill import SUFFIX
from loadtest.config import LoadTestConfig
from loadtest.measure import measure_scenario
from loadtest.report.build import Result, load_report, scenario_report, summary_metrics
from loadtest.report.files import sample_path
from loadtest.report.plots import plot_latency_cdf, plot_latency_over_time
from loadtest.report.schema import REPORT_FILE, LoadReport
from loadtest.report.terminal import scenario_lines
from loadtest.workload.checks import Checks, read_checks
from tuneline.core.artifact import Artifact, Input, new_artifact, open_artifact
from tuneline.core.digests import short_digest
from tuneline.core.documents import write_document
from tuneline.core.endpoint import Endpoint
from tuneline.core.errors import ConfigError, ServerError
from tuneline.core.messages import ChatPrompt
from tuneline.core.progress import logger
from tuneline.core.tolerances import ARITHMETIC_TOLERANCES, Tolerances


def run_loadtest(
    config: LoadTestConfig,
    endpoint: Endpoint,
    out: Path,
    *,
    prompts: Sequence[ChatPrompt],
    inputs: Sequence[Input] = (),
    reference: Artifact | None = None,
    tolerances: Tolerances | None = None,
) -> Artifact:
    """Measure an endpoint and write an artifact of kind `load-report`.

    The report and the manifest's metrics hold the verdict; a verdict raises nothing here.

    Args:
        config: Scenarios, workload, objectives and client options.
        endpoint: Where to send.
        out: Where the artifact goes.
        prompts: Chat messages of each prompt; requests take them in an order drawn from the seed.
        inputs: The artifacts that the endpoint is known to serve.
        reference: The right answers for `config.answers`, in place of the folder that it names.
        tolerances: How much an answer may differ, in place of those of `config.answers.dtype`.

    Raises:
        ServerError: The endpoint does not answer as an OpenAI-compatible server that serves the
            model, or serves an artifact that is not among `inputs`.
        ConfigError: There are no prompts.
        DataError: A workload file cannot be used.
    """
    if not prompts and config.workload.source == "prompts":
        raise ConfigError("the load test has no prompts; expected at least one")
    checks = checks_of(config, reference, tolerances)
    endpoint = with_headers(config, endpoint)
    served = check_served(config, endpoint, inputs)
    resolved = config.model_dump(mode="json")
    with (
        new_artifact(out, "load-report", config=resolved, inputs=inputs) as draft,
        _kept_records(draft.dir, out.with_name(f"{out.name}.records")),
    ):
        results = []
        for number in range(len(config.scenarios)):
            result = _measure_until_valid(config, number, endpoint, prompts, checks, draft.dir)
            results.append(result)
            # At once: a later scenario may end the run.
            save_records(result, draft.dir)
            for line in scenario_lines(scenario_report(config, result)):
                logger.info("%s", line)
        report = load_report(config, endpoint, served, inputs, results)
        write_report(report, results, draft.dir)
        draft.metrics.update(summary_metrics(report))
    return open_artifact(out)


@contextmanager
def _kept_records(directory: Path, kept: Path) -> Iterator[None]:
    """Move the records to `kept` if the block raises: the directory is removed."""
    is_whole = False
    try:
        yield
        is_whole = True
    finally:
        found = (
            [] if is_whole else sorted([*directory.glob(f"*{SUFFIX}"), *directory.glob("*.npz")])
        )
        if found:
            # Another folder than an earlier run's, whose records may be of more processes.
            names = (kept, *(kept.with_name(f"{kept.name}-{n}") for n in range(2, 1000)))
            kept = next(name for name in names if not name.exists())
            kept.mkdir()
            for path in found:
                path.replace(kept / path.name)
            logger.warning("the run did not end; its records so far are in %s", kept)


def _measure_until_valid(
    config: LoadTestConfig,
    number: int,
    endpoint: Endpoint,
    prompts: Sequence[ChatPrompt],
    checks: Checks | None,
    directory: Path,
) -> Result:
    """Measure a scenario, and once more if only the client or its host was in the way.

    Their own lag voids the first try, whatever the server's latencies are. A scenario with a
    request that failed or did not end is not measured again: that could hide the failure. Nor is a
    long run: it would take its hours once more.
    """
    scenario = config.scenarios[number]
    seed = config.seed + number
    spill = SpillTo(directory, scenario.name)
    measure = partial(
        measure_scenario, config, scenario, endpoint, prompts,
        seed=seed, checks=checks, spill=spill,
    )  # fmt: skip
    first = measure()
    all_succeeded = first.stats.num_failed == first.stats.num_unfinished == 0
    if first.is_spilled or not (first.judgement.is_worth_repeating and all_succeeded):
        return first
    reason = first.judgement.problems[0]
    logger.warning("%s: INVALID (%s); measuring it once more", scenario.name, reason)
    result = measure()
    said = f"measured twice: the first measurement was INVALID ({reason})"
    if config.workload.source in ("prompts", "sharegpt") and not config.workload.unique_prompts:
        said += "; the server's prefix cache may hold that run's prompts"
    judgement = replace(result.judgement, warnings=[*result.judgement.warnings, said])
    return replace(result, judgement=judgement)


def checks_of(
    config: LoadTestConfig, reference: Artifact | None, tolerances: Tolerances | None
) -> Checks | None:
    """Return the reference's prompts and answers; None if the configuration asks for none.

    Raises:
        ConfigError: There is no reference.
        ArtifactError: The folder is not a reference.
    """
    asked = config.answers
    if asked is None:
        return None
    if reference is None:
        if asked.reference is None:
            raise ConfigError(
                "loadtest.answers.reference is missing; expected the folder of a reference",
                hint="Try: --set loadtest.answers.reference=runs/NAME/reference-KEY",
            )
        reference = open_artifact(asked.reference, kind="reference")
    limits = asked.tolerances or tolerances or ARITHMETIC_TOLERANCES[asked.dtype]
    return read_checks(reference, limits, asked.share, asked.max_length_drift)


def check_served(config: LoadTestConfig, endpoint: Endpoint, inputs: Sequence[Input]) -> Served:
    """Ask the endpoint what it serves, and check that it serves the models and the inputs.

    Raises:
        ServerError: The endpoint does not answer as an OpenAI-compatible server that serves the
            model and `workload.models`, or serves an artifact that is not among `inputs`.
    """
    served = probe(endpoint) if config.check_models else unlisted(endpoint)
    absent = sorted(set(config.workload.models or ()) - set(served.names))
    if absent and served.is_listed:
        raise ServerError(
            f"{endpoint.url}: does not serve {', '.join(absent)} of workload.models; it serves "
            f"{', '.join(served.names)}"
        )
    digests = {
        short_digest(entry.digest): entry for entry in inputs if entry.kind in ("model", "adapter")
    }
    if served.short_digest and digests and served.short_digest not in digests:
        raise ServerError(
            f"{endpoint.url}: serves {served.artifact_name}; expected the artifact "
            f"{' or '.join(digests)}",
            hint="Check that another run's server does not use that port.",
        )
    return served


def save_records(result: Result, directory: Path) -> None:
    """Write the raw records of a scenario, or the sample of a long run's."""
    path = (sample_path if result.is_spilled else records_path)(directory, result.scenario.name)
    result.records.save(path)


def write_report(report: LoadReport, results: Sequence[Result], directory: Path) -> None:
    """Write `report.json` and the plots."""
    write_document(report, directory / REPORT_FILE)
    of_tokens = all(result.of_tokens for result in results)
    plot_latency_cdf(results, directory, of_tokens=of_tokens)
    plot_latency_over_time(results, directory, of_tokens=of_tokens)
