"""Options of TRL's configuration classes, checked before a model is loaded."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from transformers import TrainingArguments

from training.config import TrainingConfig
from training.config.method_options import TrlOptions
from tuneline.core.errors import ConfigError

READ_WITH: tuple[tuple[str, str, tuple[Any, ...]], ...] = (
    ("label_smoothing", "loss_type", ("robust", "exo_pair", "aot", "aot_unpaired")),
    ("discopop_tau", "loss_type", ("discopop",)),
    ("f_alpha_divergence_coef", "f_divergence_type", ("alpha_divergence",)),
    ("precompute_ref_batch_size", "precompute_ref_log_probs", (True,)),
    ("ref_model_mixup_alpha", "sync_ref_model", (True,)),
    ("ref_model_sync_steps", "sync_ref_model", (True,)),
)
"""An option of TRL, and the option and its values with which TRL 1.16 reads it."""


def trl_config(
    config: TrainingConfig, config_class: type[Any], arguments: Mapping[str, Any], **own: Any
) -> Any:
    """Return TRL's configuration: the frame's arguments, the method's own and the user's options.

    Raises:
        ConfigError: Options are unknown to the installed TRL, belong to the training loop, or have
            values that TRL does not take.
    """
    given = check_names(config, config_class).for_trl()
    if "router_aux_loss_coef" in {field.name for field in dataclasses.fields(config_class)}:
        own["router_aux_loss_coef"] = config.router_aux_loss_coef
    with refused_by_trl(config):
        return config_class(**{**arguments, **own, **given})


def check_names(config: TrainingConfig, config_class: type[Any]) -> TrlOptions:
    """Check names and types of the method's options against the installed TRL, and return them.

    Raises:
        ConfigError: Every option that does not fit, by name.
    """
    options = config.method
    assert isinstance(options, TrlOptions)  # noqa: S101 (for the type checker: SFT has none)
    loop = {field.name for field in dataclasses.fields(TrainingArguments)}
    own = [field.name for field in dataclasses.fields(config_class) if field.name not in loop]
    problems = []
    for name, value in options.for_trl().items():
        key = f"training.method.{name}"
        if name in loop:
            problems.append(f"{key}: is an option of the training loop, not of {options.type}")
        elif name not in own:
            near = difflib.get_close_matches(name, own, n=1)
            meant = f" (did you mean {near[0]}?)" if near else ""
            problems.append(f"{key}: {config_class.__name__} has no such option{meant}")
        else:
            problems += [f"{key}: {text}" for text in _misfit(config_class, name, value)]
    if problems:
        raise ConfigError(problems)
    return options


@contextmanager
def refused_by_trl(config: TrainingConfig) -> Iterator[None]:
    """Turn what TRL says about its options into a ConfigError.

    Raises:
        ConfigError: TRL refuses the options.
    """
    try:
        yield
    except (ValueError, TypeError, NotImplementedError, ImportError) as error:
        raise ConfigError(
            f"training.method: TRL refuses the options of {config.method.type}: {error}"
        ) from error


def make_trainer(config: TrainingConfig, trainer_class: type[Any], **arguments: Any) -> Any:
    """Return a trainer of TRL, whose trained parameters are in float32.

    TRL rounds an adapter on a 4-bit base to bfloat16, in which small changes are lost and the
    checks of the loss and of shared starts see differences.

    Raises:
        ConfigError: TRL refuses the options.
    """
    with refused_by_trl(config):
        trainer = trainer_class(**arguments)
    for parameter in trainer.model.parameters():
        if parameter.requires_grad and parameter.dtype is not torch.float32:
            parameter.data = parameter.data.float()
    return trainer


def unread_options(config: TrainingConfig, config_class: type[Any]) -> list[str]:
    """Return the options that TRL does not read next to the others, in words."""
    options = config.method
    assert isinstance(options, TrlOptions)  # noqa: S101 (for the type checker: SFT has none)
    defaults = {field.name: field.default for field in dataclasses.fields(config_class)}
    given = options.for_trl()
    problems = []
    for name, key, values in READ_WITH:
        if given.get(name, defaults.get(name)) == defaults.get(name):
            continue
        found = given.get(key, defaults[key])
        if not set(values) & set(found if isinstance(found, list) else [found]):
            expected = " or ".join(str(value).lower() for value in values)
            problems.append(
                f"training.method.{name}: {given[name]} has no effect; TRL reads it with {key} "
                f"{expected}. Set training.method.{key}: {str(values[0]).lower()}, or remove {name}"
            )
    return problems


def _misfit(config_class: type[Any], name: str, value: Any) -> list[str]:
    """Return what is wrong with the type of a value; TRL checks none."""
    hint = typing.get_type_hints(config_class)[name]
    try:
        TypeAdapter(hint, config=ConfigDict(strict=False)).validate_python(value)
    except ValidationError as error:
        return [f"{entry['msg'].lower()}, found {value!r}" for entry in error.errors()[:1]]
    return []
