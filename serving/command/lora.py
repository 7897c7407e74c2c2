"""The flags for a LoRA adapter that is served next to its base model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from serving.command.flags import Flag
from serving.config import ServingConfig
from tuneline.models.adapter_config import (
    ADAPTER_CONFIG,
    read_adapter_config,
    require_servable,
    served_rank,
)


def lora_flags(
    config: ServingConfig, adapter: Path | None, adapter_at: str, served_names: Sequence[str]
) -> list[Flag]:
    """Return the flags for the adapter of the run, and for adapters that are added later.

    Args:
        adapter: The adapter's folder as this process sees it; None if the server has none yet.
        adapter_at: The adapter's folder as the server sees it.

    Raises:
        ArtifactError: vLLM cannot serve the adapter next to its base.
    """
    rank, loras, flags = 0, 0, []
    if adapter is not None:
        adapter_config = read_adapter_config(adapter)
        require_servable(adapter_config, adapter / ADAPTER_CONFIG)
        rank, reason = served_rank(adapter_config), "adapter_config.json: its ranks"
        loras, why = len(served_names), "vLLM counts each name as an adapter"
        modules = [json.dumps({"name": name, "path": adapter_at}) for name in served_names]
        flags = [Flag(("--lora-modules", *modules), "the run's name; the adapter's digest")]
        flags += _companion_flags(adapter, adapter_at)
    later = config.adapters
    if later is not None:
        if later.max_lora_rank > rank:
            rank, reason = later.max_lora_rank, "serving.adapters.max_lora_rank"
        loras, why = loras + later.max_adapters, "serving.adapters.max_adapters"
    counts = [Flag(("--max-loras", str(loras)), why)]
    if later is not None:
        # The version before each name, and the version that is being proven.
        cached = str(loras + later.max_adapters + 1)
        counts.append(Flag(("--max-cpu-loras", cached), "earlier versions stay loaded"))
    mode = "serving.mode is adapter" if adapter is not None else "serving.adapters"
    return [
        Flag(("--enable-lora",), mode),
        Flag(("--max-lora-rank", str(rank)), reason),
        # With room for fewer, vLLM would swap them in and out.
        *counts,
        *flags,
    ]


def _companion_flags(adapter: Path, adapter_at: str) -> list[Flag]:
    """Return the flags for tokenizer, chat template and stop tokens of the training."""
    reason = "the adapter's folder has its own"
    flags = []
    if (adapter / "tokenizer_config.json").is_file():
        flags.append(Flag(("--tokenizer", adapter_at), reason))
    if (adapter / "generation_config.json").is_file():
        flags.append(Flag(("--generation-config", adapter_at), reason))
    return flags
