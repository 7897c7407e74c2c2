"""FSDP2: weights, gradients and optimizer spread over the processes.

torch's `fully_shard` cuts the parameters of the model in place, and the Trainer does not wrap a
model that is cut already. accelerate would cut it on GPUs only: on CPUs its FSDP is silently DDP.
Checkpoints have the files of one process, so that they move between strategies and numbers of
processes: rank 0 gathers each tensor and writes it whole.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from training.config.launch import LaunchConfig
from training.loop.ranks import is_first, whole


def shard_trainer(trainer: Any, launch: LaunchConfig, checkpoint: Path | None) -> None:
    """Spread the model of a trainer over the processes.

    Args:
        checkpoint: The checkpoint that the run continues from; its weights are loaded here, because
            whole tensors fit into a whole model only.
    """
    if checkpoint is not None:
        trainer._load_from_checkpoint(str(checkpoint))
    shard_model(trainer.model, reshard=launch.reshard_after_forward)
    trainer.is_distributed_loading_by_transformers = True
    trainer._load_from_checkpoint = lambda *_, **__: None
    trainer.save_model = functools.partial(_save_model, trainer)
    trainer._save_optimizer_and_scheduler = functools.partial(
        _save_optimizer, trainer, trainer._save_optimizer_and_scheduler
    )
    trainer._load_optimizer_and_scheduler = functools.partial(
        _load_optimizer, trainer, trainer._load_optimizer_and_scheduler
    )
    clip = trainer._clip_grad_norm
    trainer._clip_grad_norm = lambda model: whole(clip(model))


def shard_model(model: torch.nn.Module, *, reshard: bool) -> None:
    """Cut the parameters of each decoder layer, and those of the rest, over the processes."""
    for module in _layers(model):
        fully_shard(module, reshard_after_forward=reshard)
    fully_shard(model)
    for module in model.modules():
        if isinstance(module, FSDPModule) and dist.get_backend() == "gloo":
            module.set_force_sum_reduction_for_comms(True)  # gloo adds up, but has no mean


def gather_on_first(model: torch.nn.Module) -> None:
    """Put whole parameters into the model of rank 0; the other processes give up theirs."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    tied: dict[torch.nn.Parameter, torch.nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if parameter not in tied:
                value = whole(parameter.detach()).cpu()
                kept = value if is_first() else value.new_empty(0)
                tied[parameter] = torch.nn.Parameter(kept, requires_grad=parameter.requires_grad)
            module._parameters[name] = tied[parameter]
        # FSDP's hooks cut what is loaded; the best checkpoint is loaded whole.
        module._load_state_dict_post_hooks.clear()


def _layers(model: torch.nn.Module) -> list[torch.nn.Module]:
    """Return the decoder's layers: the outermost list of modules."""
    lists = (module for module in model.modules() if isinstance(module, torch.nn.ModuleList))
    return list(next((found for found in lists if len(found) > 1), ()))


def _save_model(trainer: Any, output_dir: str | None = None, **_: Any) -> None:
    model = trainer.model
    frozen = {
        name
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if not parameter.requires_grad
    }
    state = {
        name: whole(value).cpu() for name, value in model.state_dict().items() if name not in frozen
    }
    if is_first():
        trainer._save(output_dir or trainer.args.output_dir, state_dict=state)


def _save_optimizer(trainer: Any, save: Any, output_dir: str) -> None:
    """Let the Trainer save the optimizer with whole tensors."""
    optimizer = trainer.optimizer
    state = optimizer.state_dict()
    values = {
        number: {name: _on_cpu(whole(value)) for name, value in entry.items()}
        for number, entry in state["state"].items()
    }
    trainer.optimizer = _Saved({**state, "state": values})
    try:
        save(output_dir)
    finally:
        trainer.optimizer = optimizer


def _load_optimizer(trainer: Any, load: Any, checkpoint: str | None) -> None:
    """Let the Trainer load an optimizer of whole tensors, cut as the parameters are cut."""
    optimizer = trainer.optimizer
    load_state = optimizer.load_state_dict
    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def load_state_dict(state: dict[str, Any]) -> None:
        for number, entry in state["state"].items():
            like = parameters[number]
            for name, value in entry.items():
                if isinstance(like, DTensor) and value.shape == like.shape:
                    entry[name] = distribute_tensor(
                        value.to(like.device), like.device_mesh, like.placements
                    )
        load_state(state)

    optimizer.load_state_dict = load_state_dict
    try:
        load(checkpoint)
    finally:
        optimizer.load_state_dict = load_state


class _Saved:
    """An optimizer's state when the Trainer asks an optimizer for it."""

    def __init__(self, state: dict[str, Any]) -> None:
        self.state = state

    def state_dict(self) -> dict[str, Any]:
        return self.state


def _on_cpu(value: Any) -> Any:
    return value.cpu() if isinstance(value, torch.Tensor) else value
