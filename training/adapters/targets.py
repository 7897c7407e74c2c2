"""The modules and parameters of a model that an adapter is put on.

peft 0.21 understands `all-linear` by the class of a module, and translates some names of mixtures
of experts to parameters. In DeepSeek-V3 it leaves out the dense layers so; in gpt-oss, Qwen2-MoE
and Llama 4 the experts; in Phi-MoE it wraps a router, which returns a tuple. Here a mixture's
targets are found in the model itself.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from training.config import TrainingConfig
from tuneline.core.errors import ConfigError

TRANSLATED = frozenset({"gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"})
"""Names that peft translates to fused experts wherever they are in a mixture. A linear layer of
such a name is reached through its parameter `weight`."""

PARTS = {
    "gate_up_proj": ({"gate_proj", "up_proj"}, {"w1", "w3"}),
    "down_proj": ({"down_proj"}, {"w2"}),
}
"""For a parameter of fused experts, the names of its parts in the files."""

SCORE = "score"
"""The output layer of a model with a score; peft trains it whole."""

BYPASSED = "dt_proj"
"""A linear layer of Mamba whose weight transformers multiplies by itself: an adapter on the layer
never gets a gradient."""

BYPASSED_ON_GPU = "out_proj"
STATE_MODELS = frozenset(
    {
        "bamba", "falcon_h1", "falcon_mamba", "granitemoehybrid", "mamba", "mamba2", "nemotron_h",
        "zamba2",
    }
)  # fmt: skip
"""Types of models whose kernels on a GPU read the weight of `out_proj`; peft 0.21 refuses an
adapter on it for most of them. It is left out on every machine, so that all train the same."""


@dataclass(frozen=True)
class Targets:
    """The targets of an adapter, as options of peft's LoraConfig."""

    target_modules: str | list[str]
    target_parameters: list[str] = field(default_factory=list)
    exclude_modules: str | list[str] | None = None
    is_resolved: bool = False
    """Whether `exclude_modules` and `layers_to_transform` are applied already."""


def find_targets(config: TrainingConfig, model: Any) -> Targets:
    """Return the targets that `target_modules` and the options next to it name in a model.

    Raises:
        ConfigError: A name matches nothing, or names one half of a fused parameter.
    """
    experts = fused_experts(model)
    _check_matches(config, model, experts)
    if experts:
        return _of_mixture(config, model, experts)
    excluded = config.exclude_modules
    left = {name.rpartition(".")[2] for name in linear_modules(model) if is_bypassed(model, name)}
    if config.target_modules == "all-linear" and left:
        if isinstance(excluded, str):
            excluded = rf"(?:{excluded})|.*\.(?:{'|'.join(sorted(left))})"
        else:
            excluded = sorted({*(excluded or []), *left})
    return Targets(config.target_modules, list(config.target_parameters or []), excluded)


def linear_modules(model: Any) -> dict[str, Any]:
    """Return the linear layers of a model by name, without its output head."""
    head = model.get_output_embeddings()
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not head and name != SCORE
    }


def fused_experts(model: Any) -> dict[str, torch.nn.Parameter]:
    """Return the parameters that hold all experts of a layer, by name."""
    return {
        f"{name}.{key}": parameter
        for name, module in model.named_modules()
        if name.rpartition(".")[2] == "experts"
        for key, parameter in module.named_parameters(recurse=False)
        if parameter.ndim == 3
    }


def routers(model: Any) -> list[str]:
    """Return the names of the modules that choose experts."""
    parents = {name.rpartition(".")[0].rpartition(".")[0] for name in fused_experts(model)}
    return [
        name
        for name, module in model.named_modules()
        if name.rpartition(".")[0] in parents
        and name.rpartition(".")[2] in ("router", "gate")
        and any(p.ndim == 2 for p in module.parameters())
    ]


def is_bypassed(model: Any, name: str) -> bool:
    """Return whether a model reads the weight of a linear layer without calling the layer."""
    last = name.rpartition(".")[2]
    return last == BYPASSED or (
        last == BYPASSED_ON_GPU and model.config.get_text_config().model_type in STATE_MODELS
    )


def is_left_out(model: Any, name: str, chosen_routers: Container[str]) -> bool:
    """Return whether `all-linear` leaves a linear layer out."""
    return name in chosen_routers or is_bypassed(model, name)


def _of_mixture(config: TrainingConfig, model: Any, experts: dict[str, Any]) -> Targets:
    """Return the targets in a model with fused experts, each by the end of its name."""
    chosen_routers = set(routers(model))
    modules, parameters = [], list(config.target_parameters or [])
    for name in linear_modules(model):
        named = config.target_modules == "all-linear" or _names(config.target_modules, name)
        if not named or (is_left_out(model, name, chosen_routers) and not _asks_for(config, name)):
            continue
        if not _is_kept(config, name):
            continue
        if name.rpartition(".")[2] in TRANSLATED:
            parameters.append(_ending(config, f"{name}.weight"))
        else:
            modules.append(_ending(config, name))
    for name in experts:
        if _reaches_experts(config, name) and _is_kept(config, name):
            parameters.append(_ending(config, name))
    return Targets(sorted(set(modules)), sorted(set(parameters)), is_resolved=True)


def _ending(config: TrainingConfig, name: str) -> str:
    """Return the end of a name behind the layer's number; the whole name if layers differ."""
    if config.layers_to_transform or config.exclude_modules:
        return name
    return re.sub(r"^.*\.\d+\.", "", name)


def _asks_for(config: TrainingConfig, name: str) -> bool:
    """Return whether the configuration names a router by itself."""
    return config.target_modules != "all-linear" and _names(config.target_modules, name)


def _names(targets: str | list[str], name: str) -> bool:
    """Return whether targets name a module, by peft's rules."""
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(name == target or name.endswith(f".{target}") for target in targets)


def _is_kept(config: TrainingConfig, name: str) -> bool:
    if config.exclude_modules and _names(config.exclude_modules, name):
        return False
    number = re.search(r"\.(\d+)\.", name)
    layers = config.layers_to_transform
    return layers is None or (number is not None and int(number[1]) in layers)


def _reaches_experts(config: TrainingConfig, name: str) -> bool:
    """Return whether the targets name a parameter of fused experts, or its parts in the files.

    Raises:
        ConfigError: They name one half of it.
    """
    targets = config.target_modules
    if targets == "all-linear" or _names(targets, name):
        return True
    module, _, parameter = name.rpartition(".")
    for parts in PARTS.get(parameter, ()):
        named = {part for part in parts if _names(targets, f"{module}.{part}")}
        if named == parts:
            return True
        if named:
            missing = ", ".join(sorted(parts - named))
            raise ConfigError(
                f"training.target_modules: names {', '.join(sorted(named))}, which is one half of "
                f"{name} in this model; expected {missing} too",
                hint=f"Add {missing} to training.target_modules.",
            )
    return False


def _check_matches(config: TrainingConfig, model: Any, experts: dict[str, Any]) -> None:
    """Refuse a pattern that matches nothing.

    Raises:
        ConfigError: Every such pattern, with its key.
    """
    modules = [name for name, _ in model.named_modules() if name]
    parameters = [name for name, _ in model.named_parameters()]
    parts = [
        f"{name.rpartition('.')[0]}.{part}"
        for name in experts
        for names in PARTS.get(name.rpartition(".")[2], ())
        for part in names
    ]
    problems = [
        f"training.{key}: {pattern!r} matches nothing in this model"
        for key, pattern, is_regex in _patterns(config)
        if not any(
            _matches(key, pattern, name, is_regex)
            for name in (parameters if key == "target_parameters" else [*modules, *parts, *experts])
        )
    ]
    layers = {int(number) for name in modules for number in re.findall(r"\.(\d+)$", name)}
    problems += [
        f"training.layers_to_transform: layer {layer} does not exist; the model has {len(layers)}"
        for layer in config.layers_to_transform or []
        if layer not in layers
    ]
    if problems:
        names = sorted({name.rpartition(".")[2] for name in linear_modules(model)})
        raise ConfigError(problems, hint=f"Its linear layers: {', '.join(names)}; or all-linear.")


def _patterns(config: TrainingConfig) -> Iterator[tuple[str, str, bool]]:
    """Yield each pattern with the key that holds it, and whether it is a regular expression."""
    for key in (
        "target_modules", "exclude_modules", "target_parameters", "rank_pattern", "alpha_pattern",
        "modules_to_save", "trainable_token_indices",
    ):  # fmt: skip
        value = getattr(config, key)
        for pattern in [value] if isinstance(value, str) else value or []:
            if pattern != "all-linear" and isinstance(pattern, str):
                yield key, pattern, isinstance(value, str)


def _matches(key: str, pattern: str, name: str, is_regex: bool) -> bool:
    if key in ("rank_pattern", "alpha_pattern"):
        return re.match(rf"(.*\.)?({pattern})$", name) is not None
    if key in ("modules_to_save", "trainable_token_indices"):
        return name.endswith(pattern)
    return _names(pattern if is_regex else [pattern], name)
