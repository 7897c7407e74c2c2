"""A run.yaml as a list of choices, each with its reason as a comment above it."""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tuneline.core.config import validate_config
from tuneline.core.disk import replace_file
from tuneline.core.errors import ConfigError
from tuneline.pipeline.run_config import RunConfig

WIDTH = 96


@dataclass(frozen=True)
class Choice:
    """One key of run.yaml with its value and the reason for the value."""

    key: str
    value: Any
    reason: str = ""


def write_choices(out: Path, head: Sequence[str], choices: Sequence[Choice]) -> None:
    """Write a run.yaml that is valid.

    Args:
        out: The new file.
        head: Paragraphs of the comment at its beginning.
        choices: Its keys, in order; those of one section follow one another.

    Raises:
        ConfigError: `out` exists, or a value cannot be used; every problem names its key.
    """
    require_new(out)
    values: dict[str, Any] = {}
    for choice in choices:
        *sections, name = choice.key.split(".")
        inner = values
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[name] = choice.value
    validate_config(RunConfig, values, str(out))
    lines = [line for text in head for line in _comment(text, "")]
    text = "\n".join([*lines, "", *_lines(choices)]) + "\n"
    replace_file(out, text)


def require_new(out: Path) -> None:
    """Check that a file is not there yet and can be.

    Raises:
        ConfigError: It is there, or its folder is not.
    """
    if not out.parent.is_dir():
        raise ConfigError(f"--out {out}: the folder {out.parent} does not exist")
    if out.exists():
        raise ConfigError(f"{out}: exists; expected a new file", hint="Try: --out OTHER.yaml")


def relative_path(path: str, out: Path) -> str:
    """Return a path of the command line as it is written in a run.yaml at `out`."""
    return path if path.startswith("hf:") else os.path.relpath(path, out.parent)


def run_name(text: str) -> str:
    """Return a name of a run that is made of a file's name."""
    name = re.sub(r"[^a-z0-9]+", "-", text.casefold()).strip("-")
    name = name if name[:1].isalpha() else f"run-{name}"
    return name[:40].strip("-")


def _lines(choices: Sequence[Choice]) -> list[str]:
    lines: list[str] = []
    opened: list[str] = []
    for choice in choices:
        *sections, name = choice.key.split(".")
        if sections != opened:
            shared = 0
            while sections[: shared + 1] == opened[: shared + 1] and shared < len(sections):
                shared += 1
            lines += [""] if not shared else []
            lines += [f"{'  ' * depth}{sections[depth]}:" for depth in range(shared, len(sections))]
            opened = sections
        indent = "  " * len(sections)
        lines += _comment(choice.reason, indent) if choice.reason else []
        lines.append(f"{indent}{name}: {_flow(choice.value)}")
    return lines


def _comment(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ",
        break_on_hyphens=False, break_long_words=False,
    )  # fmt: skip


def _flow(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10_000)
    return text.removesuffix("...\n").strip()
