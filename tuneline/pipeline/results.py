"""Artifacts and whole lines in a few words for people; the figures are in the manifests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tuneline.core.artifact import Artifact
from tuneline.core.digests import short_digest
from tuneline.core.kinds import KINDS
from tuneline.core.messages import content_of
from tuneline.pipeline.stage import Stage

Done = Sequence[tuple[Stage, Artifact]]
"""The stages that a line has finished, in order."""


def summarize(artifact: Artifact) -> str:
    """Return one line for an artifact, by its kind."""
    kind = KINDS.get(artifact.kind)
    if kind is None:
        size_bytes = sum(entry.size_bytes for entry in artifact.manifest.files)
        return f"{len(artifact.manifest.files)} files, {size_bytes / 2**20:,.1f} MiB"
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


def results(done: Done) -> list[str]:
    """Return what a line has shown so far: accuracy before and after, proofs, load."""
    lines = []
    evaluations = [(stage, a) for stage, a in done if a.kind == "evaluation"]
    if evaluations:
        lines.append("\nHeld-out answers")
        lines += [f"  {s.label:16} {_accuracies(a.manifest.metrics)}" for s, a in evaluations]
        lines += _example(evaluations)
    proofs = of_kind(done, "parity")
    if proofs:
        from tuneline.pipeline.ladder import ladder_lines

        lines.append("\nIs it the trained model? (log-probability differences in nats)")
        lines += [f"  {line}" for line in ladder_lines(proofs)]
    for load in of_kind(done, "load-report"):
        from loadtest import read_report, report_lines

        report = read_report(load.path)
        lines += ["\nUnder load", *(f"  {line}" for line in report_lines(report))]
    lines += [f"\n{stage.name}: {artifact.path}" for stage, artifact in done[-1:]]
    return lines


def of_kind(done: Done, kind: str) -> list[Artifact]:
    """Return the finished artifacts of one kind, in order."""
    return [artifact for _, artifact in done if artifact.kind == kind]


def payload_path(artifact: Artifact) -> Path:
    """Return the file that holds an artifact's content.

    Raises:
        KeyError: The artifact's kind has no such file; a fault of ours.
    """
    payload = KINDS[artifact.kind].payload
    if payload is None:
        raise KeyError(artifact.kind)
    return artifact.path / payload


def _accuracies(metrics: dict[str, Any]) -> str:
    fields = [f"{name} {share:.1%}" for name, share in metrics["field_accuracy"].items()]
    return ", ".join([KINDS["evaluation"].summary(metrics), *fields])


def _example(evaluations: Done) -> list[str]:
    """Return the first held-out prompt and what each evaluated model answered."""
    answers = []
    for stage, evaluation in evaluations:
        with payload_path(evaluation).open(encoding="utf-8") as file:
            answers.append((stage.label, json.loads(file.readline())))
    _, first = answers[0]
    lines = ["\nThe first of them", *_quoted("asked", content_of(first["prompt"][-1]))]
    for label, prediction in answers:
        lines += _quoted(label, prediction["answer"])
    return [*lines, *_quoted("expected", first["expected"])]


def _quoted(title: str, text: str) -> list[str]:
    first, *others = [line for line in text.strip().splitlines() if line] or [""]
    return [f"  {title:16} {first}"] + [f"  {'':16} {line}" for line in others]


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
    return text if len(text) <= 100 else text[:97] + "..."
