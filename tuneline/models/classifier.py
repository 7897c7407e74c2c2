"""The scores that a classifier gives to texts and to pairs of texts, by transformers in float32.

A classifier has one logit for each label. A cross-encoder is a classifier with one label that reads
two texts at once. The folder says which function makes probabilities of the logits: `problem_type`
of transformers, or the activation of sentence-transformers' CrossEncoder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneline.core.errors import ArtifactError
from tuneline.models.folder import CONFIG, read_json
from tuneline.models.load import damage_named, load_network
from tuneline.models.schemas import ModelConfig
from tuneline.models.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from torch import Tensor

IDENTITY, SIGMOID, SOFTMAX = "logits", "sigmoid", "softmax"
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    IDENTITY: lambda logits: logits,
    SIGMOID: lambda logits: logits.sigmoid(),
    SOFTMAX: lambda logits: logits.softmax(-1),
    "tanh": lambda logits: logits.tanh(),
}
SLOPES = {IDENTITY: 1.0, SIGMOID: 0.25, SOFTMAX: 0.5, "tanh": 1.0}
"""By how much the output of each function changes at most, as a share of the change of a logit."""
TORCH_NAMES = {"Identity": IDENTITY, "Sigmoid": SIGMOID, "Softmax": SOFTMAX, "Tanh": "tanh"}


@dataclass(frozen=True)
class Reading:
    """How a tokenizer reads a text or a pair; the defaults are transformers' own."""

    texts: tuple[str, ...]
    """One text, or two."""
    special: bool = True
    """With the special tokens."""
    types: bool = True
    """With another token type for the second text, if the model has types."""


@dataclass(frozen=True)
class Scored:
    """The logits of a reading, one for each label."""

    num_tokens: int
    logits: Tensor


@dataclass(frozen=True)
class Classifier:
    """A classifier of a folder."""

    labels: tuple[str, ...]
    activation: str
    """The function that makes the output for a text, a name of ACTIVATIONS."""
    pair_activation: str
    score: Callable[[Reading], Scored]


def is_classifier(folder: Path) -> bool:
    """Return whether the model of a folder classifies sequences."""
    names = read_json(folder / CONFIG, ModelConfig).get("architectures") or []
    return any(name.endswith("ForSequenceClassification") for name in names)


def load_classifier(folder: Path) -> Classifier:
    """Return the classifier of a folder.

    Raises:
        ArtifactError: transformers cannot load the folder, or its activation is not known here.
    """
    import torch
    import transformers

    tokenizer = load_tokenizer(folder)
    load = transformers.AutoModelForSequenceClassification.from_pretrained
    network = load_network(folder, torch.float32, what=str(folder), load=load)
    labels = tuple(str(network.config.id2label[at]) for at in range(network.config.num_labels))
    config = read_json(folder / CONFIG)

    def score(reading: Reading) -> Scored:
        inputs = tokenizer(*reading.texts, return_tensors="pt", add_special_tokens=reading.special)
        if not reading.types and "token_type_ids" in inputs:
            inputs["token_type_ids"] = torch.zeros_like(inputs["token_type_ids"])
        with torch.no_grad(), damage_named(f"{folder}: transformers cannot compute a score"):
            logits = network(**inputs).logits[0]
        return Scored(inputs["input_ids"].shape[1], logits.float())

    return Classifier(
        labels,
        _activation(config, folder, len(labels), of_pairs=False),
        _activation(config, folder, len(labels), of_pairs=True),
        score,
    )


def _activation(config: Mapping[str, Any], folder: Path, num_labels: int, *, of_pairs: bool) -> str:
    """Return the function that a folder states.

    For a text, transformers' `problem_type` comes first; for a pair, the activation of
    sentence-transformers does. Without both, one label has its sigmoid, and several have a softmax.
    """
    default = SIGMOID if num_labels == 1 else SOFTMAX
    by_type = {
        "regression": IDENTITY,
        "single_label_classification": default,
        "multi_label_classification": SIGMOID,
    }.get(str(config.get("problem_type")))
    section = config.get("sentence_transformers")
    named = section.get("activation_fn") if isinstance(section, dict) else None
    named = named or config.get("sbert_ce_default_activation_function")
    by_name = None
    if named is not None:
        by_name = TORCH_NAMES.get(str(named).rpartition(".")[2])
        if by_name is None:
            raise ArtifactError(
                f"{folder / CONFIG}: the activation is {named}; expected one of "
                f"{', '.join(TORCH_NAMES)}"
            )
    first, second = (by_name, by_type) if of_pairs else (by_type, by_name)
    return first or second or default
