"""The table of a configuration's trained parameters, by pattern of module names."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from training.adapters.targets import fused_experts, is_left_out, linear_modules, routers

WRAPPERS = re.compile(
    r"^base_model\.model\.|\.(base_layer|default|original_module|modules_to_save|token_adapter)\b"
    r"|\.(weight|bias)$"
)
FACTORS = re.compile(
    r"\.(lora_(embedding_)?[AB]|lora_magnitude_vector|trainable_tokens_(delta|original))\b.*$"
)


@dataclass(frozen=True)
class Reached:
    """One row: the trained parameters of all modules whose names differ in numbers only."""

    pattern: str
    num_modules: int
    num_parameters: int
    share: float
    """Of all trained parameters."""


def plain_name(parameter: str) -> str:
    """Return a parameter's name without the parts that peft inserts."""
    return re.sub(r"^base_model\.model\.|\.default\b", "", parameter)


def pattern_of(parameter: str) -> str:
    """Return the name of the module that a parameter belongs to, with `*` for numbers."""
    return with_stars(WRAPPERS.sub("", FACTORS.sub("", parameter)))


def with_stars(name: str) -> str:
    """Return a name with `*` for each number between dots."""
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name)


def reached(model: Any) -> list[Reached]:
    """Return the trained parameters of a model, by pattern, in the order of the model."""
    sizes: Counter[str] = Counter()
    modules: dict[str, set[str]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            pattern = pattern_of(name)
            sizes[pattern] += parameter.numel()
            modules.setdefault(pattern, set()).add(WRAPPERS.sub("", FACTORS.sub("", name)))
    total = max(1, sum(sizes.values()))
    return [
        Reached(pattern, len(modules[pattern]), size, size / total)
        for pattern, size in sizes.items()
    ]


def left_out(model: Any) -> dict[str, str]:
    """Return the layers that `all-linear` leaves out of a model without an adapter, by pattern,
    each with the reason."""
    chosen = set(routers(model))
    found = {
        pattern_of(name): "a router"
        if name in chosen
        else "the model reads its weight without calling the layer"
        for name in [*linear_modules(model), *chosen]
        if is_left_out(model, name, chosen)
    }
    found |= {
        pattern_of(name): "a bias of experts, which an adapter has no part for"
        for name, parameter in model.named_parameters()
        if ".experts." in name and parameter.ndim == 2 and name.endswith("_bias")
    }
    return found if fused_experts(model) or found else {}


def reach_table(rows: list[Reached], without: dict[str, str]) -> list[str]:
    """Return the lines of the table for people."""
    width = max((len(row.pattern) for row in rows), default=0)
    lines = [
        f"{row.pattern:<{width}}  {row.num_modules:>5,} x  {row.num_parameters:>14,}"
        f"  {row.share:>6.1%}"
        for row in rows
    ]
    return lines + [f"{pattern}: not trained ({reason})" for pattern, reason in without.items()]
