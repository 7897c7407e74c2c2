"""The model card: the README.md of a published model, from the manifests.

Every figure comes from a manifest. Digests connect a model with the artifacts that it was made from
and with the measurements of any of them; names do not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from export.forms import MODEL, MODEL_KINDS
from tuneline.core.artifact import Artifact, open_artifact
from tuneline.core.artifact_kinds import KINDS
from tuneline.core.errors import ArtifactError
from tuneline.core.files import MANIFEST
from tuneline.core.parity import PARITY_FILE, Parity
from tuneline.core.parity_report import markdown
from tuneline.models.adapter_config import ADAPTER_CONFIG
from tuneline.models.folder import read_json

MEASURED_KINDS = ("parity", "evaluation", "preferences", "load-report")
_hub_id = re.compile(r"(?P<id>[\w-][\w.-]*/[\w-][\w.-]*)(@.+)?")
"""A name on the Hub, with a revision or without; the Hub refuses a card that names a path."""

TRAINING_KEYS = (
    "r", "lora_alpha", "target_modules", "learning_rate", "num_train_epochs", "max_steps",
    "max_length", "seed",
)  # fmt: skip

FLAGS = ("load_in_4bit", "use_dora", "use_rslora")
"""Keys of a training that the card shows if they are set."""

FULL_KEYS = (
    "finetuning_type", "learning_rate", "num_train_epochs", "max_steps", "max_length", "seed",
)  # fmt: skip


def write_model_card(model: Artifact) -> str:
    """Return the card of a model artifact, in Markdown with the metadata block that the Hub reads.

    It reads the model's manifest, and those of the artifacts in the same directory that digests
    connect with the model, as in a run.

    Raises:
        ArtifactError: The artifact does not hold a model.
    """
    if model.kind not in MODEL_KINDS:
        raise ArtifactError(
            f"{model.path}: is an artifact of kind {model.kind!r}; expected a model: "
            f"{', '.join(MODEL_KINDS)}"
        )
    made_from, measured = connected(model)
    by_kind = {artifact.kind: artifact for artifact in made_from}
    trained = next(
        (a.manifest for a in (*made_from, model) if "num_steps" in a.manifest.metrics), None
    )
    lines = ["---", *_metadata(model, made_from), "---", "", "# Model card", ""]
    lines += _identity(model)
    lines += _made_from(model, made_from)
    if "dataset" in by_kind:
        metrics = by_kind["dataset"].manifest.metrics
        lines += ["", "## Data", ""]
        lines += _figures(metrics, ("num_train", "num_heldout"))
    if trained is not None:
        lines += ["", "## Training", ""]
        lines.append(f"- method: {trained.config.get('method', {}).get('type', 'sft')}")
        lines += _figures(trained.config, training_keys(trained.config))
        lines += _figures(
            trained.metrics, ("num_steps", "eval_loss_before", "eval_loss", "num_trained_tokens")
        )
    lines += _measured(model, measured)
    lines += ["", "## What this card does not say", ""]
    lines += [
        "No manifest has the intended use, licence and known biases. Add them before you publish,"
    ]
    lines += ["with those of the base model and of the data.", ""]
    return "\n".join(lines)


def _metadata(model: Artifact, made_from: Sequence[Artifact]) -> list[str]:
    """Return the lines of the block that the Hub reads."""
    # The Hub shows how to load a model by its library; a graph is not loaded by transformers.
    lines = ["library_name: transformers"] if model.kind == MODEL else []
    lines.append("tags: [tuneline]")
    for artifact in made_from:
        if artifact.kind == "adapter" and (artifact.path / ADAPTER_CONFIG).is_file():
            named = read_json(artifact.path / ADAPTER_CONFIG).get("base_model_name_or_path")
            if found := _hub_id.fullmatch(str(named)):
                lines += [f"base_model: {found['id']}", "base_model_relation: finetune"]
    return lines


def training_keys(config: Mapping[str, Any]) -> list[str]:
    """Return the keys of a training that the card shows."""
    keys = FULL_KEYS if config.get("finetuning_type") == "full" else TRAINING_KEYS
    left_out = "max_steps" if config.get("max_steps") is None else "num_train_epochs"
    flags = [key for key in FLAGS if config.get(key)]
    return [*(key for key in keys if key != left_out), *flags]


def connected(model: Artifact) -> tuple[list[Artifact], list[Artifact]]:
    """Return the artifacts that a model was made from, nearest first, and the measurements of them.

    It looks in the model's directory and matches artifacts only by digest.
    """
    neighbours = []
    for manifest in sorted(model.path.resolve().parent.glob(f"*/{MANIFEST}")):
        try:
            neighbours.append(open_artifact(manifest.parent))
        except ArtifactError:
            continue  # damaged, or not an artifact of Tuneline: the card leaves it out
    made_from: list[Artifact] = []
    wanted = [entry.digest for entry in model.manifest.inputs]
    while wanted:
        digest = wanted.pop(0)
        found = next((a for a in neighbours if a.digest == digest and a not in made_from), None)
        if found is not None:
            made_from.append(found)
            wanted += [entry.digest for entry in found.manifest.inputs]
    # Other runs share the base and the data; measurements of these are not about this model.
    own = {model.digest, *(a.digest for a in made_from if a.kind in ("adapter", *MODEL_KINDS))}
    measured = [
        artifact
        for artifact in neighbours
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
    config = {key: value for key, value in manifest.config.items() if value is not None}
    if "w4a16" not in (config.get("scheme"), config.get("quantize")):
        config.pop("group_size", None)  # the other schemes have no groups
    lines += [f"| {key} | {value} |" for key, value in config.items()]
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
    compared = [a for a in measured if a.kind == "preferences"]
    if compared:
        lines += ["", "## Preferences", ""]
    lines += [f"- {KINDS['preferences'].summary(a.manifest.metrics)}" for a in compared]
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
