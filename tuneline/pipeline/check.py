"""Checks of a run before anything expensive runs."""

from __future__ import annotations

import functools

from tuneline.core.digests import short_digest
from tuneline.core.environment import hardware_facts
from tuneline.core.errors import ConfigError
from tuneline.pipeline.lengths import require_rows_fit
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
    from serving import check_flags, require_memory
    from training import check_data, check_targets
    from tuneline.models.load import check_model
    from tuneline.models.source import resolve_model

    config = run.config
    require_served_weights(run)
    found = {"configuration": f"{run.path} is valid"}
    base = resolve_model(
        config.base_model, relative_to=run.path.parent, revision=config.base_revision
    )
    found["base model"] = f"{base.name} ({short_digest(base.digest)})"
    weights = read_base(base.path)
    found["weights"] = f"{len(weights.tensors):,} tensors in {len(weights.shards):,} files"
    check_model(base.path, f"base model {base.name}")
    found |= check_targets(config.training, base)
    found |= check_data(
        config.training, base, config.data, run.path.parent,
        functools.partial(require_rows_fit, config, base),
    )  # fmt: skip
    if config.training.method.answers_prompts:
        found["vLLM flags"] = check_flags(config.serving)
        reduced = config.export.merge.quantize is not None and config.serving.mode == "merged"
        found["server memory"] = require_memory(
            config.serving, base.path, knows_weights=not reduced
        )
    if workload_inputs(run):
        found["load test"] = f"{config.loadtest.workload.path} is there"
    return found


def require_served_weights(run: Run) -> None:
    """Check that vLLM can compute with the merged weights on this machine.

    Raises:
        ConfigError: INT8 weights are served in float32 on a CPU.
    """
    export, serving = run.config.export, run.config.serving
    is_int8 = export.merge.quantize == "int8" and serving.mode == "merged"
    if is_int8 and serving.dtype == "float32" and not hardware_facts()["gpus"]:
        raise ConfigError(
            f"{run.path}: serving.dtype: float32 with export.merge.quantize: int8: vLLM's INT8 "
            "product on a CPU takes bfloat16 or float16, and fails at the first prompt",
            hint="Try: --set serving.dtype=bfloat16, or --set export.merge.quantize=null",
        )
