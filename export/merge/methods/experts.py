"""LoRA on fused experts (`target_parameters`): W + s·BA of each expert of a layer.

In memory the experts of a layer are one parameter. A has shape (experts · r, in), expert by expert;
B has shape (out, r · experts), with the experts innermost. The files hold one tensor for each
expert, or one tensor for all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from export.merge.methods.lora import LORA_A, LORA_B, Factors, rank_and_scale
from export.merge.methods.method import (
    BaseTensor,
    Changes,
    Config,
    MergeContext,
    Method,
    Parts,
    Want,
)
from export.merge.methods.targets import matches, without_wrappers
from export.weights.blocks import Change, RowFunction, product_rows
from tuneline.core.errors import ArtifactError
from tuneline.models.adapter_options import ExpertOptions


@dataclass(frozen=True)
class ExpertChange(Change):
    """W + s·BA of one expert whose weight the files hold by itself."""

    factors: Factors
    expert: int
    num_experts: int
    first_row: int
    """Where this tensor's rows begin in a B that serves two tensors (gate and up)."""
    recent: dict[str, tuple[torch.Tensor, torch.Tensor]] = field(repr=False, compare=False)
    """The matrices of the last two modules. Their experts take turns in the files, and each matrix
    is read once."""

    def load(self, dtype: torch.dtype) -> RowFunction:
        name = self.factors.a.name
        if name not in self.recent:
            while len(self.recent) > 1:
                self.recent.pop(next(iter(self.recent)))
            self.recent[name] = _by_expert(self.factors, self.num_experts)
        a, b = (matrices[self.expert] for matrices in self.recent[name])

        def change(block: torch.Tensor, start: int, stop: int) -> torch.Tensor:
            low, _ = product_rows(start, stop, stop)
            product = b[self.first_row + low : self.first_row + stop] @ a
            delta = product[start - low :].mul_(self.factors.scale)
            return block.add_(delta.to(dtype))

        return change


@dataclass(frozen=True)
class StackedExpertsChange(Change):
    """W + s·BA of all experts of a layer, in one tensor of shape (experts, out, in) or, transposed,
    (experts, in, out). The rows of the tensor are those of all experts, one after the other."""

    factors: Factors
    num_experts: int
    is_transposed: bool

    def load(self, dtype: torch.dtype) -> RowFunction:
        a, b = _by_expert(self.factors, self.num_experts)
        num_rows = a.shape[2] if self.is_transposed else b.shape[1]

        def change(block: torch.Tensor, start: int, stop: int) -> torch.Tensor:
            for expert in range(start // num_rows, -(-stop // num_rows)):
                first = max(start, expert * num_rows)
                last = min(stop, (expert + 1) * num_rows)
                from_row, to_row = first - expert * num_rows, last - expert * num_rows
                low, high = product_rows(from_row, to_row, num_rows)
                if self.is_transposed:
                    product = (b[expert] @ a[expert][:, low:high]).T
                else:
                    product = b[expert][low:high] @ a[expert]
                delta = product[from_row - low : to_row - low].mul(self.factors.scale)
                block[first - start : last - start].add_(delta.to(dtype))
            return block

        return change


def _by_expert(factors: Factors, num_experts: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return A of shape (experts, r, in) and B of shape (experts, out, r)."""
    a, b = factors.a.read(), factors.b.read()
    return (
        a.reshape(num_experts, -1, a.shape[1]),
        b.reshape(b.shape[0], -1, num_experts).permute(2, 0, 1).contiguous(),
    )


def _takes(context: MergeContext, module: str) -> bool:
    return bool(context.naming.fused_in(without_wrappers(module)))


def _make(context: MergeContext, module: str, parts: Parts) -> Changes:
    """PEFT nests the wrappers of `gate_up_proj` and `down_proj`. Names such as
    `experts.base_layer.lora_A` do not say which of the two they mean; their shapes do."""
    adapter, name = context.adapter, without_wrappers(module)
    context.require_parts(module, parts, "lora_A", "lora_B")
    a, b = parts["lora_A"], parts["lora_B"]
    candidates = context.naming.fused_in(name)
    fits = [
        (key, experts)
        for key, experts in candidates.items()
        if (*b.shape[:1], *a.shape[1:]) == (experts.num_out, experts.num_in)
    ]
    rank, scale = rank_and_scale(adapter.config, f"{name}.{fits[0][0]}" if fits else name)
    num_experts = next(iter(candidates.values())).num_experts
    if not fits or a.shape[0] != rank * num_experts or b.shape[1] != rank * num_experts:
        raise ArtifactError(
            f"{adapter.weights.path}: {a.name} of shape {list(a.shape)} and {b.name} of shape "
            f"{list(b.shape)} do not fit {num_experts} experts of {name} at rank {rank}",
            hint=adapter.named_base,
        )
    experts = fits[0][1]
    factors = Factors(a, b, scale, adapter.weight)
    changes: Changes = []
    for piece in experts.pieces:
        context.check_format(piece.name)
        change: Change = (
            StackedExpertsChange(factors, num_experts, experts.is_transposed)
            if piece.expert is None
            else ExpertChange(factors, piece.expert, num_experts, piece.first_row, context.recent)
        )
        changes.append((piece.name, change))
    return changes


def _wants(config: Config, tensor: BaseTensor) -> Iterator[Want]:
    for target in config.get("target_parameters") or []:
        if matches([target], tensor.name):
            yield Want("target_parameters", target, tensor.stored)


METHOD = Method(
    title="LoRA on fused experts",
    peft_types=frozenset({"LORA"}),
    options=ExpertOptions,
    suffixes={".lora_A.weight": LORA_A, ".lora_B.weight": LORA_B},
    takes=_takes,
    make=_make,
    makes=(ExpertChange, StackedExpertsChange),
    wants=_wants,
    named_by=frozenset({"target_modules", "target_parameters"}),
)
