"""Checks of a run before anything expensive runs."""

from __future__ import annotations

from tuneline.core.digests import short_digest
from tuneline.pipeline.inputs import workload_inputs
from tuneline.pipeline.run_config import Run


def check_run(run: Run) -> dict[str, str]:
    """Validate everything about a run that needs no training step.

    Returns:
        What was looked at, and what was found, in order.

    Raises:
        TunelineError: The first part that does not hold, with all its problems.
    """
    from export import read_base
    from training.data.rows import read_rows
    from training.model import quiet_libraries
    from training.rendering.chat import render_rows
    from tuneline.models.chat import require_chat_template
    from tuneline.models.source import resolve_model
    from tuneline.models.stop_tokens import served_stop_ids
    from tuneline.models.tokenizer import load_tokenizer

    config = run.config
    found = {"configuration": f"{run.path} is valid"}
    base = resolve_model(
        config.base_model, relative_to=run.path.parent, revision=config.base_revision
    )
    found["base model"] = f"{base.name} ({short_digest(base.digest)})"
    weights = read_base(base.path)
    found["weights"] = f"{len(weights.tensors):,} tensors in {len(weights.shards):,} files"
    quiet_libraries()
    tokenizer = load_tokenizer(base.path)
    require_chat_template(tokenizer, base.name)
    stop_ids = served_stop_ids(base.path, tokenizer, config.training.eos_token)
    longest = 0
    last: set[str] = set()
    for name in filter(None, (config.data.path, config.data.heldout_path)):
        rows = read_rows(run.resolve(name), system_prompt=config.data.system_prompt)
        rendered = render_rows(
            tokenizer,
            rows,
            stop_ids=stop_ids,
            max_length=config.training.max_length,
            file=str(name),
        )
        longest = max(longest, *(len(row.input_ids) for row in rendered))
        last |= {tokenizer.decode(row.input_ids[-1]) for row in rendered}
        found[f"data {name}"] = f"{len(rows):,} rows"
    found["chat template"] = "every prompt is a prefix of its row"
    found["stop tokens"] = f"every answer ends with {' or '.join(sorted(last))}"
    found["longest row"] = f"{longest:,} of at most {config.training.max_length:,} tokens"
    if workload_inputs(run):
        found["load test"] = f"{config.loadtest.workload.path} is there"
    return found
