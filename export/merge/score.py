"""A reward model: a linear layer, `score`, in the place of the output layer.

Training saves the layer next to the adapter's other tensors. The base has no such tensor, so the
merge adds it, leaves the output layer out, and names the class that reads the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from export.merge.adapter import PREFIX, Adapter
from export.merge.plan import MergePlan
from export.weights.model_folder import ModelFolder
from export.weights.tensor_file import Stored
from tuneline.core.environment import require
from tuneline.core.errors import ArtifactError
from tuneline.models.pairs import cross_encoder_settings, is_cross_encoder

SCORE = "score.weight"
NOT_OF_TEXT = ("score", "classifier")
"""Modules that PEFT adds to `modules_to_save` of every adapter of scores."""
CLASSIFIER = "ForSequenceClassification"


def split_score(adapters: Sequence[Adapter]) -> tuple[list[Adapter], Stored | None]:
    """Return adapters without their score layer, and the layer; None for adapters of text.

    Raises:
        ArtifactError: An adapter of scores lacks the layer, or there are several adapters.
    """
    scorers = [one for one in adapters if one.config.get("task_type") == "SEQ_CLS"]
    if not scorers:
        return list(adapters), None
    adapter = scorers[0]
    if len(adapters) > 1 or adapter.weight is not None:
        raise ArtifactError(
            f"{adapter.path}: is an adapter of a reward model; expected one adapter, without a "
            "weight"
        )
    weights = adapter.weights
    found = [entry for entry in weights.entries if entry.name == f"{PREFIX}{SCORE}"]
    if not found or len(found[0].shape) != 2:
        raise ArtifactError(
            f"{weights.path}: has no matrix {PREFIX}{SCORE}; expected the score layer of a reward "
            "model"
        )
    saved = adapter.config.get("modules_to_save") or []
    left = [name for name in saved if name not in NOT_OF_TEXT] or None
    others = tuple(entry for entry in weights.entries if entry not in found)
    plain = replace(
        adapter, config={**adapter.config, "modules_to_save": left},
        weights=replace(weights, entries=others),
    )  # fmt: skip
    return [plain], Stored(weights, found[0])


def with_score(plan: MergePlan, score: Stored | None) -> MergePlan:
    """Return a plan that adds the score layer and has no output layer of its own."""
    if score is None:
        return plan
    tensors = {name: one for name, one in plan.tensors.items() if name != plan.untied}
    return replace(plan, tensors=tensors, untied=None, score=score)


def score_settings(base: ModelFolder, score: Stored | None) -> dict[str, Any]:
    """Return what config.json says of a model of scores; nothing for a model of text.

    With the problem type `regression`, a server answers with the score itself; without, vLLM
    answers with its sigmoid. That is what clients of a reranker get.

    Raises:
        ArtifactError: transformers has no class for scores of this family.
    """
    if score is None:
        names, labels = base.config.get("architectures") or [], base.config.get("id2label") or {}
        is_scorer = len(labels) == 1 and all(name.endswith(CLASSIFIER) for name in names)
        if not names or not is_scorer:
            return {}
        return _output_settings(base, is_cross_encoder(base.path))
    of_pairs = is_cross_encoder(score.file.path.parent)
    auto = require("transformers", "export").models.auto.modeling_auto
    known = auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
    model_type = base.config["model_type"]
    if model_type not in known:
        raise ArtifactError(f"{base.path}: transformers has no {CLASSIFIER} of {model_type}")
    labels = [f"LABEL_{number}" for number in range(score.shape[0])]
    return {
        "architectures": [known[model_type]],
        "id2label": {str(number): label for number, label in enumerate(labels)},
        "label2id": {label: number for number, label in enumerate(labels)},
        **(_output_settings(base, of_pairs) if len(labels) == 1 else {}),
    }


def _output_settings(base: ModelFolder, of_pairs: bool) -> dict[str, Any]:
    return cross_encoder_settings(base.config) if of_pairs else {"problem_type": "regression"}
