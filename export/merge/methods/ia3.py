"""(IA)³: the outputs of a module, or its inputs, scaled by a trained vector.

For a weight W of shape (out, in), each row is scaled by its value of l, and so is the bias. In the
modules of `feedforward_modules`, each column is scaled (Liu et al., arXiv:2205.05638).
"""

from __future__ import annotations

import re
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
from export.weights.families import EMBEDDINGS, is_conv1d
from export.weights.tensor_file import Stored
from tuneline.core.errors import ArtifactError
from tuneline.models.schemas import JsonForm, Names, Pattern

VECTOR = Part("ia3_l")


class Ia3Options(JsonForm):
    """The option of adapter_config.json that says whose inputs are scaled."""

    feedforward_modules: Names | Pattern | None = None


@dataclass(frozen=True)
class VectorScale(Change):
    """Each row, or each column, times its value of a vector."""

    vector: Stored
    by_column: bool

    def load(self, dtype: torch.dtype) -> RowFunction:  # noqa: ARG002
        vector = self.vector.read().reshape(-1)

        def change(block: torch.Tensor, start: int, stop: int) -> torch.Tensor:
            return block.mul_(vector if self.by_column else vector[start:stop].unsqueeze(1))

        return change


def _scales_inputs(config: Config, module: str) -> bool:
    """Return whether a module is one of `feedforward_modules`, by PEFT's rule."""
    targets = config.get("feedforward_modules")
    if isinstance(targets, str):
        return re.fullmatch(targets, module) is not None
    return any(module.endswith(target) for target in targets or [])


def _make(context: MergeContext, module: str, parts: Parts) -> Changes:
    vector = parts[VECTOR.name]
    target, shape = context.matrix(module, vector)
    if module.rpartition(".")[2] in EMBEDDINGS:
        raise ArtifactError(
            f"{context.adapter.weights.path}: {vector.name}: changes {target.name}; expected the "
            "weight of a linear layer, which is all that PEFT puts (IA)³ on"
        )
    is_transposed = is_conv1d(context.base.config, module)
    num_out, num_in = shape[::-1] if is_transposed else shape
    scales_inputs = _scales_inputs(context.adapter.config, module)
    context.check_shape(vector, (1, num_in) if scales_inputs else (num_out, 1), target)
    by_column = scales_inputs is not is_transposed
    changes: Changes = [(target.name, VectorScale(vector, by_column))]
    if f"{module}.bias" in context.naming.tensors and not scales_inputs:
        bias = context.target(f"{module}.bias", vector)
        changes.append((bias.name, VectorScale(vector, by_column=False)))
    return changes


def _wants(config: Config, tensor: BaseTensor) -> Iterator[Want]:
    """Yield the weight of each targeted module, and its bias if the outputs are scaled."""
    kinds = ("weight",) if _scales_inputs(config, tensor.module) else ("weight", "bias")
    if tensor.is_targeted and not tensor.is_saved and tensor.kind in kinds:
        yield Want("target_modules", None, tensor.stored)


def _unsupported(config: Config) -> list[str]:
    """PEFT completes a missing `feedforward_modules` from a table of families."""
    return ["feedforward_modules=None"] if config.get("feedforward_modules") is None else []


METHOD = Method(
    title="(IA)³",
    peft_types=frozenset({"IA3"}),
    options=Ia3Options,
    neutral=frozenset({"fan_in_fan_out", "init_ia3_weights"}),
    unsupported=_unsupported,
    suffixes={".ia3_l": VECTOR},
    make=_make,
    makes=(VectorScale,),
    wants=_wants,
    named_by=frozenset({"target_modules"}),
)
