"""The model card: what the manifests know of a model, as the README.md of a published folder.

Every figure is read from a manifest. Which manifests belong to the model is read from their inputs'
digests, not from names: what it was made from, and what was measured on it or on that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from export.forms import MODEL_KINDS
from tuneline.core.artifact import MANIFEST, Artifact, open_artifact
from tuneline.core.errors import ArtifactError
from tuneline.core.parity import PARITY_FILE, Parity
from tuneline.core.parity_report import markdown

MEASURED_KINDS = ("parity", "evaluation", "load-report")

TRAINING_KEYS = (
    "r", "lora_alpha", "target_modules", "learning_rate", "num_train_epochs", "max_length", "seed",
)  # fmt: skip


def write_model_card(model: Artifact) -> str:
    """The card of a model artifact, in Markdown with the metadata block that the Hub reads.

    Beside the model's own manifest it reads those of the artifacts that lie in the same directory
    and are connected with it by digest, as those of one run are.

    Raises:
        ArtifactError: The artifact holds no model.
    """
    if model.kind not in MODEL_KINDS:
        raise ArtifactError(
            f"{model.path}: is an artifact of kind {model.kind!r}; a card is written of "
            f"{', '.join(MODEL_KINDS)}"
        )
    made_from, measured = connected(model)
    by_kind = {artifact.kind: artifact for artifact in made_from}
    lines = ["---", "library_name: transformers", "tags: [tuneline]", "---", "", "# Model card", ""]
    lines += _identity(model)
    lines += _made_from(model, made_from)
    if "dataset" in by_kind:
        metrics = by_kind["dataset"].manifest.metrics
        lines += ["", "## Data", ""]
        lines += _figures(metrics, ("num_train", "num_heldout"))
    if "adapter" in by_kind:
        adapter = by_kind["adapter"].manifest
        lines += ["", "## Training", ""]
        lines += _figures(adapter.config, TRAINING_KEYS)
        lines += _figures(
            adapter.metrics, ("num_steps", "eval_loss_before", "eval_loss", "num_trained_tokens")
        )
    lines += _measured(model, measured)
    lines += ["", "## What this card does not say", ""]
    lines += ["Intended use, licence and known biases stand in no manifest: whoever publishes the"]
    lines += ["model adds them, with those of the base model and of the data.", ""]
    return "\n".join(lines)


def connected(model: Artifact) -> tuple[list[Artifact], list[Artifact]]:
    """What a model was made from, nearest first, and what was measured on it or on these.

    Artifacts are looked for beside the model, and matched by digest alone.
    """
    beside = []
    for manifest in sorted(model.path.resolve().parent.glob(f"*/{MANIFEST}")):
        try:
            beside.append(open_artifact(manifest.parent))
        except ArtifactError:
            continue  # of another make, or damaged: nothing is told of it
    made_from: list[Artifact] = []
    wanted = [entry.digest for entry in model.manifest.inputs]
    while wanted:
        digest = wanted.pop(0)
        found = next((a for a in beside if a.digest == digest and a not in made_from), None)
        if found is not None:
            made_from.append(found)
            wanted += [entry.digest for entry in found.manifest.inputs]
    # The base and the data of a run are shared by others; what was measured on them is not of this.
    own = {model.digest, *(a.digest for a in made_from if a.kind in ("adapter", *MODEL_KINDS))}
    measured = [
        artifact
        for artifact in beside
        if artifact.kind in MEASURED_KINDS
        and own & {entry.digest for entry in artifact.manifest.inputs}
    ]
    return made_from, measured


def _identity(model: Artifact) -> list[str]:
    manifest = model.manifest
    lines = [
        "| | |",
        "| --- | --- |",
        f"| kind | `{manifest.kind}` |",
        f"| digest | `{manifest.digest}` |",
        f"| made | {manifest.created_at} |",
    ]
    lines += [f"| {key} | {value} |" for key, value in manifest.config.items() if value is not None]
    for name in ("size_bytes", "num_tensors", "num_changed_tensors", "sparsity"):
        if name in manifest.metrics:
            lines.append(f"| {name} | {_value(manifest.metrics[name])} |")
    if "quantized_with" in manifest.metrics:
        tools = manifest.metrics["quantized_with"].items()
        lines.append(f"| quantized with | {', '.join(f'{name} {one}' for name, one in tools)} |")
    libraries = manifest.environment.get("libraries", {})
    written = ", ".join(f"{name} {version}" for name, version in libraries.items())
    return [*lines, f"| written with | {written} |"]


def _made_from(model: Artifact, made_from: Sequence[Artifact]) -> list[str]:
    lines = ["", "## Made from", "", "| of | as | kind | digest |", "| --- | --- | --- | --- |"]
    for artifact in (model, *made_from):
        lines += [
            f"| {artifact.kind} | {entry.role} | {entry.kind} | `{entry.digest}` |"
            for entry in artifact.manifest.inputs
        ]
    return lines


def _measured(model: Artifact, measured: Sequence[Artifact]) -> list[str]:
    lines = []
    evaluations = [a for a in measured if a.kind == "evaluation"]
    if evaluations:
        lines += [
            "",
            "## Held-out answers",
            "",
            "| of | exact match | rows |",
            "| --- | --- | --- |",
        ]
    for evaluation in evaluations:
        inputs = ", ".join(e.role for e in evaluation.manifest.inputs if e.role != "dataset")
        metrics = evaluation.manifest.metrics
        lines.append(f"| {inputs} | {metrics['exact_match']:.1%} | {metrics['num_rows']} |")
    proofs = [
        Parity.model_validate_json((a.path / PARITY_FILE).read_text(encoding="utf-8"))
        for a in measured
        if a.kind == "parity"
        and any(e.digest == model.digest or e.role == "adapter" for e in a.manifest.inputs)
    ]
    if proofs:
        lines += ["", "## Is it the trained model?", "", markdown(proofs).rstrip()]
    loads = [a for a in measured if a.kind == "load-report"]
    if loads:
        lines += ["", "## Under load", ""]
    lines += [f"- verdict {a.manifest.metrics['verdict'].upper()}: `{a.digest}`" for a in loads]
    return lines


def _figures(values: dict[str, Any], names: Sequence[str]) -> list[str]:
    return [f"- {name}: {_value(values[name])}" for name in names if values.get(name) is not None]


def _value(value: Any) -> str:
    return (
        f"{value:.4g}"
        if isinstance(value, float)
        else f"{value:,}"
        if isinstance(value, int)
        else str(value)
    )
