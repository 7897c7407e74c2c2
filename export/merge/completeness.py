"""Whether an adapter holds everything that its options name.

Options name modules as they are called in memory, and PEFT's own rules say which of the base's
tensors they mean (`check_target_module_exists`, `_set_trainable` in PEFT 0.21.2).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from export.merge.adapter import Adapter, matches
from export.merge.deltas import (
    BiasChange,
    Edit,
    ExpertChange,
    LowRankChange,
    StackedExpertsChange,
    TokenRows,
)
from export.merge.naming import Naming
from export.merge.tied_head import ties_changes
from export.weights.families import EMBEDDINGS
from export.weights.model_folder import ModelFolder
from tuneline.core.errors import ArtifactError
from tuneline.models.adapter_config import ADAPTER_CONFIG

LOW_RANK = (LowRankChange, ExpertChange, StackedExpertsChange)


def check_complete(
    adapter: Adapter, base: ModelFolder, naming: Naming, edits: dict[str, Edit]
) -> None:
    """An adapter file that lost some of its tensors would merge without a word.

    Args:
        adapter: Its options.
        base: The base, whose tensors the options mean.
        naming: What they are called in memory.
        edits: What the adapter makes of each tensor, by the name in the base's files.

    Raises:
        ArtifactError: An option means a tensor that the adapter has nothing for, or none at all.
    """
    where = adapter.weights.path
    met: set[tuple[str, Any]] = set()
    wanted: dict[str, set[str]] = {}
    for name, called in naming.by_file().items():
        for option, target in _wanted(adapter.config, base, name, called):
            met.add((option, target))
            wanted.setdefault(name, set()).add(option)
            if not _is_there(adapter, base, edits, option, name) and not base.is_left_out(name):
                raise ArtifactError(
                    f"{where}: has nothing for {called.removesuffix('.weight')}, which {option} in "
                    f"{ADAPTER_CONFIG} names: the adapter is incomplete"
                )
    if base.embedding is not None and ties_changes(adapter, base):
        both = wanted.get(base.embedding, set()) | wanted.get(base.head, set())
        wanted |= {base.embedding: both, base.head: both}
    _check_nothing_more(adapter, wanted, edits)
    for option in ("modules_to_save", "target_parameters", "trainable_token_indices"):
        for target in adapter.config.get(option) or []:
            if isinstance(target, str) and (option, target) not in met:
                raise ArtifactError(
                    f"{where}: has nothing for {target}, which {option} in {ADAPTER_CONFIG} names: "
                    f"the base {base.path} has no such tensor",
                    hint=adapter.named_base,
                )


def _check_nothing_more(
    adapter: Adapter, wanted: dict[str, set[str]], edits: dict[str, Edit]
) -> None:
    """PEFT does not load a change that the options do not name: the live model is without it."""
    if adapter.config.get("target_modules") in (None, "all-linear"):
        return  # PEFT finds these out from the model
    for name, edit in edits.items():
        is_low_rank = any(
            isinstance(one, LowRankChange | ExpertChange | StackedExpertsChange)
            for one in edit.changes
        )
        if is_low_rank and not wanted.get(name, set()) & {"target_modules", "target_parameters"}:
            raise ArtifactError(
                f"{adapter.weights.path}: changes {name}, which no option in {ADAPTER_CONFIG} names"
            )


def _wanted(
    config: dict[str, Any], base: ModelFolder, name: str, called: str
) -> Iterator[tuple[str, Any]]:
    """The options that mean a tensor, each with which of its values does."""
    module, _, kind = called.rpartition(".")
    path = module.split(".")
    above = [".".join(path[: length + 1]) for length in range(len(path))]
    saved = [
        target
        for target in config.get("modules_to_save") or []
        if any(one.endswith(target) for one in above)
    ]
    for target in saved:
        yield "modules_to_save", target
    for target in config.get("target_parameters") or []:
        if matches([target], called):
            yield "target_parameters", target
    if kind == "weight":
        indices = config.get("trainable_token_indices") or []
        if isinstance(indices, dict):
            for target in indices:
                if module.endswith(target):
                    yield "trainable_token_indices", target
        elif indices and name == base.embedding:
            yield "trainable_token_indices", None
    if saved:
        return
    targeted = is_targeted(config, module)
    if targeted and kind == "weight":
        yield "target_modules", None
        if config.get("lora_bias") and path[-1] not in EMBEDDINGS:
            yield "lora_bias", None
    bias = config.get("bias", "none")
    if kind == "bias" and (bias == "all" or (bias == "lora_only" and targeted)):
        yield "bias", None


def _is_there(
    adapter: Adapter, base: ModelFolder, edits: dict[str, Edit], option: str, name: str
) -> bool:
    """Whether the adapter has what an option makes of a tensor."""
    shared = [name]
    if base.is_tied and name in (base.head, base.embedding) and base.embedding is not None:
        rows = adapter.config.get("trainable_token_indices")
        same_rows = isinstance(rows, dict) and len({tuple(one) for one in rows.values()}) == 1
        # What PEFT ties it may save once: trained tokens always, where the rows are the same.
        if ties_changes(adapter, base) or (option == "trainable_token_indices" and same_rows):
            shared = [base.embedding, base.head]
    if option == "lora_bias":
        shared = [f"{name.removesuffix('.weight')}.bias"]
    found = [edits[one] for one in shared if one in edits]
    if option in ("modules_to_save", "bias"):
        return any(edit.whole is not None for edit in found)
    kinds: tuple[type, ...] = LOW_RANK
    if option == "lora_bias":
        kinds = (BiasChange,)
    if option == "trainable_token_indices":
        kinds = (TokenRows,)
    return any(isinstance(change, kinds) for edit in found for change in edit.changes)


def is_targeted(config: dict[str, Any], module: str) -> bool:
    """Whether LoRA goes onto a module by `target_modules` and what limits it."""
    targets, excluded = config.get("target_modules"), config.get("exclude_modules")
    if isinstance(excluded, str) and excluded and re.fullmatch(excluded, module):
        return False
    if matches(excluded, module):
        return False
    if isinstance(targets, str):
        return re.fullmatch(targets, module) is not None
    if not matches(targets, module):
        return False
    layers = config.get("layers_to_transform")
    if layers is None or layers == [] or (targets and module in targets):
        return True
    patterns = config.get("layers_pattern") or r"[^.]*"
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        match = re.match(rf"(?:^|.*?\.){pattern}\.(?P<index>\d+)\.", module)
        if match:
            return int(match["index"]) in (layers if isinstance(layers, list) else [layers])
    return False
