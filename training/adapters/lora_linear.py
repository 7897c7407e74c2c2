"""A linear layer with LoRA as one autograd operation.

y = x Wᵀ + s (x Aᵀ) Bᵀ with A of r x in, B of out x r and the scale s (Hu et al., LoRA, 2021).
peft computes it as five operations, three of which read and write a whole output. Here the matrix
product adds the adapter's part in place, in both directions: 15 % less time for a step of a small
model on two cores.

On a base in NF4, whose layers peft computes with three more copies of an output, the operation
reads the weight once in each direction, as bitsandbytes does.

With many tokens to a layer it is cheaper to form W + s B A for the one product, and to forget it:
the sum costs in x out numbers, the adapter's part of the outputs tokens x (in + out).
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import torch
from peft.tuners.lora.layer import Linear, LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch.nn.functional import linear

FOUR_BIT = "Linear4bit"
"""The name of bitsandbytes' layer and of peft's layer on it; bitsandbytes may not be installed."""
ReadWeight = Callable[[], torch.Tensor]
MAX_SUM_SIZE = 2**24
"""Elements of the largest sum that is formed: 64 MiB in float32."""


def use_lora_linear(model: Any) -> int:
    """Compute the plain LoRA layers of a PEFT model by one operation each; return their number.

    A layer keeps peft's forward if it has more to it: dropout, DoRA, a bias of the adapter, another
    dtype than float32, a base layer in 8 bits. So does a layer on a GPU.
    """
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    plain = [layer for layer in layers if _is_plain(layer) or _is_in_4bit(layer)]
    for layer in plain:
        layer.forward = types.MethodType(_forward, layer)
    return len(plain)


def has_plain_layers_only(model: Any) -> bool:
    """Return whether all trained layers of a PEFT model are plain LoRA layers, which keep no state.

    peft's layers on a parameter (of fused experts) change their module during each pass.
    """
    tuned = [m for m in model.modules() if isinstance(m, BaseTunerLayer | AuxiliaryTrainingWrapper)]
    return all(isinstance(layer, Linear) and _is_plain(layer) for layer in tuned)


def _is_plain(layer: LoraLayer) -> bool:
    base = layer.get_base_layer()
    return (
        type(layer) is Linear
        and type(base) is torch.nn.Linear
        and base.weight.dtype in OPERATIONS
        and _has_two_factors(layer)
    )


def _is_in_4bit(layer: LoraLayer) -> bool:
    """Return whether the base layer is one of bitsandbytes that computes in float32."""
    base = layer.get_base_layer()
    if (type(layer).__name__, type(base).__name__) != (FOUR_BIT, FOUR_BIT):
        return False
    state = base.weight.quant_state
    return (
        base.compute_dtype is torch.float32
        and state is not None
        and tuple(state.shape) == (base.out_features, base.in_features)
        and _has_two_factors(layer)
    )


def _has_two_factors(layer: LoraLayer) -> bool:
    """Return whether only lora_A and lora_B are trained, in float32 and on the CPU."""
    base = layer.get_base_layer()
    return (
        not base.weight.requires_grad
        and (base.bias is None or not base.bias.requires_grad)
        and not layer.lora_variant
        and all(isinstance(dropout, torch.nn.Identity) for dropout in layer.lora_dropout.values())
        and all(part.bias is None for part in layer.lora_B.values())
        and all(weight.device.type == "cpu" for weight in layer.parameters())
        and all(
            weight.dtype is torch.float32
            for parts in (layer.lora_A, layer.lora_B)
            for weight in parts.parameters()
        )
    )


def _forward(self: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    base = self.get_base_layer()
    in_4bit = type(base).__name__ == FOUR_BIT
    plain = (
        len(self.active_adapters) == 1
        and self.active_adapters[0] in self.lora_A
        and not self.disable_adapters
        and not self.merged
        and x.dtype is (torch.float32 if in_4bit else base.weight.dtype)
        and torch.is_autocast_enabled("cpu") is (x.dtype is torch.bfloat16)
        and not args
        and not kwargs
    )
    if not plain:
        return type(self).forward(self, x, *args, **kwargs)
    name = self.active_adapters[0]
    output: torch.Tensor = OPERATIONS[x.dtype].apply(
        x, functools.partial(_weight, base), base.bias, self.lora_A[name].weight,
        self.lora_B[name].weight, self.scaling[name],
    )  # fmt: skip
    return output


def _weight(base: Any) -> torch.Tensor:
    """Return the weight of a base layer, (out, in), in the number format that it computes in."""
    weight: torch.Tensor = base.weight
    if type(base).__name__ == FOUR_BIT:
        from bitsandbytes.functional import dequantize_4bit

        weight = dequantize_4bit(weight, base.weight.quant_state).float()
    return weight


class _LoraLinear(torch.autograd.Function):  # type: ignore[misc]
    """x: (..., in), a: (r, in), b: (out, r); `read` returns the weight, (out, in). Weight and bias
    are frozen."""

    @staticmethod
    def forward(ctx: Any, x: Any, read: ReadWeight, bias: Any, a: Any, b: Any, scale: float) -> Any:
        rows, weight = x.reshape(-1, x.shape[-1]), read()
        ctx.save_for_backward(rows, a, b)
        ctx.read, ctx.scale, ctx.shape = read, scale, x.shape
        if _sum_is_cheaper(rows, weight):
            output = linear(rows, torch.addmm(weight, b, a, alpha=scale), bias)
        else:
            output = linear(rows, weight, bias).addmm_(rows @ a.t(), b.t(), alpha=scale)
        return output.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        rows, a, b = ctx.saved_tensors
        gradient = gradient.reshape(-1, gradient.shape[-1])
        gradient_low = (gradient @ b).mul_(ctx.scale)
        gradient_x = None
        if ctx.needs_input_grad[0]:
            weight = ctx.read()
            if _sum_is_cheaper(rows, weight):
                gradient_x = gradient @ torch.addmm(weight, b, a, alpha=ctx.scale)
            else:
                gradient_x = (gradient @ weight).addmm_(gradient_low, a)
            gradient_x = gradient_x.view(ctx.shape)
        gradient_a = gradient_low.t() @ rows
        gradient_b = (gradient.t() @ (rows @ a.t())).mul_(ctx.scale)
        return gradient_x, None, None, gradient_a, gradient_b, None


def _sum_is_cheaper(rows: torch.Tensor, weight: torch.Tensor) -> bool:
    size: int = weight.numel()
    return size <= MAX_SUM_SIZE and len(rows) * int(sum(weight.shape)) > 2 * size


class _HalfLoraLinear(torch.autograd.Function):  # type: ignore[misc]
    """The same with x, weight and bias in bfloat16; a and b are float32.

    W + s B A is not formed: rounded to 8 bits, it would lose most of a small s B A.
    """

    @staticmethod
    def forward(ctx: Any, x: Any, read: ReadWeight, bias: Any, a: Any, b: Any, scale: float) -> Any:
        weight = read()
        rows, half_a, half_b = x.reshape(-1, x.shape[-1]), a.bfloat16(), b.bfloat16()
        low = rows @ half_a.t()
        ctx.save_for_backward(rows, weight, half_a, half_b, low)
        ctx.scale, ctx.shape = scale, x.shape
        output = linear(rows, weight, bias).addmm_(low, half_b.t(), alpha=scale)
        return output.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        rows, weight, a, b, low = ctx.saved_tensors
        gradient = gradient.reshape(-1, gradient.shape[-1])
        gradient_low = (gradient @ b).mul_(ctx.scale)
        gradient_x = None
        if ctx.needs_input_grad[0]:
            gradient_x = (gradient @ weight).addmm_(gradient_low, a).view(ctx.shape)
        gradient_a = (gradient_low.t() @ rows).float()
        gradient_b = (gradient.t() @ low).float().mul_(ctx.scale)
        return gradient_x, None, None, gradient_a, gradient_b, None


OPERATIONS: dict[torch.dtype, Any] = {torch.float32: _LoraLinear, torch.bfloat16: _HalfLoraLinear}
"""The operation by the number format of the base layer's weight."""
