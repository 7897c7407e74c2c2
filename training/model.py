"""Load base models and trained models on this machine's device."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open

from tuneline.core.artifact import Artifact
from tuneline.core.digests import short_digest
from tuneline.core.errors import ArtifactError, ConfigError
from tuneline.models.load import damage_named, load_network
from tuneline.models.source import ModelSource

TaskType = Literal["CAUSAL_LM", "SEQ_CLS"]
SCORE_WEIGHT = "score.weight"
"""The tensor of a reward model's linear layer."""


def quiet_libraries() -> None:
    """Silence the libraries' progress bars and logs; the step shows its own progress."""
    import datasets
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    for name in ("peft", "trl", "accelerate"):
        logging.getLogger(name).setLevel(logging.ERROR)


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def resolve_dtype(name: Literal["auto", "float32", "bfloat16"]) -> torch.dtype:
    """Return the type of a name; `auto` is bfloat16 on a GPU that computes in it, else float32."""
    if name == "auto":
        fits = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if fits else torch.float32
    return torch.bfloat16 if name == "bfloat16" else torch.float32


def load_base(
    base: ModelSource,
    dtype: torch.dtype,
    attention: str = "sdpa",
    *,
    task_type: TaskType = "CAUSAL_LM",
) -> Any:
    """Return a model with its weights in `dtype`, on the GPU if there is one.

    Args:
        attention: The implementation by transformers' name. A network that has no `sdpa` is loaded
            with its own.
        task_type: `SEQ_CLS` gives the model one score in place of the next token, from a new linear
            layer with random weights.

    Raises:
        ArtifactError: The folder cannot be loaded, or its files lack weights.
    """
    # transformers takes sdpa by itself, and eager attention where a network has no sdpa.
    options: dict[str, Any] = {} if attention == "sdpa" else {"attn_implementation": attention}
    if task_type != "CAUSAL_LM":
        options["load"] = _load_scorer
    model = load_network(base.path, dtype, what=f"base model {base.name}", **options)
    return model.to(device())


def _load_scorer(folder: Path, **options: Any) -> tuple[Any, Any]:
    """Load a folder as a model with one score; the folder of a causal model has no such layer."""
    from transformers import AutoModelForSequenceClassification

    network, info = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=1, **options
    )
    info["missing_keys"] = [name for name in info["missing_keys"] if name != SCORE_WEIGHT]
    return network, info


def load_tuned(base: ModelSource, adapter: Artifact | Path, dtype: torch.dtype) -> Any:
    """Return base and adapter as a PEFT model, not merged; the adapter's weights stay float32.

    Args:
        adapter: An artifact, or any PEFT folder, whose base model is not known.

    Raises:
        ArtifactError: The adapter was trained on another base, or does not fit this one.
    """
    from peft import PeftModel, get_peft_model_state_dict

    folder = adapter.path if isinstance(adapter, Artifact) else adapter
    inputs = adapter.manifest.inputs if isinstance(adapter, Artifact) else []
    trained_on = [entry.digest for entry in inputs if entry.role == "base"]
    if trained_on and trained_on[0] != base.digest:
        raise ArtifactError(
            f"{folder}: was trained on a base model with digest "
            f"{short_digest(trained_on[0])}; {base.name} has {short_digest(base.digest)}",
            hint="Give the base model that the adapter was trained on.",
        )
    model = load_base(base, dtype)
    with damage_named(f"{folder}: the adapter does not fit base model {base.name}"):
        tuned = PeftModel.from_pretrained(model, folder, is_trainable=False)
        with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
            given = set(file.keys())
    # peft only warns about tensors that it does not use or that keep their random start.
    different = sorted(given ^ set(get_peft_model_state_dict(tuned, save_embedding_layers=False)))
    if different:
        raise ArtifactError(
            f"{folder}: the adapter does not fit base model {base.name}: {len(different)} "
            f"tensors have no counterpart, the first {different[0]}"
        )
    return tuned.eval()


def require_one_gpu() -> None:
    """Check that one GPU is visible at most; TRL refuses several in one process.

    Raises:
        ConfigError: Several GPUs are visible.
    """
    if torch.cuda.device_count() > 1:
        raise ConfigError(
            f"{torch.cuda.device_count()} GPUs are visible; training uses one",
            hint="Try: CUDA_VISIBLE_DEVICES=0 tuneline …",
        )
