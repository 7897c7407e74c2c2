"""The scores that a server must give: those of the folder, by its own function and reading."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, BertForSequenceClassification

from serving.classifiers import Served, compare_scores
from serving.vectors import TEXTS
from tests.cross_encoder import write_cross_encoder
from tuneline.core.errors import ArtifactError
from tuneline.models.classifier import Classifier, load_classifier

PAIRS = [(TEXTS[0], TEXTS[1]), (TEXTS[1], TEXTS[2]), (TEXTS[6], TEXTS[3])]
LIMIT = 1e-3


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Matrices this small are quicker on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cross")
    write_cross_encoder(folder, TEXTS)
    return folder


@pytest.fixture(scope="module")
def classifier(folder: Path) -> Classifier:
    return load_classifier(folder)


@pytest.fixture(scope="module")
def score(folder: Path) -> Callable[..., Served]:
    """A server: BERT's own logits of what the tokenizer makes of the words."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    network = BertForSequenceClassification.from_pretrained(folder).eval()

    def served(*words: str, types: bool = True, **options: Any) -> Served:
        inputs = tokenizer(*words, return_tensors="pt", **options)
        if not types:
            inputs["token_type_ids"][:] = 0
        with torch.no_grad():
            (logit,) = network(**inputs).logits[0].tolist()
        output = 1 / (1 + torch.tensor(-logit).exp().item())
        return Served(inputs["input_ids"].shape[1], [logit], [output])

    return served


FAULTS: dict[str, tuple[Callable[..., Served], str | None]] = {
    "none": (lambda score, a, b: score(a, b), None),
    "order": (
        lambda score, a, b: score(b, a),
        "/score: the server gives the sigmoid of the logits of pairs in the other order; expected "
        "the sigmoid of the logits of the input as transformers reads it",
    ),
    "activation": (
        lambda score, a, b: dataclasses.replace(score(a, b), outputs=score(a, b).logits),
        "/score: the server gives logits; expected the sigmoid of the logits of the input as "
        "transformers reads it",
    ),
    "types": (
        lambda score, a, b: score(a, b, types=False),
        "of pairs with one token type for both texts; expected",
    ),
    "joined": (lambda score, a, b: score(f"{a} {b}"), "of both texts joined by a space; expected"),
    "second": (lambda score, *pair: score(pair[1]), "of the second text only; expected"),
    "special": (
        lambda score, a, b: score(a, b, add_special_tokens=False),
        "of inputs without special tokens; expected",
    ),
    "cut": (
        lambda score, a, b: score(a, b, truncation=True, max_length=12),
        "/score: the server cuts inputs to 12 tokens",
    ),
    "logits": (
        lambda score, a, b: dataclasses.replace(score(a, b), logits=score(a, b).outputs),
        "of their root mean square; at most 0.001 is allowed",
    ),
    "label": (
        lambda score, a, b: dataclasses.replace(score(a, b), label="other"),
        "/score: the label of a text is other; expected LABEL_0",
    ),
    "dimensions": (
        lambda score, a, b: Served(score(a, b).num_tokens, [0.0, 1.0], [0.3, 0.7]),
        "/score: logits differ by up to inf",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_the_scores_of_pairs_is_named(
    classifier: Classifier, score: Callable[..., Served], fault: str
) -> None:
    make, problem = FAULTS[fault]
    found = [make(score, first, second) for first, second in PAIRS]
    report = compare_scores(classifier, {"score": list(PAIRS)}, {"score": found}, LIMIT)
    assert report["num_pairs"] == 3 and report["num_labels"] == 1
    assert report["verdict"] == ("PASS" if problem is None else "FAIL")
    assert (problem or "") in "\n".join(report["problems"])


@pytest.mark.parametrize(
    ("values", "num_labels", "of_texts", "of_pairs"),
    [
        ({}, 1, "sigmoid", "sigmoid"),
        ({}, 3, "softmax", "softmax"),
        ({"problem_type": "regression"}, 1, "logits", "logits"),
        ({"problem_type": "multi_label_classification"}, 3, "sigmoid", "sigmoid"),
        ({"problem_type": "single_label_classification"}, 3, "softmax", "softmax"),
        (
            {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}},
            1, "logits", "logits",
        ),
        (
            {
                "sbert_ce_default_activation_function": "torch.nn.modules.activation.Sigmoid",
                "problem_type": "regression",
            },
            1, "logits", "sigmoid",
        ),
    ],
)  # fmt: skip
def test_the_folder_says_what_makes_scores_of_logits(
    tmp_path: Path, values: dict[str, Any], num_labels: int, of_texts: str, of_pairs: str
) -> None:
    write_cross_encoder(tmp_path, TEXTS[:1], num_labels)
    set_values(tmp_path, values)
    classifier = load_classifier(tmp_path)
    assert (classifier.activation, classifier.pair_activation) == (of_texts, of_pairs)
    assert len(classifier.labels) == num_labels


def test_an_unknown_function_is_refused(tmp_path: Path) -> None:
    write_cross_encoder(tmp_path, TEXTS[:1])
    set_values(tmp_path, {"sentence_transformers": {"activation_fn": "torch.nn.GELU"}})
    with pytest.raises(ArtifactError, match=r"activation is torch\.nn\.GELU; expected one of"):
        load_classifier(tmp_path)


def set_values(folder: Path, values: dict[str, Any]) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
