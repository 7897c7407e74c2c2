"""How many tokens a model takes, prompt and answer together, as vLLM derives it.

A sliding window shortens what a layer sees and not the context: vLLM and transformers take longer
sequences than the window.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tuneline.core.errors import DataError
from tuneline.models.folder import TOKENIZER_CONFIG, read_json
from tuneline.models.source import ModelSource

LENGTH_KEYS = (
    "max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "model_max_length",
    "max_target_positions", "max_sequence_length", "max_seq_length", "seq_len",
)  # fmt: skip
"""The keys of config.json that vLLM 0.32 reads; the least value counts."""

SCALED_ALREADY = ("su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling")
"""Kinds of rope scaling whose factor is part of the length in config.json already."""

UNKNOWN_LENGTH = 2048
"""The length that vLLM takes for a config.json without any of the keys."""


def context_length(folder: Path) -> int | None:
    """Return the longest sequence that a model takes; None if its files name no limit.

    Raises:
        ArtifactError: transformers cannot read config.json.
    """
    return _length(_text_config(folder), folder)


def require_context(base: ModelSource, longest_row: int, num_sampled: int = 0) -> int | None:
    """Return the longest sequence that the base model takes; None without a limit.

    Args:
        num_sampled: Tokens that the model itself may add to a row, as in GRPO.

    Raises:
        DataError: The longest row, prompt and answer together, is longer.
    """
    context = context_length(base.path)
    if context is not None and longest_row <= context < longest_row + num_sampled:
        raise DataError(
            f"the longest prompt has {longest_row:,} tokens, and an answer up to {num_sampled:,}; "
            f"the base model {base.name} takes {context:,}",
            hint="Set a smaller training.method.max_completion_length, or remove long prompts; or "
            "choose a base model with a longer context.",
        )
    if context is not None and longest_row > context:
        raise DataError(
            f"the longest row has {longest_row:,} tokens; the base model {base.name} takes "
            f"{context:,}",
            hint=f"Set training.max_length: {context}, which names the longest row, and remove "
            "long rows; or choose a base model with a longer context.",
        )
    return context


def served_length(folder: Path, max_model_len: int | None) -> int:
    """Return the longest sequence that vLLM serves with an option `--max-model-len`.

    Raises:
        ArtifactError: transformers cannot read config.json.
    """
    if max_model_len is not None:
        return max_model_len
    config = _text_config(folder)
    derived = _length(config, folder)
    if any(rope.get("rope_type") == "longrope" for rope in _ropes(config)):
        return int(getattr(config, "original_max_position_embeddings", derived or UNKNOWN_LENGTH))
    return UNKNOWN_LENGTH if derived is None else derived


def _length(config: Any, folder: Path) -> int | None:
    lengths = [getattr(config, key, None) for key in LENGTH_KEYS]
    found = [length for length in lengths if length is not None]
    if own := getattr(config, "model_max_length", None):
        found = [own]
    if (folder / TOKENIZER_CONFIG).is_file():
        limit = read_json(folder / TOKENIZER_CONFIG).get("model_max_length")
        # transformers writes 10**30 for a tokenizer without a limit.
        found += [limit] if isinstance(limit, int | float) and limit < 1e18 else []
    if not found:
        return None
    factor = 1.0
    if "gemma3" not in str(config.model_type):
        for rope in _ropes(config):
            if rope.get("rope_type") not in SCALED_ALREADY:
                factor = rope.get("factor") or factor
    return int(min(found) * factor)


def _ropes(config: Any) -> list[dict[str, Any]]:
    """Return the rope parameters, one entry per type of layer if those differ."""
    ropes = getattr(config, "rope_parameters", None)
    if not isinstance(ropes, dict) or not ropes:
        return []
    nested = [entry for entry in ropes.values() if isinstance(entry, dict)]
    return nested or [ropes]


def _text_config(folder: Path) -> Any:
    from transformers import AutoConfig

    from tuneline.models.load import damage_named

    with damage_named(f"{folder}: transformers cannot read its config.json"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    return config.get_text_config()
