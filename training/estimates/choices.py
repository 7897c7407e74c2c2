"""The values that `auto` has for a run on this machine, each with its reason."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass

from training.config import TrainingConfig
from training.estimates.memory import Batch, estimate_training
from tuneline.core.environment import gpu_names, multiplies_bfloat16
from tuneline.models.network import Network

SHARE_WITHOUT_CHECKPOINTING = 0.5
"""Share of the free memory that a step may take before activations are computed again."""


@dataclass(frozen=True)
class Choice:
    """A value that replaces `auto`."""

    key: str
    value: object
    reason: str


def choose_checkpointing(
    config: TrainingConfig, network: Network, batch: Batch, item_bytes: int, free_bytes: int
) -> Choice:
    """Return whether activations are computed again in the backward pass."""
    key = "gradient_checkpointing"
    if config.gradient_checkpointing != "auto":
        return Choice(key, config.gradient_checkpointing, "run.yaml sets it")
    without = config.model_copy(update={key: False})
    needed = estimate_training(without, network, batch, item_bytes).total
    above = needed > SHARE_WITHOUT_CHECKPOINTING * free_bytes
    reason = (
        f"a step without it takes {needed / 2**30:.2f} GiB, "
        f"{'above' if above else 'below'} half of the {free_bytes / 2**30:.1f} GiB that are free"
    )
    return Choice(key, above, reason)


def choose_format(config: TrainingConfig) -> Choice:
    """Return the number format of the base model's weights, as far as the driver tells it."""
    if config.dtype != "auto":
        return Choice("dtype", config.dtype, "run.yaml sets it")
    if gpu_names():
        return Choice("dtype", "bfloat16", "a GPU is here; float32 if it does not compute in it")
    if multiplies_bfloat16():
        reason = "no GPU is here; this processor computes in bfloat16 too, in half of the memory"
        return Choice("dtype", "float32", reason)
    return Choice("dtype", "float32", "no GPU is here")


def choose_attention(config: TrainingConfig, dtype: str) -> Choice:
    """Return the implementation of attention."""
    key = "attn_implementation"
    if config.attn_implementation != "auto":
        return Choice(key, config.attn_implementation, "run.yaml sets it")
    if not gpu_names():
        return Choice(key, "sdpa", "no GPU is here")
    if dtype != "bfloat16":
        return Choice(key, "sdpa", "flash_attention_2 does not compute in float32")
    if importlib.util.find_spec("flash_attn") is None:
        return Choice(key, "sdpa", "the package flash-attn is not installed")
    return Choice(key, "flash_attention_2", "the package flash-attn is installed")


def choose_all(
    config: TrainingConfig, network: Network, batch: Batch, free_bytes: int
) -> Sequence[Choice]:
    """Return the choices of a run, in the order in which they depend on one another."""
    dtype = choose_format(config)
    return (
        dtype,
        choose_attention(config, str(dtype.value)),
        choose_checkpointing(config, network, batch, item_bytes(str(dtype.value)), free_bytes),
    )


def share_of_free(config: TrainingConfig, free_bytes: int) -> int:
    """Return the memory that one process may take: those of a host share it, but not a GPU."""
    if config.launch is None or gpu_names():
        return free_bytes
    return free_bytes // config.launch.processes


def item_bytes(dtype: str) -> int:
    """Return the bytes of a number."""
    return 2 if dtype == "bfloat16" else 4
