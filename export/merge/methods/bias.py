"""Biases that are trained in place (`bias`: `all`, `lora_only`); PEFT saves them whole."""

from __future__ import annotations

from collections.abc import Iterator

from export.merge.methods.method import BaseTensor, Config, Method, Part, Want
from tuneline.models.adapter_options import BiasOptions


def _claims(config: Config, name: str) -> bool:
    return name.endswith(".bias") and config.get("bias", "none") != "none"


def _wants(config: Config, tensor: BaseTensor) -> Iterator[Want]:
    bias = config.get("bias", "none")
    if tensor.kind != "bias" or tensor.is_saved:
        return
    if bias == "all" or (bias == "lora_only" and tensor.is_targeted):
        yield Want("bias", None, tensor.stored)


METHOD = Method(
    title="a trained bias",
    peft_types=frozenset({"LORA"}),
    options=BiasOptions,
    suffixes={".base_layer.bias": Part("bias", ending=".bias", is_copy=True)},
    claims=_claims,
    wants=_wants,
)
