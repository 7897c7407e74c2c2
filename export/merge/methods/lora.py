"""LoRA: W + s·BA for a weight W of shape (out, in), B of shape (out, r) and A of shape (r, in).

The scale s is alpha/r (Hu et al., arXiv:2106.09685), or alpha/√r when rank-stabilized
(Kalajdzievski, arXiv:2312.03732). An embedding of shape (vocabulary, out) takes the transpose of
the product.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from export.merge.methods.method import Changes, Config, MergeContext, Method, Part, Parts
from export.merge.methods.targets import for_module, matches, want_targeted_weight
from export.weights.blocks import Change, RowFunction, product_rows
from export.weights.families import is_conv1d
from export.weights.tensor_file import Stored
from tuneline.models.adapter_config import NEUTRAL_INITIALISATIONS
from tuneline.models.adapter_options import LORA_NEUTRAL_OPTIONS, LoraOptions

LORA_A, LORA_B = Part("lora_A"), Part("lora_B")


@dataclass(frozen=True)
class Factors:
    """One adapter's A and B, its scale s, and its weight if several adapters are summed."""

    a: Stored
    b: Stored
    scale: float
    weight: float | None = None


@dataclass(frozen=True)
class LowRankChange(Change):
    """W + s·BA, or the sum of several such products."""

    factors: tuple[Factors, ...]
    is_transposed: bool = False
    """Whether W is stored as (in, out), like GPT-2's Conv1D and embeddings."""
    is_rounded: bool = False
    """Whether the product is rounded to W's number format before it is added, as PEFT does to
    embeddings and to `target_parameters`."""

    def load(self, dtype: torch.dtype) -> RowFunction:
        a, b, scale = join_factors(self.factors)
        space = torch.empty(0)

        def change(block: torch.Tensor, start: int, stop: int) -> torch.Tensor:
            nonlocal space
            low, _ = product_rows(start, stop, stop)
            size = (stop - low) * block.shape[1]
            if space.numel() < size:
                space = torch.empty(size)
            if self.is_transposed:
                product = space[:size].view(block.shape[1], stop - low)
                product = torch.mm(b, a[:, low:stop], out=product).T
            else:
                product = space[:size].view(stop - low, block.shape[1])
                torch.mm(b[low:stop], a, out=product)
            delta = product[start - low :]
            if scale != 1:
                delta = delta.mul_(scale)
            return block.add_(delta.to(dtype) if self.is_rounded else delta)

        return change

    def is_same(self, other: Change) -> bool:
        """Return whether a change of an embedding and one of an output layer have one product:
        the factors of one are those of the other, transposed."""
        if self is other:
            return True
        if not isinstance(other, LowRankChange) or len(self.factors) != len(other.factors):
            return False
        return all(
            mine.scale == its.scale
            and mine.weight == its.weight
            and torch.equal(mine.a.read(), its.b.read().T)
            and torch.equal(mine.b.read(), its.a.read().T)
            for mine, its in zip(self.factors, other.factors, strict=True)
        )


def join_factors(factors: tuple[Factors, ...]) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Return A, B and s of a sum of products.

    Over the rank, A is stacked with scales and weights in it and B is joined, like in PEFT's
    `add_weighted_adapter` with `cat`.
    """
    first = factors[0]
    if len(factors) == 1 and first.weight is None:
        a, b = first.a.read(), first.b.read()
        if math.frexp(first.scale)[0] == 0.5:  # a power of two: exact wherever it is applied
            return a, b.mul_(first.scale), 1.0
        return a, b, first.scale
    a = torch.cat([term.a.read() * (term.weight or 0.0) * term.scale for term in factors])
    b = torch.cat([term.b.read() for term in factors], dim=1)
    return a, b, 1.0


def rank_and_scale(config: Config, module: str) -> tuple[int, float]:
    """Return the rank r and the scale s of a module."""
    rank = for_module(config, "rank_pattern", module, config.get("r", 8))
    alpha = for_module(config, "alpha_pattern", module, config.get("lora_alpha", 8))
    return rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _make(context: MergeContext, module: str, parts: Parts) -> Changes:
    adapter = context.adapter
    own = {name: parts[name] for name in parts if name in PART_NAMES}
    on_embedding = bool({"lora_embedding_A", "lora_embedding_B"} & own.keys())
    names = ("lora_embedding_A", "lora_embedding_B") if on_embedding else ("lora_A", "lora_B")
    context.require_parts(module, own, *names)
    a, b = (own[name] for name in names)
    as_parameter = matches(adapter.config.get("target_parameters"), f"{module}.weight")
    # PEFT compares its patterns with the name of what it targets: a module or a parameter.
    rank, scale = rank_and_scale(adapter.config, f"{module}.weight" if as_parameter else module)
    target, shape = context.matrix(module, a)
    is_transposed = on_embedding or is_conv1d(context.base.config, module)
    num_in, num_out = shape if is_transposed else shape[::-1]
    context.check_shape(a, (rank, num_in), target)
    context.check_shape(b, (num_out, rank), target)
    change = LowRankChange(
        (Factors(a, b, scale, adapter.weight),),
        is_transposed,
        is_rounded=(on_embedding or as_parameter) and adapter.weight is None,
    )
    return [(target.name, change)]


def _add(one: Change, other: Change) -> Change:
    assert isinstance(one, LowRankChange) and isinstance(other, LowRankChange)  # noqa: S101
    return replace(one, factors=(*one.factors, *other.factors))


def _unsupported(config: Config) -> list[str]:
    value = config.get("init_lora_weights")
    return [] if value in NEUTRAL_INITIALISATIONS else [f"init_lora_weights={value!r}"]


METHOD = Method(
    title="LoRA",
    peft_types=frozenset({"LORA"}),
    options=LoraOptions,
    neutral=LORA_NEUTRAL_OPTIONS,
    unsupported=_unsupported,
    suffixes={
        ".lora_A.weight": LORA_A,
        ".lora_B.weight": LORA_B,
        ".lora_embedding_A": Part("lora_embedding_A"),
        ".lora_embedding_B": Part("lora_embedding_B"),
    },
    make=_make,
    makes=(LowRankChange,),
    wants=want_targeted_weight,
    named_by=frozenset({"target_modules", "target_parameters"}),
    add=_add,
)  # fmt: skip

PART_NAMES = frozenset(part.name for part in METHOD.suffixes.values())
