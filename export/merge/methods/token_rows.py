"""Trained tokens (`trainable_token_indices`): rows that replace those of an embedding or an output
layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

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
from export.weights.tensor_file import Stored, same_values
from tuneline.core.errors import ArtifactError
from tuneline.models.adapter_options import TokenOptions

OPTION = "trainable_token_indices"


@dataclass(frozen=True)
class TokenRows(Change):
    """Rows that were trained in place of the base's."""

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

    def is_same(self, other: Change) -> bool:
        return self is other or (
            isinstance(other, TokenRows)
            and self.indices == other.indices
            and same_values(self.rows, other.rows)
        )


def _make(context: MergeContext, module: str, parts: Parts) -> Changes:
    context.require_parts(module, parts, "trainable_tokens_delta")
    rows = parts["trainable_tokens_delta"]
    indices = context.adapter.config.get(OPTION)
    target, shape = context.matrix(module, rows)
    if isinstance(indices, dict):
        indices = _indices_of(context, indices, module, is_head=context.is_head(target))
    if (
        not isinstance(indices, list)
        or not all(type(index) is int and 0 <= index < shape[0] for index in indices)
        or len(set(indices)) != len(indices)
    ):
        raise ArtifactError(
            f"{context.adapter.config_path}: {OPTION} is {indices!r} for {module}; expected "
            f"different row numbers below {shape[0]}"
        )
    context.check_shape(rows, (len(indices), shape[1]), target)
    bias = context.bias_of_head()
    if context.is_head(target) and bias is not None:
        raise ArtifactError(
            f"{context.adapter.weights.path}: {rows.name}: trains tokens of an output layer that "
            f"has a bias ({bias}), which PEFT leaves out while they are trained; expected an "
            "output layer without a bias"
        )
    within = target.name.removesuffix("weight")
    more = [one for one in context.base.tensors if one.startswith(within) and one != target.name]
    if not context.is_head(target) and more:
        raise ArtifactError(
            f"{context.adapter.weights.path}: {rows.name}: trains tokens of an embedding with "
            f"further tensors ({more[0]}), which PEFT leaves out for all tokens while these are "
            "trained; expected an embedding of only its rows",
            hint="Try: train the embedding with modules_to_save.",
        )
    return [(target.name, TokenRows(rows, tuple(indices)))]


def _indices_of(
    context: MergeContext, indices: Mapping[str, Any], module: str, *, is_head: bool
) -> Any:
    """Return the trained tokens of a module. PEFT gives a tied output layer those of the embedding
    if the option does not name it."""
    names = [module]
    if is_head and context.base.is_tied and context.base.embedding is not None:
        names.append(context.base.embedding.removesuffix(".weight"))
    found = (value for name in names for key, value in indices.items() if name.endswith(key))
    return next(found, None)


def _wants(config: Config, tensor: BaseTensor) -> Iterator[Want]:
    indices = config.get(OPTION) or []
    if tensor.kind != "weight":
        return
    if isinstance(indices, dict):
        for target in indices:
            if tensor.module.endswith(target):
                yield Want(OPTION, target, tensor.stored)
    elif indices and tensor.is_embedding:
        yield Want(OPTION, None, tensor.stored)


def _is_saved_once(config: Config) -> bool:
    """PEFT saves the rows of a tied pair once if both train the same tokens."""
    indices = config.get(OPTION)
    return isinstance(indices, dict) and len({tuple(one) for one in indices.values()}) == 1


METHOD = Method(
    title="trained tokens",
    peft_types=frozenset({"LORA"}),
    options=TokenOptions,
    suffixes={".token_adapter.trainable_tokens_delta": Part("trainable_tokens_delta")},
    make=_make,
    makes=(TokenRows,),
    wants=_wants,
    is_always_tied=True,
    is_saved_once=_is_saved_once,
)
