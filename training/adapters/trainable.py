"""How parameters are trained: an adapter, an adapter on a 4-bit base, or the whole model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from training.adapters.companion_files import write_companion_files
from training.adapters.lora import add_lora, write_lora
from training.adapters.reach import Reached, left_out, pattern_of, reached
from training.config import TrainingConfig
from training.config.method import EmbeddingConfig, RerankerConfig
from training.model import TaskType, load_base, resolve_dtype
from tuneline.core.errors import ConfigError
from tuneline.models.folder import CONFIG, read_json, write_json
from tuneline.models.own_code import leave_code_out
from tuneline.models.pairs import write_cross_encoder
from tuneline.models.schemas import ModelConfig
from tuneline.models.source import ModelSource
from tuneline.models.vectors import read_recipe, write_recipe

MAX_SHARD_SIZE = "5GB"


def load_trainable(
    config: TrainingConfig,
    base: ModelSource,
    attention: str = "sdpa",
    task_type: TaskType = "CAUSAL_LM",
) -> tuple[Any, list[Reached], dict[str, str]]:
    """Return a model that is ready to train, what is trained, and what `all-linear` leaves out.

    Raises:
        ArtifactError: The base cannot be loaded.
        ConfigError: The base cannot be trained so, or a name matches nothing.
    """
    dtype = torch.float32 if config.finetuning_type == "full" else resolve_dtype(config.dtype)
    model = load_base(base, dtype, attention, task_type=task_type, in_4bit=config.load_in_4bit)
    # Llama 4's text model names an inner model that only the model of text and pictures has. The
    # loss is computed from the inner model.
    if not hasattr(model, model.base_model_prefix) and hasattr(model, "model"):
        model.base_model_prefix = "model"
    text = model.config.get_text_config()
    if hasattr(text, "output_router_logits"):
        # A base's own `true` would return them for every batch, which is then computed whole.
        text.output_router_logits = config.router_aux_loss_coef > 0
    if config.finetuning_type == "full":
        model.requires_grad_(True)
        return model, reached(model), {}
    without = left_out(model) if config.target_modules == "all-linear" else {}
    tuned = add_lora(config, model, task_type)
    return tuned, reached(tuned), without


def write_trained(
    config: TrainingConfig,
    model: Any,
    base: ModelSource,
    folder: Path,
    template: str | None,
    stop_ids: Sequence[int],
) -> None:
    """Write the adapter or the whole model, with the files that serving needs.

    Raises:
        ArtifactError: A file of the base cannot be read.
    """
    if config.finetuning_type == "lora":
        write_lora(model, base.name, folder)
    else:
        model.save_pretrained(folder, max_shard_size=MAX_SHARD_SIZE)
        # TRL writes its own coefficient of the router's loss and its padding into the file.
        was, now = (read_json(path / CONFIG, ModelConfig) for path in (base.path, folder))
        for key in ("router_aux_loss_coef", "output_router_logits", "use_cache", "pad_token_id"):
            now.pop(key, None)
            if key in was:
                now[key] = was[key]
        write_json(folder / CONFIG, leave_code_out(now, base.path / CONFIG, base.path))
    write_companion_files(base.path, folder, template, stop_ids)
    if isinstance(config.method, EmbeddingConfig):
        recipe = read_recipe(base.path, pooling=config.method.pooling)
        write_recipe(base.path, folder, recipe, config.method.prompts(base.path))
    if isinstance(config.method, RerankerConfig):
        write_cross_encoder(folder)


def four_bit_figures(model: Any) -> dict[str, Any]:
    """Return which modules bitsandbytes keeps in 4 bits, and which share of the weights that is.

    Fused experts stay in full precision: they are parameters, not linear layers.
    """
    modules = {
        name.removeprefix("base_model.model."): module
        for name, module in model.named_modules()
        if type(module).__name__ == "Linear4bit"
    }
    reduced = sum(module.in_features * module.out_features for module in modules.values())
    others = sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if not parameter.requires_grad and parameter.dtype is not torch.uint8
    )
    experts = sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if ".experts." in name and parameter.ndim == 3
    )
    return {
        "four_bit_modules": sorted({pattern_of(name) for name in modules}),
        "four_bit_share": reduced / max(1, reduced + others),
        "num_expert_parameters_not_in_4bit": experts,
    }


def require_fits(config: TrainingConfig, base: Path, model: Any) -> None:
    """Check, on a model without weights, that a base can be trained so.

    Raises:
        ConfigError: The base has another shape than the way of training needs.
    """
    is_composite = "text_config" in read_json(base / CONFIG, ModelConfig)
    if config.finetuning_type == "full" and is_composite:
        raise ConfigError(
            f"training.finetuning_type: full would keep the text half only of {base}, a model of "
            "text and pictures",
            hint="Try: --set training.finetuning_type=lora",
        )
    if not config.load_in_4bit:
        return
    if is_composite:
        raise ConfigError(
            f"training.load_in_4bit: {base} is a model of text and pictures, whose adapter cannot "
            "be merged as NF4 kept it",
            hint="Try: --set training.load_in_4bit=false",
        )
    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and module is not head and module.in_features % 64:
            raise ConfigError(
                f"training.load_in_4bit: {name} has rows of {module.in_features} values; expected "
                "a multiple of 64, the size of a block of NF4",
                hint="Try: --set training.load_in_4bit=false",
            )
