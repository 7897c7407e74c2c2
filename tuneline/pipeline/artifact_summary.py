"""One artifact in a few words for people; the figures are in its manifest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tuneline.core.artifact import Artifact
from tuneline.core.artifact_kinds import KINDS
from tuneline.core.digests import short_digest
from tuneline.core.shorten import shorten


def summarize(artifact: Artifact) -> str:
    """Return one line for an artifact, by its kind."""
    kind = KINDS.get(artifact.kind)
    if kind is None:
        return f"{len(artifact.manifest.files)} files, {artifact.size_bytes / 2**20:,.1f} MiB"
    return kind.summary(artifact.manifest.metrics)


def describe_artifact(artifact: Artifact) -> list[str]:
    """Return what `inspect` shows: identity, inputs, figures, files."""
    manifest = artifact.manifest
    lines = [
        f"{artifact.path}",
        f"  kind      {manifest.kind}",
        f"  digest    {manifest.digest}",
        f"  made      {manifest.created_at}, {_machine(manifest.environment)}",
    ]
    lines += [
        f"  from      {e.role}: {e.kind} sha256:{short_digest(e.digest)}" for e in manifest.inputs
    ]
    lines += [f"  {name:32} {_value(value)}" for name, value in manifest.metrics.items()]
    lines += [f"  {entry.size_bytes:>12,} B  {entry.path}" for entry in manifest.files]
    return lines


def payload_path(artifact: Artifact) -> Path:
    """Return the file that holds an artifact's content.

    Raises:
        KeyError: The artifact's kind has no such file; a fault of ours.
    """
    payload = KINDS[artifact.kind].payload
    if payload is None:
        raise KeyError(artifact.kind)
    return artifact.path / payload


def _machine(environment: dict[str, Any]) -> str:
    hardware = environment.get("hardware", {})
    gpus = ", ".join(hardware.get("gpus", []))
    return f"{hardware.get('cpu', '?')}, {hardware.get('cpu_cores', '?')} cores" + (
        f", {gpus}" if gpus else ""
    )


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)
    return shorten(text, 100)
