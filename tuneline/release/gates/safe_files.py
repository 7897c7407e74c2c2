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
NUMPY_MAGIC = b"\x93NUMPY"
NUMPY_HEADER_BYTES = 256
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
    """Return why a file is unsafe; None if no reason is found."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in PICKLE_SUFFIXES:
        return "has the name of a pickle"
    if (suffixes and suffixes[-1] in CODE_SUFFIXES) or ".so" in suffixes:
        return "is code"
    with path.open("rb") as file:
        if _is_pickle(file.read(NUMPY_HEADER_BYTES)):
            return "is a pickle"
    if path.name.endswith("config.json"):
        return _remote_code(path)
    return _inner_reason(path) if zipfile.is_zipfile(path) else None


def _is_pickle(head: bytes) -> bool:
    """Return whether a file with these first bytes is a pickle, or a NumPy array of objects."""
    return head[:2] in PICKLE_MAGIC or (head.startswith(NUMPY_MAGIC) and b"'|O'" in head)


def _inner_reason(path: Path) -> str | None:
    """Return why a file inside a zip archive is unsafe."""
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            with archive.open(name) as file:
                is_pickle = _is_pickle(file.read(NUMPY_HEADER_BYTES))
            if is_pickle or name.lower().endswith(PICKLE_SUFFIXES):
                return f"is an archive with the pickle {name}"
    return None


def _remote_code(path: Path) -> str | None:
    """Return why a configuration file makes a loader run code."""
    try:
        value: Any = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return "is not JSON"
    key = next(_code_keys(value), None)
    return f"names code of its own ({key})" if key else None


def _code_keys(value: Any) -> Iterator[str]:
    """Yield the keys that name code, also of nested configurations such as `text_config`."""
    if isinstance(value, dict):
        yield from (key for key in REMOTE_CODE_KEYS if value.get(key))
        for inner in value.values():
            yield from _code_keys(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _code_keys(inner)
