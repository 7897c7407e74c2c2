"""adapter_config.json of a PEFT adapter: what it may hold to be merged, and to be served."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tuneline.core.errors import ArtifactError
from tuneline.core.vllm_limits import LORA_RANKS, MAX_LORA_RANK
from tuneline.models.adapter_options import KNOWN_LORA_OPTIONS, AdapterOptions
from tuneline.models.folder import read_json
from tuneline.models.schemas import check_form

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"

# Initialisations that leave the base as it is. The others (pissa, olora, corda, loftq, ...) change
# the base's weights at the start of training, so that the adapter does not fit the base on disk.
NEUTRAL_INITIALISATIONS = (True, False, None, "gaussian", "eva", "orthogonal")

# vLLM 0.32 reads only the A and B matrices of an adapter.
_MERGED_ONLY = ("modules_to_save", "use_dora", "lora_bias", "trainable_token_indices")


def read_peft_config(folder: Path) -> dict[str, Any]:
    """Return the options of an adapter of any PEFT method, as PEFT wrote them.

    Raises:
        ArtifactError: The folder is not a PEFT adapter.
    """
    path = folder / ADAPTER_CONFIG
    if not path.is_file():
        # PEFT saves an adapter with a name of its own, and a Trainer a checkpoint, one level below.
        below = sorted(folder.glob(f"*/{ADAPTER_CONFIG}"))
        raise ArtifactError(
            f"{path}: no such file; expected a PEFT adapter folder",
            hint=f"Try: {', or '.join(str(one.parent) for one in below)}" if below else None,
        )
    config = read_json(path)
    if "peft_type" not in config and "fine_tune_type" in config:
        raise ArtifactError(
            f"{path}: is of an adapter of mlx-lm; expected a PEFT adapter",
            hint=f"Try: mlx_lm.fuse --model BASE --adapter-path {folder} --save-path OUT, and take "
            "OUT as the model. mlx_lm.fuse --help names the option that dequantizes the base.",
        )
    return config


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """Return the options of a LoRA adapter as PEFT wrote them.

    Raises:
        ArtifactError: The folder is not a PEFT adapter, the adapter is not a LoRA adapter, or a
            value does not fit the schema.
    """
    path = folder / ADAPTER_CONFIG
    config = read_peft_config(folder)
    check_form(path, config, AdapterOptions)
    if config.get("peft_type") != "LORA":
        raise ArtifactError(f"{path}: peft_type is {config.get('peft_type')!r}; expected LORA")
    return config


def foreign_options(config: Mapping[str, Any]) -> list[str]:
    """Return, as `name=value`, the options with which A and B do not add up to the change."""
    found = [
        f"{name}={value!r}"
        for name, value in config.items()
        if value and name not in KNOWN_LORA_OPTIONS
    ]
    initialisation = config.get("init_lora_weights")
    if initialisation not in NEUTRAL_INITIALISATIONS:
        found.append(f"init_lora_weights={initialisation!r}")
    return found


def merged_only_options(config: Mapping[str, Any]) -> list[str]:
    """Return, as `name=value`, the options of an adapter that vLLM serves merged only."""
    found = [f"{name}={config[name]!r}" for name in _MERGED_ONLY if config.get(name)]
    if config.get("bias", "none") != "none":
        found.append(f"bias={config['bias']!r}")
    return found + foreign_options(config)


def require_servable(config: Mapping[str, Any], path: Path) -> None:
    """Check that vLLM can serve an adapter next to its base model.

    Args:
        path: The file that messages name.

    Raises:
        ArtifactError: The adapter needs a merge.
    """
    refused = merged_only_options(config)
    if refused:
        raise ArtifactError(
            f"{path}: {', '.join(refused)}; vLLM serves only plain LoRA weights next to a base",
            hint="Serve the merged model: --set serving.mode=merged",
        )
    if "r" not in config:
        raise ArtifactError(f"{path}: r is missing; expected the rank of a LoRA adapter")


def served_rank(config: Mapping[str, Any]) -> int:
    """Return the smallest `--max-lora-rank` that fits the rank of every module.

    Raises:
        ArtifactError: A rank is higher than vLLM allows.
    """
    rank = max([config["r"], *(config.get("rank_pattern") or {}).values()])
    for allowed in LORA_RANKS:
        if rank <= allowed:
            return allowed
    raise ArtifactError(
        f"{ADAPTER_CONFIG}: rank {rank}; vLLM serves adapters up to rank {MAX_LORA_RANK}",
        hint="Serve the merged model: --set serving.mode=merged",
    )
