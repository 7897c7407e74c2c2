"""A reranker: its loss, its steps of several batches, what it learns, and its pairs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.cross_encoder import write_cross_encoder as write_bert
from tests.integration.training.methods.datasets import WORDS, write_rows
from tests.integration.training.tiny import make_base
from training.config import EvaluationConfig, TrainingConfig
from training.data.row import Row, query_row
from training.evaluation.reranking import evaluate_reranking
from training.loop.arguments import trainer_arguments
from training.methods.reranker import RERANKER, Candidates, collate, free_pad_id, rank_loss
from training.model import load_base
from training.train import train_adapter
from tuneline.core.artifact import Artifact, new_artifact, open_artifact
from tuneline.core.errors import ConfigError, DataError
from tuneline.models.classifier import SIGMOID, Reading, load_classifier
from tuneline.models.pairs import Pair, is_cross_encoder, pair_reader
from tuneline.models.source import ModelSource, resolve_model
from tuneline.models.tokenizer import load_tokenizer

COMMON = {
    "method": {"type": "reranker"}, "num_train_epochs": 6, "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2, "learning_rate": 5e-3, "logging_steps": 1, "save_steps": 4,
    "gradient_checkpointing": False, "max_length": 64, "report_to": [],
}  # fmt: skip


def _config(**changes: Any) -> TrainingConfig:
    return TrainingConfig.model_validate({**COMMON, **changes})


def _row(index: int) -> Row:
    """A query whose answer has the next word of the list, and not the word of the query."""
    asked, *words = (WORDS[(index + step) % 8] for step in (0, 1, 0, 3))
    right, *wrong = (f"row {index % 5} is {word}" for word in words)
    return query_row(asked, [right], wrong[: 1 + index % 2])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("reranker")
    make_base(folder / "base")
    return resolve_model("base", relative_to=folder)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    out = tmp_path_factory.mktemp("rows") / "dataset"
    rows = [_row(index) for index in np.random.default_rng(0).permutation(64).tolist()]
    with new_artifact(out, "dataset", config={}, inputs=[]) as draft:
        write_rows(draft.dir / "train.jsonl", rows[:44])
        write_rows(draft.dir / "heldout.jsonl", rows[44:])
    return open_artifact(out, kind="dataset")


def _candidates(*sizes: tuple[int, int]) -> list[Candidates]:
    return [Candidates([Pair([7, at]) for at in range(sum(size))], size[0]) for size in sizes]


def test_an_answer_is_compared_with_the_negatives_of_its_row_only() -> None:
    scores = np.random.default_rng(1).normal(size=7)
    batch = collate(_candidates((1, 2), (2, 2)), pad_id=0, loss="softmax")
    # Places 0; 3 and 4 answer. 1, 2; and 5, 6 are the negatives of their rows.
    compared = {0: [0, 1, 2], 3: [3, 5, 6], 4: [4, 5, 6]}
    expected = [
        math.log(sum(math.exp(scores[at]) for at in others)) - scores[place]
        for place, others in compared.items()
    ]
    loss, right = rank_loss(torch.tensor(scores), batch)
    assert float(loss) == pytest.approx(sum(expected), rel=1e-9)
    assert right == sum(
        max(others, key=lambda at: scores[at]) == place for place, others in compared.items()
    )


def test_each_passage_has_a_label_with_bce() -> None:
    scores = np.random.default_rng(2).normal(size=4)
    batch = collate(_candidates((1, 2), (1, 0)), pad_id=0, loss="bce")
    assert batch["labels"].tolist() == [1, 0, 0, 1]
    chances = [1 / (1 + math.exp(-score)) for score in scores]
    expected = -math.log(chances[0] * (1 - chances[1]) * (1 - chances[2]) * chances[3])
    loss, right = rank_loss(torch.tensor(scores), batch)
    assert float(loss) == pytest.approx(expected, rel=1e-6)
    assert right == sum((score > 0) == bool(at in (0, 3)) for at, score in enumerate(scores))


def _gradients(base: ModelSource, folder: Path, size: int, loss: str) -> dict[str, Any]:
    """Return the gradients of one step of eight rows, and its loss."""
    accumulation = -(-8 // size)
    config = _config(
        per_device_train_batch_size=size, gradient_accumulation_steps=accumulation, max_steps=1,
        finetuning_type="full", method={"type": "reranker", "loss": loss},
    )  # fmt: skip
    torch.manual_seed(0)
    model = load_base(base, torch.float32, task_type="SEQ_CLS")
    tokenizer = load_tokenizer(base.path)
    rows = RERANKER.render(config, tokenizer, [_row(at) for at in range(8)], (), "train.jsonl")
    arguments = trainer_arguments(config, folder, resumed=True)
    trainer = RERANKER.trainer(config, model, tokenizer, arguments, rows, rows)
    batches = [trainer.data_collator(rows[at : at + size]) for at in range(0, 8, size)]
    samples, number = trainer.get_batch_samples(iter(batches), accumulation, torch.device("cpu"))
    model.train()
    losses = [trainer.compute_loss(model, one, num_items_in_batch=number) for one in samples]
    for one in losses:
        one.backward()
    found = {name: one.grad for name, one in model.named_parameters() if one.grad is not None}
    return {"loss": float(sum(losses).detach()), "gradients": found}


@pytest.mark.parametrize("loss", ["softmax", "bce"])
def test_a_step_of_several_batches_is_that_of_one_batch(
    base: ModelSource, tmp_path: Path, loss: str
) -> None:
    whole = _gradients(base, tmp_path, 8, loss)
    assert "score.weight" in whole["gradients"]
    for size in (4, 3):
        parts = _gradients(base, tmp_path, size, loss)
        assert parts["loss"] == pytest.approx(whole["loss"], rel=1e-5)
        for name, expected in whole["gradients"].items():
            torch.testing.assert_close(parts["gradients"][name], expected, rtol=1e-3, atol=1e-5)


def test_a_reranker_learns_and_its_merged_folder_gives_its_scores(
    base: ModelSource, dataset: Artifact, tmp_path: Path
) -> None:
    from export import merge_adapter
    from export.config import MergeConfig

    config = _config(
        load_best_model_at_end=True, metric_for_best_model="eval_accuracy", eval_steps=4
    )
    trained = train_adapter(config, dataset, base, tmp_path / "adapter")
    metrics = trained.manifest.metrics
    assert metrics["eval_accuracy"] > metrics["eval_accuracy_before"]
    assert metrics["eval_loss"] < metrics["eval_loss_before"]
    assert is_cross_encoder(trained.path)

    figures = evaluate_reranking(
        EvaluationConfig(), config, dataset, base, trained, tmp_path / "retrieval"
    )
    assert figures.manifest.metrics["base_order"] == "BM25"
    assert figures.manifest.metrics["ndcg_difference_interval"][0] > 0.2

    model = merge_adapter(MergeConfig(), base, trained, tmp_path / "merged")
    settings = json.loads((model.path / "config.json").read_text())
    assert settings["architectures"] == ["LlamaForSequenceClassification"]
    assert settings["sentence_transformers"] == {
        "activation_fn": "torch.nn.modules.activation.Sigmoid"
    }
    assert "problem_type" not in settings
    # With a chat template, sentence-transformers renders a pair by it, and a server does not.
    assert "chat_template" not in (model.path / "tokenizer_config.json").read_text()
    assert not (model.path / "chat_template.jinja").exists()
    merged = load_classifier(model.path)
    assert merged.pair_activation == SIGMOID
    lists = [json.loads(line) for line in (figures.path / "scores.jsonl").open()]
    assert sum(len(one["scores"]) for one in lists) > 20
    for one in lists[::5]:
        for passage, ids, score in zip(
            one["passages"], one["token_ids"], one["scores"], strict=True
        ):
            found = merged.score(Reading((one["query"], passage)))
            assert found.num_tokens == len(ids)
            assert float(found.logits[0]) == pytest.approx(score, abs=2e-5)


def test_a_whole_encoder_is_trained_with_token_types(dataset: Artifact, tmp_path: Path) -> None:
    write_bert(tmp_path / "bert", list(WORDS))
    base = resolve_model("bert", relative_to=tmp_path)
    with pytest.raises(ConfigError, match="has a head of several layers") as error:
        RERANKER.check_models(_config(), base, None)
    assert "finetuning_type=full" in (error.value.hint or "")
    config = _config(
        finetuning_type="full", max_steps=3, method={"type": "reranker", "loss": "bce"}
    )
    RERANKER.check_models(config, base, None)
    tokenizer = load_tokenizer(base.path)
    pair = pair_reader(base.path, tokenizer)("red", "blue")
    assert pair.token_types == [0] * 3 + [1] * 2
    trained = train_adapter(config, dataset, base, tmp_path / "whole")
    assert trained.kind == "model"
    figures = evaluate_reranking(
        EvaluationConfig(), config, dataset, base, trained, tmp_path / "retrieval"
    )
    # The base has a head for one label: its own order is compared.
    assert figures.manifest.metrics["base_order"] == "scores of the base model"
    whole = load_classifier(trained.path)
    one = json.loads((figures.path / "scores.jsonl").open().readline())
    for passage, score in zip(one["passages"], one["scores"], strict=True):
        found = whole.score(Reading((one["query"], passage)))
        assert float(found.logits[0]) == pytest.approx(score, abs=2e-5)


def test_a_padding_token_ends_no_pair(base: ModelSource) -> None:
    tokenizer = load_tokenizer(base.path)
    own = tokenizer.pad_token_id
    assert free_pad_id(tokenizer, [[own, own + 1]]) == own
    assert free_pad_id(tokenizer, [[3, own], [4, 0], [5, 1]]) not in {own, 0, 1}


@pytest.mark.parametrize(
    ("method", "rows", "problem"),
    [
        ({}, [query_row("q", ["a"], []), query_row("r", ["b"], ["c"])],
         "1 of 2 rows have no negative passage"),
        ({"loss": "bce"}, [query_row("q", ["a"], [])], "no row has a passage that does not answer"),
    ],
)  # fmt: skip
def test_rows_without_negatives_are_refused(
    method: dict[str, Any], rows: list[Row], problem: str
) -> None:
    with pytest.raises(DataError, match=problem):
        RERANKER.check(_config(method={"type": "reranker", **method}), rows, "train.jsonl")
    with pytest.raises(DataError, match="no query has both"):
        RERANKER.check_heldout(rows[:1], "heldout.jsonl")


def test_a_pair_that_is_too_long_is_refused(base: ModelSource) -> None:
    rows = [query_row("q", ["word " * 200], ["a"])]
    with pytest.raises(DataError, match="longer than max_length=64 tokens together"):
        RERANKER.render(_config(), load_tokenizer(base.path), rows, (), "train.jsonl")


@pytest.mark.parametrize("changes", [{"packing": True}, {"router_aux_loss_coef": 0.1}])
def test_settings_that_cannot_work_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"training.{next(iter(changes))}: a reranker has"):
        RERANKER.check(_config(**changes), [query_row("q", ["a"], ["b"])], "train.jsonl")
