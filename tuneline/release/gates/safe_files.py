"""Gate `safe-files`: no file that is served holds a pickle or code that a loader would run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from serving.config import flag_name
from tuneline.core.documents import parse_json
from tuneline.core.files import payload_files, relative_name
from tuneline.models.own_code import code_keys
from tuneline.pipeline.server import serves_adapter
from tuneline.pipeline.stage_inputs import drafter
from tuneline.release.gates.finding import Finding, judged
from tuneline.release.pickles import unsafe_reason
from tuneline.release.proofs import Proofs

BASE, DRAFTER = "base model/", "drafter/"
CODE_FLAGS = (
    "reasoning_parser_plugin", "tool_parser_plugin", "logits_processors", "worker_cls",
    "worker_extension_cls",
)  # fmt: skip
"""Flags of vLLM that name code. It is the user's own, so a release says so and passes."""
REQUIRED = "no pickle and no remote code in any artifact"


def judge_safe_files(proofs: Proofs) -> Finding:
    """Look at the name and the content of every file, inside archives too.

    A base model that is served with an adapter is looked at as well, and a drafter: the server
    loads them.
    """
    files = [
        (f"{artifact.path.name}/{entry.path}", artifact.path / entry.path, f"{stage}/{entry.path}")
        for stage, artifact in proofs.made.items()
        for entry in artifact.manifest.files
    ]
    folders = [(BASE, proofs.base.path)] if serves_adapter(proofs.run.config) else []
    if (found := drafter(proofs.run)) is not None:
        folders.append((DRAFTER, found[1]))
    for prefix, folder in folders:
        for path in payload_files(folder):
            name = f"{prefix}{relative_name(path, folder)}"
            files.append((name, path, name))
    # A waiver names a file by its stage: the key in the name of a directory changes with the run.
    unsafe = [
        (f"{name} {reason}", own)
        for name, path, own in files
        if (reason := _reason(path)) is not None
    ]
    problems = [problem for problem, _ in unsafe]
    num_files = len(files)
    return judged(
        not problems and num_files > 0,
        REQUIRED,
        f"{len(problems)} of {num_files} files",
        f"Loading may run code: {'; '.join(problems)}."
        if problems
        else f"None of {num_files} files is a pickle or code.{_own_code(proofs)}"
        if num_files
        else "No artifact is there.",
        hint=_hint(problems),
        reasons=[own.replace(" ", "-") for _, own in unsafe] or ["no-file"],
    )


def _own_code(proofs: Proofs) -> str:
    """Return a sentence about code that run.yaml names, which the server runs; empty without."""
    given = {flag_name(name): value for name, value in proofs.run.config.serving.extra_args.items()}
    named = [f"{name}: {given[name]}" for name in CODE_FLAGS if given.get(name)]
    return f" The server also runs code that run.yaml names: {', '.join(named)}." if named else ""


def _hint(problems: list[str]) -> str:
    hints = []
    if any(one.startswith(DRAFTER) for one in problems):
        hints.append("Name a drafter without these files in serving.extra_args.")
    if any(not one.startswith((BASE, DRAFTER)) for one in problems):
        hints.append("Leave that form out of export.forms, or convert the file to safetensors.")
    if any(one.startswith(BASE) for one in problems):
        hints.append(
            "Name a copy of the base model without these files as base_model, or serve the merged "
            "model: --set serving.mode=merged"
        )
    return " ".join(hints)


def _reason(path: Path) -> str | None:
    """Return why a file is unsafe; None if no reason is found."""
    if (reason := unsafe_reason(path)) is not None:
        return reason
    return _remote_code(path) if path.name.endswith("config.json") else None


def _remote_code(path: Path) -> str | None:
    """Return why a configuration file makes a loader run code."""
    try:
        value: Any = parse_json(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return "is not JSON with each key once"
    key = next(code_keys(value), None)
    return f"names code of its own ({key})" if key else None
