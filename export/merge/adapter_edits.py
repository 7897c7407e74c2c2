"""The edits that one adapter makes to the tensors of its base.

Every tensor of the adapter is mapped to the base tensor that it replaces or changes, every shape is
checked, and every tensor is used once. Nothing is computed here.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from export.merge.adapter import Adapter, AdapterTensor
from export.merge.completeness import check_complete
from export.merge.methods.method import Changes, Edit, MergeContext, Method
from export.merge.methods.table import methods_of
from export.merge.naming import Naming, namings
from export.weights.blocks import Change
from export.weights.families import EMBEDDINGS, HEAD, NEOX_HEAD
from export.weights.model_folder import ModelFolder
from export.weights.tensor_file import Stored, TensorEntry, same_values
from tuneline.core.errors import ArtifactError


def read_edits(adapter: Adapter, base: ModelFolder) -> dict[str, Edit]:
    """Return one adapter's edits.

    Raises:
        ArtifactError: A tensor has a name of no known kind, has no counterpart in the base or does
            not fit it, or the adapter lacks a tensor that its options demand.
    """
    candidates = namings(adapter, base)
    try:
        return _edits_under(adapter, base, next(candidates))
    except ArtifactError:
        for naming in candidates:
            with suppress(ArtifactError):
                return _edits_under(adapter, base, naming)
        raise


def _edits_under(adapter: Adapter, base: ModelFolder, naming: Naming) -> dict[str, Edit]:
    """Return the adapter's edits under one naming of the base's tensors."""
    context = MergeContext(adapter, base, naming)
    context = replace(context, copies=_read_copies(context))
    changes = _read_changes(context)
    names = dict.fromkeys([*context.copies, *changes])
    edits = {name: Edit(context.copies.get(name), changes.get(name, ())) for name in names}
    check_complete(context, edits)
    return edits


def _read_copies(context: MergeContext) -> dict[str, Stored]:
    """Return the tensors that the adapter replaces, by their names in the base's files."""
    adapter = context.adapter
    names = {entry.name for entry in adapter.weights.entries}
    copies: dict[str, Stored] = {}
    for tensor in adapter.tensors():
        if not tensor.part.is_copy or _is_second_copy(adapter, tensor.stored, names):
            continue
        target = context.target(tensor.target, tensor.stored)
        _check_copy(context, tensor, target)
        if target.name in copies:
            raise ArtifactError(
                f"{adapter.weights.path}: {copies[target.name].name} and {tensor.stored.name} both "
                f"replace {target.name}; expected one of them"
            )
        copies[target.name] = tensor.stored
    return copies


def _is_second_copy(adapter: Adapter, stored: Stored, names: set[str]) -> bool:
    """Return whether a tensor is one of the two that PEFT saves next to a module of
    `modules_to_save` whose vocabulary was resized: the trained tensor again, or the tensor before
    the training, which the live model does not use.

    Raises:
        ArtifactError: The trained tensor differs from its second copy.
    """
    for wrapper in (".modules_to_save.", ".original_module."):
        before, found, after = stored.name.partition(wrapper)
        if not found or f"{before}.{after}" not in names:
            continue
        if wrapper == ".modules_to_save.":
            (trained,) = (e for e in adapter.weights.entries if e.name == f"{before}.{after}")
            if not same_values(stored, Stored(adapter.weights, trained)):
                raise ArtifactError(
                    f"{adapter.weights.path}: {stored.name} differs from {trained.name}; expected "
                    "the same tensor twice"
                )
        return True
    return False


def _check_copy(context: MergeContext, tensor: AdapterTensor, target: TensorEntry) -> None:
    """Refuse a copy of another shape than the base's; only the rows of a vocabulary may differ."""
    module = target.name.rpartition(".")[0]
    is_vocabulary = module.rpartition(".")[2] in (*EMBEDDINGS, HEAD, NEOX_HEAD)
    rows = tensor.stored.shape[:1]
    expected = (*rows, *target.shape[1:]) if is_vocabulary and rows else target.shape
    context.check_shape(tensor.stored, expected, target)


def _read_changes(context: MergeContext) -> dict[str, tuple[Change, ...]]:
    """Return the changes of each tensor, by its name in the base's files."""
    where = context.adapter.weights.path
    modules: dict[str, dict[str, Stored]] = {}
    for tensor in context.adapter.tensors():
        if tensor.part.is_copy:
            continue
        parts = modules.setdefault(tensor.module, {})
        if tensor.part.name in parts:
            raise ArtifactError(f"{where}: {tensor.stored.name} appears twice; expected it once")
        parts[tensor.part.name] = tensor.stored
    found: dict[str, tuple[Change, ...]] = {}
    for module, parts in modules.items():
        changes: dict[str, tuple[Change, ...]] = {}
        for name, change in _changes_of(context, module, parts):
            changes[name] = (*changes.get(name, ()), change)
        for name in changes.keys() & found.keys():
            raise ArtifactError(
                f"{where}: {module}: changes {name}, which another module of the adapter changes "
                "too; expected one of them"
            )
        found |= changes
    return found


def _changes_of(context: MergeContext, module: str, parts: dict[str, Stored]) -> Changes:
    """Return the changes of one module: of one method, and of the methods that continue it."""
    methods = [one for one in methods_of(context.adapter.config) if one.takes(context, module)]
    owners: dict[str, Method] = {}
    for name in parts:
        owner = next(method for method in methods if name in _part_names(method))
        owners[owner.title] = owner
    first = [title for title, method in owners.items() if method.on is None]
    if len(first) != 1 or any(one.on not in (None, first[0]) for one in owners.values()):
        raise ArtifactError(
            f"{context.adapter.weights.path}: {module}: has {', '.join(sorted(parts))}, which do "
            "not go together; expected the tensors of one method"
        )
    found: Changes = []
    for method in methods:
        if method.title == first[0] or method.on == first[0]:
            found += method.make(context, module, parts)
    return found


def _part_names(method: Method) -> set[str]:
    return {part.name for part in method.suffixes.values()}
