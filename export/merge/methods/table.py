"""The PEFT methods that the merge knows: one file each, and this table."""

from __future__ import annotations

from typing import Any

from export.merge.methods import (
    bias,
    dora,
    experts,
    ia3,
    loha,
    lora,
    lora_bias,
    saved_modules,
    token_rows,
)
from export.merge.methods.method import Config, Method, Part
from export.weights.blocks import Change
from tuneline.models.adapter_options import NEUTRAL_OPTIONS, TargetOptions
from tuneline.models.schemas import JsonForm

METHODS: tuple[Method, ...] = (
    saved_modules.METHOD,
    bias.METHOD,
    token_rows.METHOD,
    experts.METHOD,
    lora.METHOD,
    dora.METHOD,
    lora_bias.METHOD,
    loha.METHOD,
    ia3.METHOD,
)
"""In the order in which they are asked whether a tensor is theirs."""

PEFT_TYPES = tuple(sorted({one for method in METHODS for one in method.peft_types or ()}))
"""The values of `peft_type` that the merge supports."""


def methods_of(config: Config) -> list[Method]:
    """Return the methods that an adapter's `peft_type` allows, in the order of the table."""
    peft_type = config.get("peft_type")
    return [one for one in METHODS if one.peft_types is None or peft_type in one.peft_types]


def method_of(change: Change) -> Method:
    """Return the method that made a change."""
    return next(method for method in METHODS if isinstance(change, method.makes))


def option_forms(config: Config) -> list[type[JsonForm]]:
    """Return the forms that an adapter's options must have."""
    return [TargetOptions, *(method.options for method in methods_of(config))]


def unsupported_options(config: dict[str, Any]) -> list[str]:
    """Return, as `name=value`, the options that no method knows or whose value none can merge."""
    methods = methods_of(config)
    known = NEUTRAL_OPTIONS.union(*(method.neutral for method in methods))
    known |= {name for form in option_forms(config) for name in form.model_fields}
    unknown = [f"{name}={value!r}" for name, value in config.items() if value and name not in known]
    return unknown + [one for method in methods for one in method.unsupported(config)]


def find_suffix(config: Config, name: str) -> tuple[str, Part] | None:
    """Return the longest suffix with which a tensor's name ends, and its part."""
    found = [
        (suffix, part)
        for method in methods_of(config)
        for suffix, part in method.suffixes.items()
        if name.endswith(suffix)
    ]
    return max(found, key=lambda one: len(one[0]), default=None)
