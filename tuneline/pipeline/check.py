"""Checks of a run before anything expensive runs."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tuneline.core.artifact import Artifact
from tuneline.core.digests import short_digest
from tuneline.core.errors import ArtifactError
from tuneline.pipeline.artifact_summary import summarize
from tuneline.pipeline.lengths import require_rows_fit
from tuneline.pipeline.load_route import require_route
from tuneline.pipeline.plan import plan, select_stages
from tuneline.pipeline.run_config import Run, resolve_trained, training_config
from tuneline.pipeline.search_checks import (
    require_figure,
    require_space,
    search_line,
    untrainable,
)
from tuneline.pipeline.served_stages import evaluation_config
from tuneline.pipeline.server import require_served_weights
from tuneline.pipeline.stage import DATASET
from tuneline.pipeline.stage_inputs import workload_inputs
from tuneline.pipeline.targets import require_targets
from tuneline.pipeline.up import lock_run, make_dataset, require_dataset

if TYPE_CHECKING:
    from training import DataFinding
    from tuneline.models.source import ModelSource

HELD_OUT = "held out"
"""The reason of the training rows that the split moves to the other side; nothing is lost."""


@dataclass(frozen=True)
class CheckedRun:
    """The parts of a run that were checked.

    Attributes:
        found: Each part and its state, in order.
        findings: The data checks with findings.
        warnings: The parts that could not be checked now, each with the reason, the values of a
            search that cannot be trained, and a training that needs more memory than is free.
    """

    found: dict[str, str]
    findings: list[DataFinding]
    warnings: list[str] = field(default_factory=list)


def check_run(run: Run) -> CheckedRun:
    """Validate everything about a run that needs no training step.

    The data checks run last, since they take longest. They are the first stage of the line: its
    artifact stays, so `up` does not repeat them.

    Raises:
        TunelineError: The first part that cannot be used, with all its problems.
    """
    from export import read_base
    from serving import check_flags, require_memory
    from training import check_data, require_metrics
    from tuneline.models.load import check_model

    config = run.config
    require_served_weights(run)
    require_route(run)
    require_metrics(evaluation_config(run))
    found = {"configuration": f"{run.path} is valid"}
    base = resolve_trained(run)
    found["base model"] = f"{base.name} ({short_digest(base.digest)})"
    if config.search.space:
        require_space(run, base)
    weights = read_base(base.path)
    found["weights"] = f"{len(weights.tensors):,} tensors in {len(weights.shards):,} files"
    check_model(base.path, f"base model {base.name}")
    is_served = config.training.method.answers_prompts or config.serving.pools
    longest = 0

    def fits(length: int) -> dict[str, str]:
        nonlocal longest
        longest = length
        return require_rows_fit(config, base, length)

    # vLLM's parser is another process, which takes seconds to start: as long as torch does here.
    with ThreadPoolExecutor(1) as pool:
        flags = pool.submit(check_flags, config.serving) if is_served else None
        found |= require_targets(config, base)
        found |= check_data(config.training, base, config.data, run.path.parent, fits)
    if flags is not None:
        found["vLLM flags"] = flags.result()
        reduced = config.export.merge.quantize is not None and config.serving.mode == "merged"
        found["server memory"] = require_memory(
            config.serving, base.path, knows_weights=not reduced
        )
    if workload_inputs(run):
        found["load test"] = f"{config.loadtest.workload.path} is there"
    return _with_data_checks(run, found, base, longest)


def _with_data_checks(
    run: Run, found: dict[str, str], base: ModelSource, longest: int
) -> CheckedRun:
    """Make the dataset unless it is current; add its counts, findings, and what batches share.

    A warning replaces them if the dataset is not current and the run's folder is locked or cannot
    be written.
    """
    from training import data_findings

    with ExitStack() as stack:
        if any(entry.state != "current" for entry in plan(run, (DATASET,))):
            try:
                stack.enter_context(lock_run(run))
            except ArtifactError as error:  # the other parts of the check need no lock
                return CheckedRun(found, [], [f"data checks: did not run: {error.message}"])
        dataset = make_dataset(run)
    warnings: list[str] = []
    if run.config.search.space:
        require_figure(run, dataset)
        found = {**found, "search": search_line(run)}
        warnings = untrainable(run, base, longest)
    require_dataset(run, select_stages(run, ()), dataset)
    reasons = dataset.manifest.metrics["dropped"].items()
    dropped = ", ".join(f"{count:,} {reason}" for reason, count in reasons if reason != HELD_OUT)
    counts = summarize(dataset) + (f"; dropped: {dropped}" if dropped else "")
    found = {**found, "data checks": counts}
    memory, tight = _training_memory(run, dataset, base)
    return CheckedRun(found | memory, data_findings(dataset), warnings + tight)


def _training_memory(
    run: Run, dataset: Artifact, base: ModelSource
) -> tuple[dict[str, str], list[str]]:
    """Return what batches share and the memory that the training takes, and a warning if too much.

    Only training itself decides that it cannot go on: an estimate may be wrong.
    """
    from training import estimate_memory, estimate_sharing, training_line

    training = training_config(run)
    sharing = estimate_sharing(training, dataset, base)
    found = {} if sharing is None else {"shared starts": str(sharing)}
    try:
        memory = estimate_memory(
            training, base.path, serving_dtype=run.config.serving.dtype, num_served_tokens=None,
            sharing=sharing,
        )  # fmt: skip
    except ArtifactError as error:
        return found | {"training memory": f"not known: {error.message}"}, []
    tight = [] if memory["fits"] else [f"training does not fit; try: {memory['change']}"]
    return found | {"training memory": training_line(memory)}, tight
