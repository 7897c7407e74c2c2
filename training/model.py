"""Load base models and trained models on this machine's device."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open

from training.loop.ranks import num_ranks
from tuneline.core.artifact import Artifact
from tuneline.core.digests import short_digest
from tuneline.core.environment import require
from tuneline.core.errors import ArtifactError, ConfigError
from tuneline.models.load import damage_named, load_network
from tuneline.models.source import ModelSource
from tuneline.models.vectors import load_encoder

TaskType = Literal["CAUSAL_LM", "SEQ_CLS", "FEATURE_EXTRACTION"]
NEW_LAYERS = ("score.", "classifier.")
"""How the names of the tensors of a new score begin; BERT's pooler has a part of that name."""


def quiet_libraries() -> None:
    """Silence the libraries' progress bars and logs; the step shows its own progress.

    TRL would tell the Hub of each trainer that is made; a training sends nothing.
    """
    import datasets
    import huggingface_hub
    import transformers

    huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY = True
    os.environ["TQDM_DISABLE"] = "1"  # TRL's bar of precomputed references has no other switch
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"  # ORPO and KTO; a user can do nothing about it

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    for name in ("peft", "trl", "accelerate"):
        logging.getLogger(name).setLevel(logging.ERROR)


def device() -> torch.device:
    """Return the GPU of this process if there is one; accelerate compares its number."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device() if num_ranks() > 1 else None)


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
    in_4bit: bool = False,
    what: str | None = None,
) -> Any:
    """Return a model with its weights in `dtype`, on the GPU if there is one.

    Args:
        attention: The implementation by transformers' name. A network that has no `sdpa`, or
            whose attention limits its scores, is loaded with its own.
        task_type: `SEQ_CLS` gives the model one score in place of the next token, from a new linear
            layer with random weights; `FEATURE_EXTRACTION` leaves the head out.
        in_4bit: Whether bitsandbytes keeps the linear layers in NF4; they compute in `dtype`.
        what: The model as messages call it; the base model by default.

    Raises:
        ArtifactError: The folder cannot be loaded, or its files lack weights.
    """
    # sdpa is taken by itself, and eager attention if a network has no sdpa or limits its scores.
    options: dict[str, Any] = {} if attention == "sdpa" else {"attn_implementation": attention}
    options["load"] = LOADERS[task_type]
    what = what or f"base model {base.name}"
    if not in_4bit:
        return load_network(base.path, dtype, what=what, **options).to(device())
    from transformers import BitsAndBytesConfig

    require("bitsandbytes", "train")
    options["quantization_config"] = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    model = load_network(base.path, dtype, what=what, device_map={"": device()}, **options)
    for module in model.modules():
        # Outside training, on a processor that multiplies bfloat16, bitsandbytes 0.50 computes in
        # it whatever `compute_dtype` says.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = dtype is torch.bfloat16
    return model


def load_scorer(folder: Path, **options: Any) -> tuple[Any, Any]:
    """Load a folder as a model with one score; only the folder of a scorer has those layers."""
    from transformers import AutoModelForSequenceClassification

    network, info = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=1, **options
    )
    info["missing_keys"] = [
        name
        for name in info["missing_keys"]
        if not name.startswith(NEW_LAYERS) and ".pooler." not in name
    ]
    return network, info


LOADERS: dict[TaskType, Callable[..., tuple[Any, Any]] | None] = {
    "CAUSAL_LM": None, "SEQ_CLS": load_scorer, "FEATURE_EXTRACTION": load_encoder,
}  # fmt: skip
"""The loader of each task, as `load_network` takes it."""


def load_tuned(
    base: ModelSource,
    adapter: Artifact | Path,
    dtype: torch.dtype,
    *,
    task_type: TaskType = "CAUSAL_LM",
) -> Any:
    """Return the trained model: a whole model, or base and adapter as a PEFT model, not merged.

    The adapter's weights stay float32. An adapter that was trained on a 4-bit base gets that base.

    Args:
        adapter: An artifact of training, or any PEFT folder, whose base model is not known.

    Raises:
        ArtifactError: The adapter was trained on another base, or does not fit this one.
    """
    if isinstance(adapter, Path):
        return _with_adapter(load_base(base, dtype), adapter, base.name)
    folder, manifest = adapter.path, adapter.manifest
    trained_on = [entry.digest for entry in manifest.inputs if entry.role == "base"]
    if trained_on and trained_on[0] != base.digest:
        raise ArtifactError(
            f"{folder}: was trained on a base model with digest "
            f"{short_digest(trained_on[0])}; {base.name} has {short_digest(base.digest)}",
            hint="Give the base model that the adapter was trained on.",
        )
    if adapter.kind == "model":
        what = f"trained model {folder}"
        whole = load_network(folder, dtype, what=what, load=LOADERS[task_type])
        return whole.to(device()).eval()
    in_4bit = bool(manifest.config.get("load_in_4bit"))
    model = load_base(base, dtype, task_type=task_type, in_4bit=in_4bit)
    return _with_adapter(model, folder, base.name)


def _with_adapter(model: Any, adapter: Path, base_name: str) -> Any:
    from peft import PeftModel, get_peft_model_state_dict

    problem = f"{adapter}: the adapter does not fit base model {base_name}"
    with damage_named(problem):
        tuned = PeftModel.from_pretrained(model, adapter, is_trainable=False)
        with safe_open(adapter / "adapter_model.safetensors", framework="pt") as file:
            given = set(file.keys())
    # peft only warns about tensors that it does not use or that keep their random start.
    different = sorted(given ^ set(get_peft_model_state_dict(tuned, save_embedding_layers=False)))
    if different:
        raise ArtifactError(
            f"{problem}: {len(different)} tensors have no counterpart, the first {different[0]}"
        )
    return tuned.eval()


def require_one_gpu() -> None:
    """Check that a process that trains by itself sees one GPU at most; TRL refuses several.

    Raises:
        ConfigError: Several GPUs are visible, and this is not one of several processes.
    """
    number = torch.cuda.device_count()
    if number > 1 and num_ranks() == 1:
        raise ConfigError(
            f"{number} GPUs are visible; training in one process uses one",
            hint=f"Try: training.launch: {{processes: {number}}}, or CUDA_VISIBLE_DEVICES=0 "
            "tuneline …",
        )
