"""LoHa: W + s·(B₁A₁ ∘ B₂A₂), the elementwise product of two low-rank matrices.

B₁ and B₂ have the shape (out, r), A₁ and A₂ have the shape (r, in), and the scale s is alpha/r
(Hyeon-Woo et al., arXiv:2108.06098).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import FiniteFloat, PositiveInt

from export.merge.methods.method import Changes, MergeContext, Method, Part, Parts
from export.merge.methods.targets import for_module, want_targeted_weight
from export.weights.blocks import Change, RowFunction, product_rows
from export.weights.families import EMBEDDINGS, is_conv1d
from export.weights.tensor_file import Stored
from tuneline.core.errors import ArtifactError
from tuneline.models.schemas import JsonForm, Pattern

B1, A1, B2, A2 = PARTS = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")


class LohaOptions(JsonForm):
    """The options of adapter_config.json that say how the product is scaled."""

    r: PositiveInt = 8
    alpha: FiniteFloat = 8
    rank_pattern: dict[Pattern, PositiveInt] | None = None
    alpha_pattern: dict[Pattern, FiniteFloat] | None = None


@dataclass(frozen=True)
class HadamardChange(Change):
    """W + s·(B₁A₁ ∘ B₂A₂)."""

    factors: tuple[Stored, Stored, Stored, Stored]
    """B₁, A₁, B₂ and A₂."""
    scale: float

    def load(self, dtype: torch.dtype) -> RowFunction:  # noqa: ARG002
        b1, a1, b2, a2 = (factor.read() for factor in self.factors)

        def change(block: torch.Tensor, start: int, stop: int) -> torch.Tensor:
            low, _ = product_rows(start, stop, stop)
            product = (b1[low:stop] @ a1).mul_(b2[low:stop] @ a2).mul_(self.scale)
            return block.add_(product[start - low :])

        return change


def _make(context: MergeContext, module: str, parts: Parts) -> Changes:
    config = context.adapter.config
    context.require_parts(module, parts, *PARTS)
    target, (num_out, num_in) = context.matrix(module, parts[B1])
    if module.rpartition(".")[2] in EMBEDDINGS or is_conv1d(context.base.config, module):
        raise ArtifactError(
            f"{context.adapter.weights.path}: {parts[B1].name}: changes {target.name}; expected "
            "the weight of a linear layer, which is all that PEFT puts LoHa on"
        )
    rank = for_module(config, "rank_pattern", module, config.get("r", 8))
    alpha = for_module(config, "alpha_pattern", module, config.get("alpha", 8))
    for name in (B1, B2):
        context.check_shape(parts[name], (num_out, rank), target)
    for name in (A1, A2):
        context.check_shape(parts[name], (rank, num_in), target)
    factors = (parts[B1], parts[A1], parts[B2], parts[A2])
    return [(target.name, HadamardChange(factors, alpha / rank))]


METHOD = Method(
    title="LoHa",
    peft_types=frozenset({"LOHA"}),
    options=LohaOptions,
    neutral=frozenset({"init_weights", "module_dropout", "rank_dropout", "use_effective_conv2d"}),
    suffixes={f".{name}": Part(name) for name in PARTS},
    make=_make,
    makes=(HadamardChange,),
    wants=want_targeted_weight,
    named_by=frozenset({"target_modules"}),
)
