"""The bias that `lora_bias` adds to a module's own, scaled like the product."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from export.merge.methods.lora import rank_and_scale
from export.merge.methods.method import (
    BaseTensor,
    Changes,
    Config,
    MergeContext,
    Method,
    Part,
    Parts,
    Want,
)
from export.weights.blocks import Change, RowFunction
from export.weights.families import EMBEDDINGS
from export.weights.tensor_file import Stored
from tuneline.models.adapter_options import LoraBiasOptions

BIAS = Part("lora_B.bias", ending=".bias")


@dataclass(frozen=True)
class BiasChange(Change):
    """A bias plus a scaled one."""

    bias: Stored
    scale: float

    def load(self, dtype: torch.dtype) -> RowFunction:  # noqa: ARG002
        delta = self.bias.read() * self.scale

        def change(block: torch.Tensor, start: int, stop: int) -> torch.Tensor:
            return block.add_(delta[start:stop].unsqueeze(1))

        return change


def _make(context: MergeContext, module: str, parts: Parts) -> Changes:
    delta = parts.get(BIAS.name)
    if delta is None:
        return []
    target = context.target(f"{module}.bias", delta)
    context.check_shape(delta, target.shape, target)
    _, scale = rank_and_scale(context.adapter.config, module)
    return [(target.name, BiasChange(delta, scale))]


def _wants(config: Config, tensor: BaseTensor) -> Iterator[Want]:
    is_adapted = tensor.is_targeted and tensor.kind == "weight" and not tensor.is_saved
    if config.get("lora_bias") and is_adapted and tensor.module.split(".")[-1] not in EMBEDDINGS:
        yield Want("lora_bias", None, f"{tensor.stored.removesuffix('.weight')}.bias")


METHOD = Method(
    title="a LoRA bias",
    peft_types=frozenset({"LORA"}),
    options=LoraBiasOptions,
    suffixes={".lora_B.bias": BIAS},
    on="LoRA",
    make=_make,
    makes=(BiasChange,),
    wants=_wants,
)
