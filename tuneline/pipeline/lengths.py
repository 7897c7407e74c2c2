"""Do the rows fit into the model's context and into the server's? Checked before any training."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from tuneline.core.artifact import Artifact
from tuneline.core.dataset import HELDOUT_FILE
from tuneline.core.errors import ConfigError, DataError
from tuneline.models.context import context_length, require_context, served_length
from tuneline.models.source import ModelSource
from tuneline.pipeline.run_config import Run, RunConfig, resolve_base


def require_max_model_len(wanted: int | None, folder: Path, of: str) -> None:
    """Check that a model takes as many tokens as `serving.max_model_len` asks for.

    Args:
        of: The model, for the message.

    Raises:
        ConfigError: It takes fewer.
    """
    if wanted is None or os.environ.get("VLLM_ALLOW_LONG_MAX_MODEL_LEN") == "1":
        return
    context = context_length(folder)
    if context is not None and wanted > context:
        raise ConfigError(
            f"serving.max_model_len is {wanted:,}; the {of} takes {context:,} tokens, and vLLM "
            "refuses to start",
            hint=f"Set serving.max_model_len: {context}, or choose a model with a longer context.",
        )


def require_served_length(config: RunConfig, base: ModelSource) -> int:
    """Return the longest sequence that the run's server takes.

    Raises:
        ConfigError: `serving.max_model_len` or the longest synthetic request of the load test is
            beyond what the model takes.
    """
    serving = config.serving
    wanted = serving.max_model_len
    require_max_model_len(wanted, base.path, f"base model {base.name}")
    served = served_length(base.path, wanted)
    workload = config.loadtest.workload
    if workload.input_tokens is not None:
        answer = workload.output_tokens or (0 if serving.pools else config.loadtest.max_tokens)
        longest = sum(
            length if isinstance(length, int) else round(length.max or length.mean)
            for length in (workload.input_tokens, answer)
        )
        if longest > served:
            raise ConfigError(
                f"loadtest.workload: a request has up to {longest:,} tokens with its answer; the "
                f"server takes {served:,}",
                hint=f"Set serving.max_model_len: {longest}, or ask for shorter requests."
                if wanted is not None
                else "Ask for shorter requests.",
            )
    return served


def require_rows_fit(config: RunConfig, base: ModelSource, longest_row: int) -> dict[str, str]:
    """Check the longest row of the data against both limits, and return what was found.

    Raises:
        ConfigError: The limits contradict each other.
        DataError: A row is longer than one of them.
    """
    served = require_served_length(config, base)
    context = require_context(base, longest_row)
    if longest_row > served:
        raise DataError(
            f"the longest row has {longest_row:,} tokens with its answer; the server takes "
            f"{served:,}",
            hint=f"Set serving.max_model_len: {longest_row} or more"
            + (f", at most {context:,}" if context is not None else "")
            + ", or remove long rows.",
        )
    limit = "no limit in config.json" if context is None else f"{context:,} tokens"
    return {"context": f"base model {limit}, server {served:,} tokens"}


def require_prompts_fit(key: str, run: Run, dataset: Artifact) -> None:
    """Check that every held-out prompt fits into the server with the answer that is asked for.

    Args:
        key: The key of run.yaml that limits the answer, such as `loadtest.max_tokens`.

    Raises:
        ConfigError: The limits of the server contradict each other.
        DataError: A prompt is too long.
    """
    from training import dataset_rows
    from tuneline.models.chat import prompt_token_ids, set_template
    from tuneline.models.template import dataset_settings
    from tuneline.models.tokenizer import load_tokenizer

    config, base = run.config, resolve_base(run, download=True)
    served = require_served_length(config, base)
    if key not in (answers := _answers(config)):
        return
    tokenizer = load_tokenizer(base.path)
    set_template(tokenizer, base.name, dataset_settings(dataset))
    rows = [row for row in dataset_rows(dataset, HELDOUT_FILE) if row.prompt]
    lengths = [len(prompt_token_ids(tokenizer, row.prompt, row.tools)) for row in rows]
    answer, count = answers[key]
    longest = max(lengths[:count], default=0)
    if longest + answer > served:
        line = rows[lengths.index(longest)].line
        raise DataError(
            f"{HELDOUT_FILE}: line {line}: the prompt has {longest:,} tokens, and {key} asks "
            f"for {answer:,} more; the server takes {served:,}",
            hint=f"Set serving.max_model_len: {longest + answer} or more, or {key}: "
            f"{max(served - longest, 1)}, or remove long rows.",
        )


def _answers(config: RunConfig) -> Mapping[str, tuple[int, int | None]]:
    """Return for each key that limits an answer its value, and how many rows are asked."""
    found: dict[str, tuple[int, int | None]] = {
        "evaluation.max_new_tokens": (config.evaluation.max_new_tokens, config.evaluation.num_rows),
        "reference.max_new_tokens": (
            config.reference.max_new_tokens, config.reference.num_prompts,
        ),
    }  # fmt: skip
    workload = config.loadtest.workload
    if workload.source == "prompts" and not config.serving.pools:
        answer = config.loadtest.max_tokens
        if workload.output_tokens is not None:
            answer = round(workload.output_tokens.max or workload.output_tokens.mean)
        found["loadtest.max_tokens"] = (answer, None)
    return found
