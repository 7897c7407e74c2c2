"""Which modules an adapter changes: the options that all PEFT methods share.

PEFT's own rules are `check_target_module_exists` and `_set_trainable` in PEFT 0.21.2.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from export.merge.methods.method import BaseTensor, Config, Want


def matches(targets: Any, name: str) -> bool:
    """Return whether a list of targets holds a module's name, or the end of it."""
    return isinstance(targets, list) and any(
        name == target or name.endswith(f".{target}") for target in targets
    )


def without_wrappers(module: str) -> str:
    """Return a module's name without the wrappers that PEFT nests, one for each parameter that it
    changes: `experts.base_layer` is `experts`."""
    return re.sub(r"(\.base_layer)+$", "", module)


def for_module(config: Config, option: str, module: str, default: Any) -> Any:
    """Return the value that an option such as `rank_pattern` has for a module.

    As in PEFT, the first pattern that matches the end of the module's name decides.
    """
    for pattern, value in (config.get(option) or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def is_targeted(config: Config, module: str) -> bool:
    """Return whether `target_modules`, and the options that limit it, name a module."""
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


def want_targeted_weight(config: Config, tensor: BaseTensor) -> Iterator[Want]:  # noqa: ARG001
    """Yield the demand of `target_modules`: a change of the weight of each module that it names,
    unless `modules_to_save` replaces the module."""
    if tensor.is_targeted and tensor.kind == "weight" and not tensor.is_saved:
        yield Want("target_modules", None, tensor.stored)
