"""The run.yaml that a search or a tuning writes for its winner."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import yaml

from tuneline.core.disk import cannot_write, replace_file
from tuneline.core.errors import ConfigError, TunelineError
from tuneline.pipeline.run_config import Run, resolve_base
from tuneline.pipeline.stages import stages

WRITTEN = "# Written by `tuneline "
"""The beginning of each of these files; a file of the user's is not replaced."""


def _reads_the_same(run: Run, path: Path) -> bool:
    """Return whether the stages read the same files if run.yaml is at another path."""
    moved = replace(run, path=path)
    try:
        here, there = resolve_base(run, download=True), resolve_base(moved, download=False)
        return all(s.inputs(run, here) == s.inputs(moved, there) for s in stages(run))
    except TunelineError:
        return False


def require_winner(run: Run, path: Path) -> None:
    """Check that the run.yaml of a winner can be made before hours of work.

    Raises:
        ConfigError: Relative paths lead to other files there, or it is a file of the user's.
        ArtifactError: Its folder cannot be written.
        DiskFullError: The disk is full.
    """
    if path.parent.resolve() != run.path.parent.resolve() and not _reads_the_same(run, path):
        raise ConfigError(
            f"--out {path}: relative paths of {run.path} lead to other files from there; expected "
            "a file in the same folder",
            hint=f"Try: --out {shlex.quote(str(run.path.with_name(path.name)))}",
        )
    if path.exists() and not path.read_text(encoding="utf-8", errors="replace").startswith(WRITTEN):
        raise ConfigError(
            f"--out {path}: exists, and Tuneline did not write it; expected a new file",
            hint="Try: --out OTHER.yaml",
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise cannot_write(path, error) from error


def write_winner(
    run: Run,
    command: str,
    document: Mapping[str, Any],
    evidence: Sequence[str],
    values: Mapping[str, Any],
    out: Path,
) -> None:
    """Write the run.yaml of a winner, with its evidence as a comment.

    Args:
        run: The run that the winner is a variant of.
        command: The command that found it, `search` or `tune`.
        document: The content of the new file.
        evidence: Sentences, a line each.
        values: The keys that the winner sets.
        out: The new file.

    Raises:
        DiskFullError, ArtifactError: The file cannot be written.
    """
    lines = [
        f"{WRITTEN}{command} {run.path.name}` on {datetime.now(UTC).date()}.",
        *(f"# {line}" for line in evidence),
        *(f"# {key}: {value}" for key, value in values.items()),
    ]
    text = yaml.safe_dump(dict(document), sort_keys=False, allow_unicode=True)
    replace_file(out, "\n".join(lines) + "\n" + text)
