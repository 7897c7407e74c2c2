"""The memory of a line before anything is loaded: training, merging, serving."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from training.config import TrainingConfig
from training.config.launch import launch_line
from training.estimates.choices import choose_all, item_bytes, share_of_free
from training.estimates.memory import (
    change_that_fits,
    estimate_training,
    largest_batch,
    trained_network,
)
from training.loop.shared_rows import Sharing
from tuneline.core.free_memory import free_memory_bytes

MERGE_BYTES = 128 * 2**20
"""The merge streams rows in blocks of 2 MiB; the rest is torch and the factors of the adapter."""


def estimate_memory(
    config: TrainingConfig,
    base: Path,
    *,
    serving_dtype: str,
    num_served_tokens: int | None,
    sharing: Sharing | None = None,
) -> dict[str, Any]:
    """Return the memory of training, merging and serving, from config.json and headers only.

    Rows are taken to have `max_length` tokens: training itself knows their lengths, and estimates
    again.

    Args:
        serving_dtype: The number format of the served weights; `auto` is that of the base's files.
        num_served_tokens: Tokens whose keys and values are in memory at once; None if the server's
            own default decides.
        sharing: The tokens that rows of a batch share.

    Raises:
        ArtifactError: The base model's files name no sizes, or cannot be read.
    """
    network = trained_network(config, base)
    free_bytes = share_of_free(config, free_memory_bytes())
    batch = largest_batch(config, sharing=sharing)
    choices = choose_all(config, network, batch, free_bytes)
    chosen = config.model_copy(update={choice.key: choice.value for choice in choices})
    size = item_bytes(chosen.dtype)
    memory = estimate_training(chosen, network, batch, size)
    fits = memory.total <= free_bytes
    served = 4 if serving_dtype == "float32" else 2
    if serving_dtype == "auto":
        served = max(1, round(network.file_bytes / max(network.num_parameters, 1)))
    per_token = 2 * network.num_layers * network.key_value_size * served
    return {
        "choices": [asdict(choice) for choice in choices],
        "free_bytes": free_bytes,
        "training": {**asdict(memory), "total": memory.total},
        "sharing": None if sharing is None else {**asdict(sharing), "text": str(sharing)},
        "batch": {"num_rows": batch.num_rows, "num_tokens": batch.length},
        "processes": launch_line(config),
        "fits": fits,
        "change": None
        if fits
        else change_that_fits(chosen, network, batch, size, free_bytes)
        or "a smaller base model: no batch of it fits",
        "merging": {"total": MERGE_BYTES},
        "serving": {
            "weights": network.num_parameters * served,
            "kv_cache_per_token": per_token,
            "kv_cache": None if num_served_tokens is None else per_token * num_served_tokens,
        },
    }


def training_line(found: dict[str, Any]) -> str:
    """Return the memory of the training as a line for people."""
    memory, batch = found["training"], found["batch"]
    parts = ", ".join(
        f"{name} {_size(memory[name])}"
        for name in memory
        if name not in ("total", "runtime") and memory[name]
    )
    return (
        f"{_size(memory['total'])} ({parts}) for {batch['num_rows']} rows of "
        f"{batch['num_tokens']:,} tokens; {_size(found['free_bytes'])} are free"
    )


def estimate_lines(found: dict[str, Any]) -> list[str]:
    """Return an estimate as lines for people."""
    lines = [f"training takes {training_line(found)}"]
    if found["processes"]:
        lines.append(f"this is the memory of each process; training runs in {found['processes']}")
    if not found["fits"]:
        lines.append(f"training does not fit; try: {found['change']}")
    if found["sharing"]:
        lines.append(found["sharing"]["text"])
    lines.append(f"merging takes {_size(found['merging']['total'])}: it streams the weights")
    serving = found["serving"]
    cache = f"{_size(serving['kv_cache_per_token'])} of KV cache for each token"
    if serving["kv_cache"] is not None:
        cache = f"{_size(serving['kv_cache'])} of KV cache ({cache})"
    lines.append(f"serving takes {_size(serving['weights'])} of weights and {cache}")
    lines += [
        f"training.{choice['key']}: {str(choice['value']).lower()} ({choice['reason']})"
        for choice in found["choices"]
    ]
    return lines


def _size(num_bytes: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.2f} GiB"
