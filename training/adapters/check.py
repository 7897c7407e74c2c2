"""The check of what would be trained, on a base without its weights."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from training.adapters.lora import add_lora
from training.adapters.outline import write_outline
from training.adapters.reach import left_out, pattern_of, reached
from training.adapters.servable import unservable
from training.adapters.targets import fused_experts, linear_modules
from training.adapters.trainable import require_fits
from training.config import TrainingConfig
from training.loop.packing import require_rows_apart, small_network
from training.methods import find_method
from training.model import LOADERS, quiet_libraries
from tuneline.core.errors import ConfigError
from tuneline.models.load import load_network
from tuneline.models.source import ModelSource


def check_targets(
    config: TrainingConfig,
    base: ModelSource,
    *,
    as_adapter: bool = False,
    require_mergeable: Callable[[Path, Sequence[str]], None] | None = None,
) -> dict[str, str]:
    """Put the adapter on the base without its weights, and return what would be trained.

    Args:
        as_adapter: Whether the run serves the base with the adapter, not the merged model.
        require_mergeable: Checks a folder with an adapter of these names, shapes and options, and
            the layers that are kept in NF4; None for an adapter that is not merged.

    Raises:
        ConfigError: An option does not exist or does not fit the base, or a name matches nothing,
            or vLLM cannot serve the adapter next to its base as the run wants, or the adapter
            cannot be merged.
        ArtifactError: The base cannot be loaded.
    """
    quiet_libraries()
    what = f"base model {base.name}"
    task_type = find_method(config.method).task_type
    load = LOADERS[task_type]
    model = load_network(base.path, torch.float32, what=what, device_map="meta", load=load)
    require_fits(config, base.path, model)
    total = sum(parameter.numel() for parameter in model.parameters())
    if config.router_aux_loss_coef and not hasattr(model, "num_experts"):
        raise ConfigError(
            f"training.router_aux_loss_coef: {config.router_aux_loss_coef:g}: transformers has no "
            f"router's loss for a {type(model).__name__}",
            hint="Try: --set training.router_aux_loss_coef=0",
        )
    found: dict[str, str] = {}
    if config.packing and (network := small_network(model)) is not None:
        require_rows_apart(network, config.max_length)
        found["packing"] = "rows of one sequence do not see one another"
    without, four_bit_modules = {}, set()
    if config.finetuning_type == "full":
        model.requires_grad_(True)
    else:
        without = left_out(model) if config.target_modules == "all-linear" else {}
        if config.load_in_4bit:
            found["4 bits"] = _in_4bit(model, total)
            four_bit_modules = {pattern_of(name) for name in linear_modules(model)}
        model = add_lora(config, model, task_type)
        if require_mergeable is not None:
            with tempfile.TemporaryDirectory() as folder:
                write_outline(model, Path(folder))
                require_mergeable(Path(folder), sorted(four_bit_modules))
    rows = reached(model)
    trained = sum(row.num_parameters for row in rows)
    found["trained"] = f"{trained:,} parameters, {trained / total:.2%} of the base's {total:,}"
    if config.finetuning_type == "lora":
        found |= {
            f"trained {row.pattern}": f"{row.num_modules:,} modules, {row.num_parameters:,} "
            f"parameters, {row.share:.1%}"
            for row in rows
        }
        reasons = unservable(config, base.path, model)
        if as_adapter and reasons:
            raise ConfigError(
                f"serving.mode: adapter cannot serve this adapter: {'; '.join(reasons)}",
                hint="Try: --set serving.mode=merged",
            )
        if task_type == "CAUSAL_LM":
            found["served"] = (
                f"merged only: {'; '.join(reasons)}" if reasons else "merged, or as an adapter"
            )
    found |= {f"not trained {pattern}": reason for pattern, reason in without.items()}
    return found


def _in_4bit(model: object, total: int) -> str:
    linear = sum(module.weight.numel() for module in linear_modules(model).values())
    experts = sum(parameter.numel() for parameter in fused_experts(model).values())
    text = f"{linear / total:.1%} of the weights in NF4"
    if experts:
        text += f"; {experts / total:.1%} are fused experts, which bitsandbytes leaves as they are"
    return f"{text}; the trained model is the adapter on the rounded weights"
