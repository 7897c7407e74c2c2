"""Configurations of other trainers as a run.yaml. A new trainer is one file, and one row here.

Each file has a table from the other's keys to ours. A key that no table knows, and a key that has
no counterpart here, is named in words: nothing is left out silently.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tuneline.core.bounded_yaml import load_yaml
from tuneline.core.errors import ConfigError
from tuneline.pipeline.choices import Choice, run_name, write_choices
from tuneline.pipeline.foreign.axolotl import is_axolotl, read_axolotl
from tuneline.pipeline.foreign.command import Command, is_script, read_command
from tuneline.pipeline.foreign.llama_factory import is_llama_factory, read_llama_factory
from tuneline.pipeline.foreign.reading import Foreign
from tuneline.pipeline.foreign.swift import is_swift, read_swift
from tuneline.pipeline.foreign.torchtune import is_torchtune, read_torchtune
from tuneline.pipeline.foreign.trl import is_trl, read_trl


@dataclass(frozen=True)
class Trainer:
    """Another trainer: how its configuration is told, and read."""

    title: str
    fits: Callable[[Mapping[str, Any]], bool]
    read: Callable[[Foreign], None]


TRAINERS = (
    Trainer("LLaMA-Factory", is_llama_factory, read_llama_factory),
    Trainer("Axolotl", is_axolotl, read_axolotl),
    Trainer("TRL", is_trl, read_trl),
    Trainer("ms-swift", is_swift, read_swift),
    Trainer("torchtune", is_torchtune, read_torchtune),
)


def write_foreign_run(source: Path, out: Path) -> tuple[str, list[str]]:
    """Write the run.yaml of another trainer's configuration.

    Returns:
        The trainer's name, and each part of its configuration that is not taken over, in words.

    Raises:
        ConfigError: The file is of no known trainer, lacks data or a base model, has values that
            cannot be used, or `out` exists.
    """
    command = _read(source)
    values = command.values
    trainer = next(
        (known for known in TRAINERS if known.title == command.trainer or known.fits(values)), None
    )
    if trainer is None:
        titles = ", ".join(known.title for known in TRAINERS)
        raise ConfigError(
            f"{source}: is not a configuration of {titles}; found the keys "
            f"{', '.join(map(str, list(values)[:8]))}",
            hint="Try: tuneline init --data FILE --base MODEL",
        )
    foreign = Foreign(source, out, values, command.name, notes=list(command.notes))
    try:
        trainer.read(foreign)
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        # Readers take values as the trainer's documentation has them; another type ends here.
        raise ConfigError(
            f"{source}: is not a valid configuration of {trainer.title}: {error}"
        ) from None
    foreign.refuse_rest()
    known = {choice.key for choice in foreign.choices}
    if not known & {"data.path", "data.sources"} or "base_model" not in known:
        raise ConfigError(
            f"{source}: names no data or no base model; expected both",
            hint="; ".join(note for note in command.notes if "$" in note),
        )
    head = [f"Written by tuneline init from {source.name}, a configuration of {trainer.title}."]
    head += [f"Not taken over: {note}" for note in foreign.notes]
    choices = [Choice("name", run_name(source.stem)), *_by_section(foreign.choices)]
    write_choices(out, head, choices)
    return trainer.title, foreign.notes


def _by_section(choices: list[Choice]) -> list[Choice]:
    """Return choices with those of one section together, in the order of the configuration."""
    order = ("base_model", "base_revision", "data", "training", "evaluation", "serving")

    def place(choice: Choice) -> tuple[int, str]:
        parts = choice.key.split(".")
        return order.index(parts[0]), ".".join(parts[:-1])

    return sorted(choices, key=place)


def _read(source: Path) -> Command:
    """Return a configuration; of a file that is not a script, trainer and command are empty."""
    try:
        text = source.read_text(encoding="utf-8")
        if is_script(source, text):
            return read_command(source, text)
        values = load_yaml(text)
    except FileNotFoundError:
        raise ConfigError(f"{source}: no such file; expected a configuration") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{source}: cannot be read as YAML or JSON: {reason}") from None
    if not isinstance(values, dict) or not values:
        raise ConfigError(f"{source}: expected a mapping of options")
    return Command("", "", values, ())
