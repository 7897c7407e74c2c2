"""The plan of a merge: what the adapters make of each tensor of their base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from export.merge.adapter import Adapter
from export.merge.adapter_edits import read_edits
from export.merge.methods import saved_modules
from export.merge.methods.method import Edit
from export.merge.methods.table import method_of
from export.merge.tied_head import settle_tied_head
from export.weights.blocks import Change
from export.weights.families import HEAD
from export.weights.model_folder import ModelFolder
from export.weights.tensor_file import Stored, same_values
from tuneline.core.errors import ArtifactError


@dataclass(frozen=True)
class Planned:
    """A changed tensor of the result: the source of its bytes, and the changes of its rows."""

    source: Stored
    changes: tuple[Change, ...]


@dataclass(frozen=True)
class MergePlan:
    """The tensors that differ from the base's, by name; all others pass as they are."""

    tensors: dict[str, Planned]
    untied: str | None
    """Name of the output layer that the base ties to its embedding and the result does not."""
    num_tokens: int | None
    """Rows of a resized embedding."""
    score: Stored | None = None
    """The score layer of a reward model, which takes the place of the output layer."""


def plan_merge(adapters: Sequence[Adapter], base: ModelFolder) -> MergePlan:
    """Return which base tensor each adapter tensor changes, and how.

    Every adapter tensor is used exactly once and every shape fits, or nothing is returned. Where
    the base ties its output layer to its embedding, the result is what the live adapter model
    computes: the two stay tied as long as they are equal, else the output layer is written too.

    Raises:
        ArtifactError: A tensor has a name of no known kind, has no counterpart, or does not fit; or
            the changes of several adapters cannot be summed. The message names it.
    """
    edits: dict[str, Edit] = {}
    for adapter in adapters:
        for name, edit in read_edits(adapter, base).items():
            one = edit
            if len(adapters) > 1 or adapter.weight is not None:
                one = _weighted(adapter, base, name, edit)
            edits[name] = _add(edits[name], one) if name in edits else one
    untied = None
    if base.is_tied:
        edits, untied = settle_tied_head(adapters, base, edits)
    tensors = {}
    for name, edit in edits.items():
        tied_name = base.embedding if name == untied and base.embedding else name
        tensors[name] = Planned(edit.copy or base.stored(tied_name), edit.changes)
    return MergePlan(tensors, untied, _num_tokens(base, tensors))


def _weighted(adapter: Adapter, base: ModelFolder, name: str, edit: Edit) -> Edit:
    """Return an edit of which a weighted share can be taken: changes of a method that adds them.

    Raises:
        ArtifactError: The edit has a copy that differs from the base, or another method made it.
    """
    where = adapter.weights.path
    merges_alone = "has no weighted share; expected one adapter, without a weight"
    if edit.copy is not None:
        shared = base.embedding if name == base.head and base.is_tied else name
        if not same_values(edit.copy, base.stored(shared or name)):
            raise ArtifactError(
                f"{where}: {edit.copy.name}: {saved_modules.METHOD.title} {merges_alone}"
            )
    for change in edit.changes:
        method = method_of(change)
        if method.add is None:
            raise ArtifactError(f"{where}: {name}: {method.title} {merges_alone}")
    return Edit(None, edit.changes)


def _add(one: Edit, other: Edit) -> Edit:
    """Return the sum of two weighted edits, each of at most one change."""
    if not one.changes or not other.changes:
        return one if one.changes else other
    (mine,), (its,) = one.changes, other.changes
    add = method_of(mine).add
    assert add is not None  # noqa: S101  # `_weighted` refuses the others
    return Edit(None, (add(mine, its),))


def _num_tokens(base: ModelFolder, tensors: dict[str, Planned]) -> int | None:
    """Return the rows of a resized vocabulary, on which embedding and output layer must agree.

    Some bases have more rows in the embedding themselves (Llama 3.2 Vision, Moshi).
    """
    embedding, head = base.embedding, base.head
    rows, before = {}, {}
    for name in (embedding, head, f"{HEAD}.bias"):
        if name in base.tensors:
            rows[name] = before[name] = base.tensors[name].shape[0]
        if name in tensors:
            rows[name] = tensors[name].source.shape[0]
    if rows != before and len(set(rows.values())) > 1:
        found = ", ".join(f"{name} has {count}" for name, count in rows.items())
        raise ArtifactError(
            f"{base.path}: the vocabulary is resized in part: {found} rows; expected the same "
            "number in each",
            hint="Try: save the adapter with save_embedding_layers=True.",
        )
    resized = embedding in tensors and tensors[embedding].source.shape[0]
    if not resized or embedding is None or resized == base.tensors[embedding].shape[0]:
        return None
    return resized
