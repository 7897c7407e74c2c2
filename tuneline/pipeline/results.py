"""Artifacts in a few words for people; the figures themselves are in the manifests."""

from __future__ import annotations

import json
from typing import Any

from tuneline.core.artifact import Artifact
from tuneline.core.digests import short_digest

Made = dict[str, Artifact]

EVALUATIONS = {
    "evaluation-base": "base model",
    "evaluation-tuned": "base + adapter",
    "evaluation-served": "served by vLLM",
}


def summarize(artifact: Artifact) -> str:
    """One line for an artifact, by its kind."""
    metrics = artifact.manifest.metrics
    if artifact.kind == "dataset":
        return f"{metrics['num_train']:,} training rows, {metrics['num_heldout']:,} held-out rows"
    if artifact.kind == "adapter":
        return (
            f"{metrics['num_steps']} steps, held-out loss {metrics['eval_loss_before']:.3f} → "
            f"{metrics['eval_loss']:.3f}, {metrics['trained_tokens_per_s']:,.0f} trained tokens/s"
        )
    if artifact.kind == "evaluation":
        return f"exact match {_exact_match(metrics)}"
    if artifact.kind == "reference":
        return f"{metrics['num_prompts']} prompts, {metrics['num_tokens']:,} tokens"
    if artifact.kind == "model" and "num_changed_tensors" not in metrics:
        return (
            f"{metrics['num_quantized_tensors']} of {metrics['num_tensors']} tensors quantized, "
            f"{metrics['size_bytes'] / 2**20:,.1f} MiB"
        )
    if artifact.kind in ("onnx", "torchscript", "torch-export"):
        return f"{metrics['size_bytes'] / 2**20:,.1f} MiB"
    if artifact.kind == "model":
        return (
            f"{metrics['num_changed_tensors']} of {metrics['num_tensors']} tensors changed, "
            f"{metrics['size_bytes'] / 2**20:,.1f} MiB"
        )
    if artifact.kind == "parity":
        return (
            f"{metrics['verdict'].upper()}, {metrics['num_equal_answers']} of "
            f"{metrics['num_prompts']} answers equal" + _within(metrics["max_logprob_difference"])
        )
    if artifact.kind == "load-report":
        return f"{metrics['verdict'].upper()}"
    return f"{len(artifact.manifest.files)} files"


def describe_artifact(artifact: Artifact) -> list[str]:
    """What `inspect` shows: identity, inputs, figures, files."""
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


def results(made: Made) -> list[str]:
    """What a line has shown so far: accuracy before and after, proofs, load."""
    lines = []
    for stage, title in EVALUATIONS.items():
        if stage in made:
            lines.append(f"  {title:16} {_accuracies(made[stage].manifest.metrics)}")
    if lines:
        lines.insert(0, "\nHeld-out answers")
        lines += _example(made)
    proofs = [made[name] for name in made if name.startswith("parity-")]
    if proofs:
        from tuneline.pipeline.ladder import ladder_lines

        lines.append("\nIs it the trained model? (log-probability differences in nats)")
        lines += [f"  {line}" for line in ladder_lines(proofs)]
    if "load" in made:
        from loadtest.report.terminal import lines as load_lines

        report = json.loads((made["load"].path / "report.json").read_text(encoding="utf-8"))
        lines += ["\nUnder load", *(f"  {line}" for line in load_lines(report))]
    lines += [f"\n{name}: {artifact.path}" for name, artifact in list(made.items())[-1:]]
    return lines


def _within(nats: float | None) -> str:
    return "" if nats is None else f", log-probabilities within {nats:.1g} nats"


def _accuracies(metrics: dict[str, Any]) -> str:
    fields = [f"{name} {share:.1%}" for name, share in metrics["field_accuracy"].items()]
    return ", ".join([f"exact match {_exact_match(metrics)}", *fields])


def _exact_match(metrics: dict[str, Any]) -> str:
    return f"{metrics['exact_match']:.1%} of {metrics['num_rows']}"


def _example(made: Made) -> list[str]:
    """The first held-out ticket that was answered, before and after."""
    answers = {}
    for stage in EVALUATIONS:
        if stage in made:
            path = made[stage].path / "predictions.jsonl"
            with path.open(encoding="utf-8") as file:
                answers[stage] = json.loads(file.readline())
    first = next(iter(answers.values()))
    lines = ["\nThe first of them", *_quoted("asked", first["prompt"][-1]["content"])]
    for stage, prediction in answers.items():
        lines += _quoted(EVALUATIONS[stage], prediction["answer"])
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
