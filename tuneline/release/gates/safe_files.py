"""Gate `safe-files`: no artifact holds a pickle or code that a loader would run."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tuneline.core.artifact import Artifact
from tuneline.release.gates.finding import Finding, judged
from tuneline.release.proofs import Proofs

REQUIRED = "no pickle and no remote code in any artifact"
PICKLE_SUFFIXES = (".pkl", ".pickle", ".bin", ".pth", ".ckpt", ".joblib", ".dill")
CODE_SUFFIXES = (".py", ".pyc", ".so", ".sh", ".dll")
PICKLE_MAGIC = tuple(b"\x80" + bytes([protocol]) for protocol in range(2, 6))
REMOTE_CODE_KEYS = ("auto_map", "custom_pipelines")


def judge_safe_files(proofs: Proofs) -> Finding:
    """Look at the name and the first bytes of every file, inside zip archives too."""
    problems: list[str] = []
    num_files = 0
    for artifact in proofs.made.values():
        num_files += len(artifact.manifest.files)
        problems += _unsafe(artifact)
    if proofs.run.config.serving.extra_args.get("trust_remote_code"):
        problems.append("serving.extra_args: trust_remote_code is set")
    return judged(
        not problems and num_files > 0,
        REQUIRED,
        f"{len(problems)} of {num_files} files",
        f"Loading may run code: {'; '.join(problems)}."
        if problems
        else f"None of {num_files} files is a pickle or code."
        if num_files
        else "No artifact is there.",
        hint="Leave that form out of export.forms, or convert the file to safetensors.",
    )


def _unsafe(artifact: Artifact) -> Iterator[str]:
    for entry in artifact.manifest.files:
        path = artifact.path / entry.path
        reason = _reason(path)
        if reason is not None:
            yield f"{artifact.path.name}/{entry.path} {reason}"


def _reason(path: Path) -> str | None:
    """Return why a file is unsafe; None if it is not."""
    if path.suffix in PICKLE_SUFFIXES:
        return "has the name of a pickle"
    if path.suffix in CODE_SUFFIXES:
        return "is code"
    with path.open("rb") as file:
        if file.read(2) in PICKLE_MAGIC:
            return "is a pickle"
    if path.suffix == ".json":
        return _remote_code(path)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            inner = [name for name in archive.namelist() if name.endswith(PICKLE_SUFFIXES)]
        return f"is an archive with the pickle {inner[0]}" if inner else None
    return None


def _remote_code(path: Path) -> str | None:
    """Return why a configuration file makes a loader run code."""
    if path.name not in ("config.json", "tokenizer_config.json", "adapter_config.json"):
        return None
    try:
        value: Any = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return "is not JSON"
    keys = [key for key in REMOTE_CODE_KEYS if isinstance(value, dict) and value.get(key)]
    return f"names code of its own ({keys[0]})" if keys else None
