"""Check that an adapter holds everything that its options name, and nothing else.

Options name modules by their names in memory. The rules that say which of the base's tensors they
mean are in the table of methods.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from export.merge.adapter import Adapter
from export.merge.methods.method import BaseTensor, Edits, MergeContext, Method, Want
from export.merge.methods.saved_modules import saved_by
from export.merge.methods.table import methods_of
from export.merge.methods.targets import is_targeted
from export.merge.tied_head import ties_changes
from export.weights.model_folder import ModelFolder
from tuneline.core.errors import ArtifactError
from tuneline.models.adapter_config import ADAPTER_CONFIG


def check_complete(context: MergeContext, edits: Edits) -> None:
    """Refuse an adapter that lost some of its tensors, or that has a change PEFT does not load.

    Without this check, the merge would succeed and the model would not be the trained one.

    Raises:
        ArtifactError: An option demands a tensor that the adapter does not have, an option names a
            module that the base does not have, or no option names a tensor that is changed.
    """
    adapter, base = context.adapter, context.base
    wanted: dict[str, set[str]] = {}
    met: set[tuple[str, Any]] = set()
    for tensor in _base_tensors(context):
        for method, want in _wants(adapter, tensor):
            met.add((want.option, want.target))
            wanted.setdefault(tensor.stored, set()).add(want.option)
            if base.is_left_out(tensor.stored) or _is_there(adapter, base, edits, method, want):
                continue
            raise ArtifactError(
                f"{adapter.weights.path}: has nothing for {tensor.name.removesuffix('.weight')}, "
                f"which {want.option} in {ADAPTER_CONFIG} names: the adapter is incomplete"
            )
    if base.embedding is not None and ties_changes(adapter, base):
        both = wanted.get(base.embedding, set()) | wanted.get(base.head, set())
        wanted |= {base.embedding: both, base.head: both}
    _check_nothing_more(adapter, wanted, edits)
    _check_targets_met(context, met)


def _base_tensors(context: MergeContext) -> Iterator[BaseTensor]:
    config = context.adapter.config
    for stored, name in context.naming.by_file().items():
        module = name.rpartition(".")[0]
        is_saved = bool(saved_by(config, module))
        is_embedding = stored == context.base.embedding
        yield BaseTensor(stored, name, is_embedding, is_saved, is_targeted(config, module))


def _wants(adapter: Adapter, tensor: BaseTensor) -> Iterator[tuple[Method, Want]]:
    """Yield what the options demand for a tensor; what several methods demand is yielded once."""
    seen: set[Want] = set()
    for method in methods_of(adapter.config):
        for want in method.wants(adapter.config, tensor):
            if want not in seen:
                seen.add(want)
                yield method, want


def _is_there(
    adapter: Adapter, base: ModelFolder, edits: Edits, method: Method, want: Want
) -> bool:
    """Return whether the adapter has a change that satisfies a demand."""
    shared = [want.tensor]
    pair = [base.embedding, base.head] if base.is_tied and base.embedding else []
    # PEFT may save one tensor for a pair that it ties.
    if want.tensor in pair and (
        ties_changes(adapter, base) or method.is_saved_once(adapter.config)
    ):
        shared = pair
    found = [edits[name] for name in shared if name in edits]
    if not method.makes:
        return any(edit.copy is not None for edit in found)
    makes = method.makes
    for other in methods_of(adapter.config):
        if want.option in other.named_by:
            makes += other.makes
    return any(isinstance(change, makes) for edit in found for change in edit.changes)


def _check_nothing_more(adapter: Adapter, wanted: dict[str, set[str]], edits: Edits) -> None:
    """Refuse a change that no option names: PEFT does not load it, so the live model is without."""
    if adapter.config.get("target_modules") in (None, "all-linear"):
        return  # PEFT finds these modules from the model
    for name, edit in edits.items():
        for method in methods_of(adapter.config):
            is_changed = any(isinstance(change, method.makes) for change in edit.changes)
            if is_changed and method.named_by and not wanted.get(name, set()) & method.named_by:
                raise ArtifactError(
                    f"{adapter.weights.path}: changes {name}, which no option in {ADAPTER_CONFIG} "
                    "names"
                )


def _check_targets_met(context: MergeContext, met: set[tuple[str, Any]]) -> None:
    """Refuse an option that names a module which the base does not have."""
    adapter = context.adapter
    for option in ("modules_to_save", "target_parameters", "trainable_token_indices"):
        named = [one for one in adapter.config.get(option) or [] if isinstance(one, str)]
        missing = [target for target in named if (option, target) not in met]
        # For `all-linear`, PEFT adds names of parameters that not every family has.
        if option == "target_parameters" and len(missing) < len(named):
            continue
        if missing:
            raise ArtifactError(
                f"{adapter.weights.path}: has nothing for {missing[0]}, which {option} in "
                f"{ADAPTER_CONFIG} names: the base {context.base.path} has no such tensor",
                hint=adapter.named_base,
            )
