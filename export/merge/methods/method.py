"""The form of a PEFT method: what the merge must know to read, apply and check its tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from export.weights.blocks import Change
from export.weights.model_folder import ModelFolder
from export.weights.tensor_file import TORCH_DTYPES, Stored, TensorEntry
from tuneline.core.errors import ArtifactError
from tuneline.models.schemas import JsonForm

if TYPE_CHECKING:
    from export.merge.adapter import Adapter
    from export.merge.naming import Naming

Config = Mapping[str, Any]
"""The options in adapter_config.json."""
Parts = Mapping[str, Stored]
"""The tensors that an adapter has for one module, by the name of the part."""
Changes = list[tuple[str, Change]]
"""Changes, each with the name of its tensor in the base's files."""


@dataclass(frozen=True)
class Edit:
    """The edit of one tensor: a copy from the adapter, changes, or changes of a copy."""

    copy: Stored | None = None
    changes: tuple[Change, ...] = ()


Edits = Mapping[str, Edit]
"""Edits, by the name of the tensor in the base's files."""


@dataclass(frozen=True)
class Part:
    """One kind of tensor in an adapter."""

    name: str
    """The name in messages, e.g. `lora_A`."""
    ending: str = ".weight"
    """The tensor of the module that the part belongs to; empty if the name is that tensor's own."""
    is_copy: bool = False
    """Whether the tensor replaces the base's."""


@dataclass(frozen=True)
class BaseTensor:
    """A tensor of the base, as the options of an adapter see it."""

    stored: str
    """The name in the files, e.g. `model.layers.0.self_attn.q_proj.weight`."""
    name: str
    """The name in memory."""
    is_embedding: bool
    is_saved: bool
    """Whether `modules_to_save` names its module."""
    is_targeted: bool
    """Whether `target_modules` and the options that limit it name its module."""

    @property
    def module(self) -> str:
        return self.name.rpartition(".")[0]

    @property
    def kind(self) -> str:
        """`weight`, `bias`, or the name of another parameter."""
        return self.name.rpartition(".")[2]


class Want(NamedTuple):
    """A tensor that an option demands from the adapter."""

    option: str
    target: Any
    """The value of the option that names the tensor; None if the option has a single value."""
    tensor: str
    """The name of the changed tensor in the base's files."""


@dataclass(frozen=True)
class MergeContext:
    """One adapter, its base, and the names that connect the two."""

    adapter: Adapter
    base: ModelFolder
    naming: Naming
    copies: Mapping[str, Stored] = field(default_factory=dict)
    """Tensors that the adapter replaces, by their names in the base's files."""
    recent: dict[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    """Matrices of fused experts that were read last; changes of one adapter share them."""

    def target(self, name: str, source: Stored) -> TensorEntry:
        """Return the base tensor that is called `name` in memory.

        A tied output layer that is not stored has the shape of its embedding.

        Raises:
            ArtifactError: The base has no such tensor, or cannot be computed in its number format.
        """
        base, stored = self.base, self.naming.tensors.get(name)
        if stored in base.tensors:
            self.check_format(stored)
            return base.tensors[stored]
        if stored is not None and stored == base.head and base.embedding is not None:
            return replace(base.tensors[base.embedding], name=stored)
        raise ArtifactError(
            f"{self.adapter.weights.path}: {source.name}: the base {base.path} has no tensor "
            f"{name}",
            hint=self.adapter.named_base,
        )

    def shape_of(self, target: TensorEntry) -> tuple[int, ...]:
        """Return the shape that changes meet: that of the copy if the adapter has one."""
        copy = self.copies.get(target.name)
        return copy.shape if copy else target.shape

    def matrix(self, module: str, source: Stored) -> tuple[TensorEntry, tuple[int, int]]:
        """Return a module's weight and its shape, which has two dimensions.

        Raises:
            ArtifactError: The base has no such weight, or the weight has another shape.
        """
        target = self.target(f"{module}.weight", source)
        shape = self.shape_of(target)
        if len(shape) != 2:
            raise ArtifactError(
                f"{self.adapter.weights.path}: {source.name}: changes {target.name} of shape "
                f"{list(shape)}; expected a weight of two dimensions"
            )
        return target, (shape[0], shape[1])

    def check_format(self, name: str) -> None:
        """Refuse a base tensor in a number format that nothing can be added to."""
        dtype = self.base.tensors[name].dtype
        if dtype not in TORCH_DTYPES:
            raise ArtifactError(
                f"{self.base.path}: {name} is stored as {dtype}; expected one of "
                f"{', '.join(TORCH_DTYPES)}, which an adapter can be merged into"
            )

    def check_shape(self, source: Stored, expected: Sequence[int], target: TensorEntry) -> None:
        """Refuse an adapter tensor that does not fit its base tensor."""
        if tuple(source.shape) != tuple(expected):
            raise ArtifactError(
                f"{self.adapter.weights.path}: {source.name}: has shape {list(source.shape)}; "
                f"expected {list(expected)} to fit {target.name} of shape {list(target.shape)}. "
                "The adapter belongs to another base, or its options are not its own",
                hint=self.adapter.named_base,
            )

    def require_parts(self, module: str, parts: Parts, *expected: str) -> None:
        """Refuse a module that has other parts than `expected`."""
        if parts.keys() != set(expected):
            raise ArtifactError(
                f"{self.adapter.weights.path}: {module}: has {', '.join(sorted(parts))}; expected "
                f"{' and '.join(expected)}"
            )

    def is_head(self, target: TensorEntry) -> bool:
        """Return whether the output layer multiplies by a tensor."""
        tied = self.base.embedding if self.base.is_tied else None
        return target.name in (self.base.head, tied)

    def bias_of_head(self) -> str | None:
        """Return the name of the output layer's bias, if it has one."""
        name = f"{self.base.head.removesuffix('.weight')}.bias"
        return name if name in self.base.tensors else None


def _makes_nothing(context: MergeContext, module: str, parts: Parts) -> Changes:  # noqa: ARG001
    return []


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way in which PEFT changes a tensor: a row of the table of methods."""

    title: str
    """The name in messages."""
    peft_types: frozenset[str] | None
    """The values of `peft_type` under which PEFT saves such tensors; None for all."""
    options: type[JsonForm]
    """The options of adapter_config.json that the method reads, with their types."""
    neutral: frozenset[str] = frozenset()
    """Further options that do not change the meaning of a merge, whatever their values."""
    unsupported: Callable[[Config], list[str]] = lambda config: []  # noqa: ARG005
    """Returns the options whose values the method cannot merge, each as `name=value`."""
    suffixes: Mapping[str, Part] = field(default_factory=dict)
    """How the names of its tensors end, behind the name of the module."""
    claims: Callable[[Config, str], bool] = lambda config, name: False  # noqa: ARG005
    """Returns whether a tensor of the base, saved under its own name, is the method's copy."""
    takes: Callable[[MergeContext, str], bool] = lambda context, module: True  # noqa: ARG005
    """Returns whether the method applies to a module; the first method that does has its parts."""
    on: str | None = None
    """The title of the method whose changes it continues; None for a method of its own."""
    make: Callable[[MergeContext, str, Parts], Changes] = _makes_nothing
    """Turns the parts of a module into changes. Raises ArtifactError if they do not fit."""
    makes: tuple[type[Change], ...] = ()
    """The classes of its changes."""
    wants: Callable[[Config, BaseTensor], Iterator[Want]]
    """Yields what the method's options demand for a tensor of the base."""
    named_by: frozenset[str] = frozenset()
    """Options of which one must name a tensor that the method changes: PEFT does not load the
    change of any other. Empty if PEFT loads every change."""
    add: Callable[[Change, Change], Change] | None = None
    """Adds two weighted changes of one tensor; None if the changes have no weighted share."""
    is_always_tied: bool = False
    """Whether PEFT puts a change of a tied embedding onto the output layer whatever
    `ensure_weight_tying` says."""
    is_saved_once: Callable[[Config], bool] = lambda config: False  # noqa: ARG005
    """Returns whether PEFT saves one tensor for a tied embedding and its output layer."""
