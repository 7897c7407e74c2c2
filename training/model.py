"""Loading models and tokenizers: safetensors alone, no code of theirs, and nothing left random."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open

from tuneline.core.artifact import Artifact
from tuneline.core.digests import short_digest
from tuneline.core.errors import ArtifactError, ConfigError
from tuneline.models.source import ModelSource

# What transformers and peft raise on folders that are not the model they say they are.
LOAD_ERRORS = (
    OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError, ImportError,
    SafetensorError,
)  # fmt: skip


def quiet_libraries() -> None:
    """No progress bars and chatter of the libraries': the step shows its own progress."""
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
    """`auto`: bfloat16 on a GPU that computes in it, float32 elsewhere."""
    if name == "auto":
        fits = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if fits else torch.float32
    return torch.bfloat16 if name == "bfloat16" else torch.float32


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model or adapter folder.

    Raises:
        ArtifactError: There is none, or it cannot be read.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except LOAD_ERRORS as error:
        raise ArtifactError(
            f"{folder}: its tokenizer cannot be read: {_first_line(error)}",
            hint="Expected tokenizer.json and tokenizer_config.json beside the model.",
        ) from None


def load_base(base: ModelSource, dtype: torch.dtype) -> Any:
    """A causal language model with its weights in `dtype`, on the GPU where there is one.

    Raises:
        ArtifactError: It cannot be read, or its files do not hold every weight.
    """
    from transformers import AutoModelForCausalLM

    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            base.path,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    except LOAD_ERRORS as error:
        raise ArtifactError(
            f"base model {base.name}: cannot be loaded: {_first_line(error)}",
            hint="Expected config.json and complete safetensors files of a causal language model; "
            "download it again if it was cut short.",
        ) from None
    # transformers fills absent weights with random numbers and goes on.
    missing = sorted(info["missing_keys"])
    if missing:
        raise ArtifactError(
            f"base model {base.name}: {len(missing)} weights are not in its files, the first "
            f"{missing[0]}; expected all that config.json describes"
        )
    return model.to(device()).eval()


def load_tuned(base: ModelSource, adapter: Artifact, dtype: torch.dtype) -> Any:
    """Base and adapter as a PEFT model, not merged; the adapter's weights stay float32.

    Raises:
        ArtifactError: The adapter was trained on another base, or does not fit this one.
    """
    from peft import PeftModel, get_peft_model_state_dict

    trained_on = [entry.digest for entry in adapter.manifest.inputs if entry.role == "base"]
    if trained_on and trained_on[0] != base.digest:
        raise ArtifactError(
            f"{adapter.path}: was trained on a base model with digest "
            f"{short_digest(trained_on[0])}; {base.name} has {short_digest(base.digest)}",
            hint="Give the base model that it was trained on.",
        )
    model = load_base(base, dtype)
    try:
        tuned = PeftModel.from_pretrained(model, adapter.path, is_trainable=False)
        with safe_open(adapter.path / "adapter_model.safetensors", framework="pt") as file:
            given = set(file.keys())
    except LOAD_ERRORS as error:
        raise ArtifactError(
            f"{adapter.path}: the adapter does not fit base model {base.name}: {_first_line(error)}"
        ) from None
    # peft only warns of tensors that it does not use, or that it leaves at their random start.
    different = sorted(given ^ set(get_peft_model_state_dict(tuned, save_embedding_layers=False)))
    if different:
        raise ArtifactError(
            f"{adapter.path}: the adapter does not fit base model {base.name}: {len(different)} "
            f"tensors have no counterpart, the first {different[0]}"
        )
    return tuned.eval()


def require_one_gpu() -> None:
    """TRL refuses several GPUs in one process.

    Raises:
        ConfigError: More than one is visible.
    """
    if torch.cuda.device_count() > 1:
        raise ConfigError(
            f"{torch.cuda.device_count()} GPUs are visible; training uses one",
            hint="Choose it: CUDA_VISIBLE_DEVICES=0 tuneline …",
        )


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:2])[:300]}"
