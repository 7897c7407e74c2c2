"""Checks of a run before anything expensive runs."""

from __future__ import annotations

from tuneline.core.digests import short_digest
from tuneline.pipeline.run_config import Run
from tuneline.pipeline.stage_inputs import workload_inputs


def check_run(run: Run) -> dict[str, str]:
    """Validate everything about a run that needs no training step.

    Returns:
        What was looked at, and what was found, in order.

    Raises:
        TunelineError: The first part that does not hold, with all its problems.
    """
    from export import read_base
    from training import check_data
    from tuneline.models.load import check_model
    from tuneline.models.source import resolve_model

    config = run.config
    found = {"configuration": f"{run.path} is valid"}
    base = resolve_model(
        config.base_model, relative_to=run.path.parent, revision=config.base_revision
    )
    found["base model"] = f"{base.name} ({short_digest(base.digest)})"
    weights = read_base(base.path)
    found["weights"] = f"{len(weights.tensors):,} tensors in {len(weights.shards):,} files"
    check_model(base.path, f"base model {base.name}")
    found |= check_data(config.training, base, config.data, run.path.parent)
    if workload_inputs(run):
        found["load test"] = f"{config.loadtest.workload.path} is there"
    return found
