"""What an adapter does to one base tensor, computed row by row.

For a weight W of shape (out, in), B of shape (out, r) and A of shape (r, in), LoRA is
W + s·BA with s = alpha/r (Hu et al., arXiv:2106.09685), or alpha/√r when rank-stabilized
(Kalajdzievski, arXiv:2312.03732). DoRA scales each row of that to a learnt length m:
m·(W + s·BA)/‖W + s·BA‖ (Liu et al., arXiv:2402.09353). An embedding of shape (vocabulary, out)
takes the transpose of the product. All of these need one row of W at a time, which is what lets
the merge stream.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch

from export.weights.blocks import Change, RowFunction, product_rows
from export.weights.tensor_file import Stored, pieces_of
from tuneline.core.environment import require

NF4_BLOCK = 64


@dataclass(frozen=True)
class Factors:
    """One adapter's A and B, its scale s, and its weight where several adapters are summed."""

    a: Stored
    b: Stored
    scale: float
    weight: float | None = None


@dataclass(frozen=True)
class LowRankChange(Change):
    """W + s·BA, or DoRA's rescaling of it where there is a magnitude."""

    factors: tuple[Factors, ...]
    magnitude: Stored | None = None
    transposed: bool = False
    """Whether W is stored as (in, out): GPT-2's Conv1D, and embeddings."""
    rounded: bool = False
    """Whether the product is rounded to W's number format before it is added, as PEFT does to
    embeddings and to `target_parameters`."""

    def load(self, dtype: torch.dtype) -> RowFunction:
        """The change of a block of rows, for a W kept in `dtype`."""
        a, b, scale = joined_factors(self.factors)
        magnitude = self.magnitude.read() if self.magnitude else None
        space = torch.empty(0)

        def change(block: torch.Tensor, start: int, stop: int) -> torch.Tensor:
            nonlocal space
            low, _ = product_rows(start, stop, stop)
            size = (stop - low) * block.shape[1]
            if space.numel() < size:
                space = torch.empty(size)
            if self.transposed:
                product = space[:size].view(block.shape[1], stop - low)
                product = torch.mm(b, a[:, low:stop], out=product).T
            else:
                product = space[:size].view(stop - low, block.shape[1])
                torch.mm(b[low:stop], a, out=product)
            delta = product[start - low :]
            if scale != 1:
                delta = delta.mul_(scale)
            total = block.add_(delta.to(dtype) if self.rounded else delta)
            if magnitude is None:
                return total
            norm = torch.linalg.norm(total, dim=1)
            return total.mul_((magnitude[start:stop] / norm).unsqueeze(1))

        return change


def joined_factors(factors: tuple[Factors, ...]) -> tuple[torch.Tensor, torch.Tensor, float]:
    """A, B and s of the sum of several products: A stacked over its rank with the scales and
    weights in it, B beside one another, as PEFT's `add_weighted_adapter` with `cat` does."""
    first = factors[0]
    if len(factors) == 1 and first.weight is None:
        a, b = first.a.read(), first.b.read()
        if math.frexp(first.scale)[0] == 0.5:  # a power of two: exact wherever it is applied
            return a, b.mul_(first.scale), 1.0
        return a, b, first.scale
    a = torch.cat([term.a.read() * (term.weight or 0.0) * term.scale for term in factors])
    b = torch.cat([term.b.read() for term in factors], dim=1)
    return a, b, 1.0


@dataclass(frozen=True)
class ExpertChange(Change):
    """W + s·BA of one expert, whose A and B lie among those of all experts of its layer.

    A has shape (experts · r, in), expert by expert; B has shape (out, r · experts), with the
    experts innermost. `first_row` says where this tensor's rows begin in a B that serves two
    tensors (gate and up).
    """

    factors: Factors
    expert: int
    num_experts: int
    first_row: int
    recent: dict[str, tuple[torch.Tensor, torch.Tensor]] = field(repr=False, compare=False)
    """The matrices of the last two modules: each is read once, though its experts take turns."""

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
    """W + s·BA of all experts of a layer, which the files hold in one tensor of shape
    (experts, out, in) or, transposed, (experts, in, out). Its rows are those of all experts, one
    after the other."""

    factors: Factors
    num_experts: int
    transposed: bool

    def load(self, dtype: torch.dtype) -> RowFunction:
        a, b = _by_expert(self.factors, self.num_experts)
        num_rows = a.shape[2] if self.transposed else b.shape[1]

        def change(block: torch.Tensor, start: int, stop: int) -> torch.Tensor:
            for expert in range(start // num_rows, -(-stop // num_rows)):
                first = max(start, expert * num_rows)
                last = min(stop, (expert + 1) * num_rows)
                from_row, to_row = first - expert * num_rows, last - expert * num_rows
                low, high = product_rows(from_row, to_row, num_rows)
                if self.transposed:
                    product = (b[expert] @ a[expert][:, low:high]).T
                else:
                    product = b[expert][low:high] @ a[expert]
                delta = product[from_row - low : to_row - low].mul(self.factors.scale)
                block[first - start : last - start].add_(delta.to(dtype))
            return block

        return change


def _by_expert(factors: Factors, num_experts: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A of shape (experts, r, in) and B of shape (experts, out, r)."""
    a, b = factors.a.read(), factors.b.read()
    return (
        a.reshape(num_experts, -1, a.shape[1]),
        b.reshape(b.shape[0], -1, num_experts).permute(2, 0, 1).contiguous(),
    )


@dataclass(frozen=True)
class BiasChange(Change):
    """The bias that `lora_bias` adds, scaled as the product is."""

    bias: Stored
    scale: float

    def load(self, dtype: torch.dtype) -> RowFunction:  # noqa: ARG002
        delta = self.bias.read() * self.scale

        def change(block: torch.Tensor, start: int, stop: int) -> torch.Tensor:
            return block.add_(delta[start:stop].unsqueeze(1))

        return change


@dataclass(frozen=True)
class TokenRows(Change):
    """Rows of an embedding or an output layer that were trained in place of the base's."""

    rows: Stored
    indices: tuple[int, ...]

    def load(self, dtype: torch.dtype) -> RowFunction:  # noqa: ARG002
        rows = self.rows.read()

        def change(block: torch.Tensor, start: int, stop: int) -> torch.Tensor:
            for row, index in enumerate(self.indices):
                if start <= index < stop:
                    block[index - start] = rows[row]
            return block

        return change


@dataclass(frozen=True)
class FourBitBase(Change):
    """W as a QLoRA training saw it: through NF4 with double quantization and back
    (Dettmers et al., arXiv:2305.14314). Each 64 values share a scale; the scales of a whole tensor
    are themselves quantized, which takes a first pass over it."""

    source: Stored

    def load(self, dtype: torch.dtype) -> RowFunction:  # noqa: ARG002
        bitsandbytes = require("bitsandbytes", "train").functional
        scales = self._scales(bitsandbytes)

        def change(block: torch.Tensor, start: int, stop: int) -> torch.Tensor:
            codes, state = bitsandbytes.quantize_4bit(
                block.contiguous(), blocksize=NF4_BLOCK, quant_type="nf4"
            )
            per_row = block.shape[1] // NF4_BLOCK
            state.absmax = scales[start * per_row : stop * per_row].contiguous()
            return bitsandbytes.dequantize_4bit(codes, state)

        return change

    def _scales(self, bitsandbytes: Any) -> torch.Tensor:
        """The largest magnitude of each 64 values, through its own quantization and back."""
        found = [
            piece.float().reshape(-1, NF4_BLOCK).abs().amax(dim=1)
            for piece in pieces_of(self.source)
        ]
        exact = torch.cat(found)
        offset = exact.mean()
        codes, state = bitsandbytes.quantize_blockwise(exact - offset, blocksize=256)
        return bitsandbytes.dequantize_blockwise(codes, state) + offset


@dataclass
class Edit:
    """What becomes of one tensor: taken whole from elsewhere, changed, or both in this order."""

    whole: Stored | None = None
    changes: list[Change] = field(default_factory=list)
