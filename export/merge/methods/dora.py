"""DoRA (`use_dora`): each row of LoRA's result, scaled to a trained length m.

m·(W + s·BA)/‖W + s·BA‖ (Liu et al., arXiv:2402.09353).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

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
from export.weights.families import is_conv1d
from export.weights.tensor_file import Stored
from tuneline.core.errors import ArtifactError
from tuneline.models.adapter_options import DoraOptions

MAGNITUDE = Part("lora_magnitude_vector")


@dataclass(frozen=True)
class RowLengths(Change):
    """Each row scaled to a given length."""

    lengths: Stored

    def load(self, dtype: torch.dtype) -> RowFunction:  # noqa: ARG002
        lengths = self.lengths.read()

        def change(block: torch.Tensor, start: int, stop: int) -> torch.Tensor:
            norm = torch.linalg.norm(block, dim=1)
            return block.mul_((lengths[start:stop] / norm).unsqueeze(1))

        return change


def _make(context: MergeContext, module: str, parts: Parts) -> Changes:
    where = context.adapter.weights.path
    lengths = parts.get(MAGNITUDE.name)
    is_on = bool(context.adapter.config.get("use_dora"))
    if lengths is None:
        if is_on:
            raise ArtifactError(
                f"{where}: {module}: has no {MAGNITUDE.name}; expected one, because use_dora is on"
            )
        return []
    if not is_on:
        raise ArtifactError(
            f"{where}: {lengths.name}: is a magnitude vector; expected none, because use_dora is "
            "off"
        )
    target, shape = context.matrix(module, lengths)
    on_embedding = "lora_embedding_A" in parts
    if on_embedding or is_conv1d(context.base.config, module):
        what = "an embedding" if on_embedding else "a Conv1D weight"
        raise ArtifactError(f"{where}: {lengths.name}: DoRA on {what} is not supported")
    context.check_shape(lengths, shape[:1], target)
    return [(target.name, RowLengths(lengths))]


def _wants(config: Config, tensor: BaseTensor) -> Iterator[Want]:  # noqa: ARG001
    yield from ()  # `_make` demands a magnitude of every module that LoRA changes


METHOD = Method(
    title="DoRA",
    peft_types=frozenset({"LORA"}),
    options=DoraOptions,
    suffixes={".lora_magnitude_vector": MAGNITUDE, ".lora_magnitude_vector.weight": MAGNITUDE},
    on="LoRA",
    make=_make,
    makes=(RowLengths,),
    wants=_wants,
)
