"""An embedding model: its loss, its steps of several batches, and what it learns."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.integration.training.methods.datasets import query, write_rows
from tests.integration.training.tiny import make_base, make_tokenizer
from training.config import EvaluationConfig, TrainingConfig
from training.data.row import query_row
from training.evaluation.retrieval import evaluate_retrieval, positive_ranks, ranked_passages
from training.loop.arguments import trainer_arguments
from training.methods.contrast import Texts, collate, contrast
from training.methods.embedding import EMBEDDING
from training.model import load_base
from training.train import train_adapter
from tuneline.core.artifact import Artifact, new_artifact, open_artifact
from tuneline.core.errors import ArtifactError, ConfigError, DataError
from tuneline.models.prompts import read_prompts
from tuneline.models.source import ModelSource, resolve_model
from tuneline.models.tokenizer import load_tokenizer
from tuneline.models.vectors import (
    POOLINGS,
    Recipe,
    load_dense,
    load_states,
    pooled,
    read_recipe,
    vector_of,
    write_recipe,
)

COMMON = {
    "method": {"type": "embedding"}, "num_train_epochs": 4, "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2, "learning_rate": 5e-3, "logging_steps": 1, "save_steps": 4,
    "gradient_checkpointing": False, "max_length": 64, "report_to": [],
}  # fmt: skip


def _config(**changes: Any) -> TrainingConfig:
    return TrainingConfig.model_validate({**COMMON, **changes})


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("embedding")
    make_base(folder / "base")
    return resolve_model("base", relative_to=folder)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    out = tmp_path_factory.mktemp("rows") / "dataset"
    order = np.random.default_rng(0).permutation(64).tolist()
    rows = [query(index) for index in order]
    with new_artifact(out, "dataset", config={}, inputs=[]) as draft:
        write_rows(draft.dir / "train.jsonl", rows[:44])
        write_rows(draft.dir / "heldout.jsonl", rows[44:])
    return open_artifact(out, kind="dataset")


def test_the_loss_is_the_cross_entropy_among_the_passages_of_the_step() -> None:
    draw = np.random.default_rng(1)
    queries, passages = draw.normal(size=(3, 8)), draw.normal(size=(5, 8))
    asked, target = [0, 1, 1, 2], [0, 1, 3, 4]
    left_out = np.zeros((4, 5), dtype=bool)
    left_out[1, 3] = left_out[2, 1] = True  # the other answer of the same query
    expected = []
    for pair, (place_of_query, place) in enumerate(zip(asked, target, strict=True)):
        own = queries[place_of_query]
        logits = [
            20 * (own @ one) / (np.linalg.norm(own) * np.linalg.norm(one)) for one in passages
        ]
        compared = [math.exp(one) for at, one in enumerate(logits) if not left_out[pair, at]]
        expected.append(math.log(sum(compared)) - logits[place])
    loss, right = contrast(
        torch.tensor(queries), torch.tensor(passages), torch.tensor(asked), torch.tensor(target),
        torch.tensor(left_out), 20.0,
    )  # fmt: skip
    assert float(loss) == pytest.approx(sum(expected) / 4, rel=1e-9)
    assert 0 <= right <= 4


def test_a_batch_tells_equal_passages_and_known_answers() -> None:
    rows = [Texts([1], [[5, 6], [7]], [[8]]), Texts([1, 2], [[7]], [])]
    numbers = {(1,): 0, (5, 6): 1, (7,): 2, (8,): 3, (1, 2): 4}
    batch = collate(rows, numbers=numbers, pad_id=9)
    assert batch["passage_ids"].tolist() == [[5, 6], [7, 9], [8, 9], [7, 9]]
    assert batch["passage_mask"].tolist() == [[1, 1], [1, 0], [1, 0], [1, 0]]
    assert (batch["asked"].tolist(), batch["target"].tolist()) == ([0, 0, 1], [0, 1, 3])
    assert batch["passage_number"].tolist() == [1, 2, 3, 2]


@pytest.mark.parametrize("pooling", ["cls", "lasttoken", "mean"])
@pytest.mark.parametrize("is_normalized", [True, False])
def test_a_padded_batch_has_the_vectors_of_its_texts(pooling: str, is_normalized: bool) -> None:
    torch.manual_seed(0)
    states, sizes = torch.randn(3, 6, 4), [6, 1, 3]
    mask = (torch.arange(6) < torch.tensor(sizes)[:, None]).long()
    recipe = Recipe(pooling, is_normalized)
    found = pooled(states, mask, recipe, lambda vector: vector)
    for row, size in enumerate(sizes):
        expected = vector_of(states[row, :size], recipe, lambda vector: vector)
        torch.testing.assert_close(found[row], expected)


def _gradients(base: ModelSource, folder: Path, size: int, accumulation: int) -> dict[str, Any]:
    """Return the gradients of one step of eight rows, and its loss."""
    config = _config(
        per_device_train_batch_size=size, gradient_accumulation_steps=accumulation, max_steps=1,
        finetuning_type="full", train_sampling_strategy="random",
    )  # fmt: skip
    torch.manual_seed(0)
    model = load_base(base, torch.float32, task_type="FEATURE_EXTRACTION")
    tokenizer = load_tokenizer(base.path)
    rows = EMBEDDING.render(config, tokenizer, [query(at) for at in range(8)], (), "train.jsonl")
    arguments = trainer_arguments(config, folder, resumed=True)
    trainer = EMBEDDING.trainer(config, model, tokenizer, arguments, rows, rows)
    batches = [trainer.data_collator(rows[at : at + size]) for at in range(0, 8, size)]
    samples, _ = trainer.get_batch_samples(iter(batches), accumulation, torch.device("cpu"))
    model.train()
    losses = [trainer.compute_loss(model, sample) for sample in samples]
    for loss in losses:
        loss.backward()
    found = {name: one.grad for name, one in model.named_parameters() if one.grad is not None}
    return {"loss": float(sum(losses).detach()), "gradients": found}


def test_a_step_of_several_batches_is_that_of_one_batch(base: ModelSource, tmp_path: Path) -> None:
    whole = _gradients(base, tmp_path, 8, 1)
    for size in (4, 2, 3):
        parts = _gradients(base, tmp_path, size, -(-8 // size))
        assert parts["loss"] == pytest.approx(whole["loss"], rel=1e-5)
        assert set(parts["gradients"]) == set(whole["gradients"])
        for name, expected in whole["gradients"].items():
            torch.testing.assert_close(parts["gradients"][name], expected, rtol=1e-3, atol=1e-5)


def test_a_step_with_dropout_has_one_set_of_random_numbers(tmp_path: Path) -> None:
    """The vectors of the first pass are those of the second: both draw the same numbers."""
    folder = _bert(tmp_path / "bert", dropout=0.5)
    tokenizer = load_tokenizer(folder)
    options = {"type": "embedding", "pooling": "mean"}
    config = _config(
        method=options, per_device_train_batch_size=2, gradient_accumulation_steps=2,
        finetuning_type="full", max_steps=1,
    )  # fmt: skip
    model = load_base(
        resolve_model("bert", relative_to=tmp_path), torch.float32, task_type="FEATURE_EXTRACTION"
    )
    rows = EMBEDDING.render(config, tokenizer, [query(at) for at in range(4)], (), "train.jsonl")
    arguments = trainer_arguments(config, tmp_path / "out", resumed=True)
    trainer = EMBEDDING.trainer(config, model, tokenizer, arguments, rows, rows)
    batches = [trainer.data_collator(rows[at : at + 2]) for at in (0, 2)]
    seen: list[torch.Tensor] = []
    plain = trainer._vectors

    def watched(model: Any, batch: Any) -> Any:
        found = plain(model, batch)
        seen.append(torch.cat(found).detach())
        return found

    trainer._vectors = watched
    samples, _ = trainer.get_batch_samples(iter(batches), 2, torch.device("cpu"))
    model.train()
    for sample in samples:
        trainer.compute_loss(model, sample)
    assert len(seen) == 4
    torch.testing.assert_close(seen[2], seen[0], rtol=0, atol=0)
    torch.testing.assert_close(seen[3], seen[1], rtol=0, atol=0)
    assert not torch.equal(plain(model, samples[0])[0], seen[0][:2])


def _bert(folder: Path, *, dropout: float = 0.0) -> Path:
    from transformers import BertConfig, BertModel

    tokenizer = make_tokenizer(None)
    torch.manual_seed(0)
    network = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout,
    )  # fmt: skip
    BertModel(network).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_an_embedding_model_learns_and_makes_the_vectors_that_its_folder_says(
    base: ModelSource, dataset: Artifact, tmp_path: Path
) -> None:
    config = _config(
        method={"type": "embedding", "query_prompt": "ask: "}, num_train_epochs=10,
        load_best_model_at_end=True, metric_for_best_model="eval_accuracy",
    )  # fmt: skip
    trained = train_adapter(config, dataset, base, tmp_path / "adapter")
    metrics = trained.manifest.metrics
    assert metrics["eval_accuracy"] > metrics["eval_accuracy_before"]
    assert metrics["eval_loss"] < metrics["eval_loss_before"]
    names = {path.name for path in trained.path.iterdir()}
    assert {"modules.json", "1_Pooling", "adapter_config.json"} <= names
    assert not names & {"chat_template.jinja", "generation_config.json"}
    options = json.loads((trained.path / "adapter_config.json").read_text())
    assert options["task_type"] == "FEATURE_EXTRACTION"
    assert read_recipe(trained.path) == Recipe("lasttoken", is_normalized=True)
    assert read_prompts(trained.path) == {"query": "ask: ", "document": ""}

    found = evaluate_retrieval(
        EvaluationConfig(), config, dataset, base, trained, tmp_path / "retrieval"
    )
    figures = found.manifest.metrics
    assert figures["num_queries"] == 20
    assert figures["ndcg"] > figures["ndcg_base"] + 0.1
    assert figures["ndcg_difference_interval"][0] > 0
    _compare_with_merged(base, trained, found, tmp_path / "merged")


def _compare_with_merged(base: ModelSource, trained: Artifact, found: Artifact, out: Path) -> None:
    """The merged folder makes the vectors that base and adapter made apart, text by text."""
    from export import merge_adapter
    from export.config import MergeConfig

    model = merge_adapter(MergeConfig(), base, trained, out)
    recipe = read_recipe(model.path)
    states_of, dense = load_states(model.path, recipe), load_dense(model.path, recipe)
    rows = [json.loads(line) for line in (found.path / "vectors.jsonl").read_text().splitlines()]
    assert len(rows) == 64 and sum(row["text"].startswith("ask: ") for row in rows) == 20
    for row in rows[::7]:
        vector = vector_of(states_of(row["text"], True).states, recipe, dense)
        torch.testing.assert_close(vector, torch.tensor(row["vector"]), rtol=0, atol=2e-5)


def test_a_whole_encoder_learns_by_the_pooling_that_is_set(
    dataset: Artifact, tmp_path: Path
) -> None:
    _bert(tmp_path / "bert")
    base = resolve_model("bert", relative_to=tmp_path)
    config = _config(
        method={"type": "embedding", "pooling": "mean"}, finetuning_type="full", max_steps=3
    )
    trained = train_adapter(config, dataset, base, tmp_path / "whole")
    assert trained.kind == "model"
    assert read_recipe(trained.path) == Recipe("mean", is_normalized=True)
    assert all(row["max_change"] > 0 for row in trained.manifest.metrics["trained"])
    stored = load_file(trained.path / "model.safetensors")
    assert not [name for name in stored if "pooler" in name]


def test_ranks_count_equal_cosines_as_behind() -> None:
    rows = [query_row("q", ["a", "b"], []), query_row("q", ["c"], ["d"])]
    texts = ranked_passages(rows, [query_row("x", ["a", "e"], [])])
    assert texts == ["a", "b", "c", "d", "e"]
    passages = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, 0.0], [-1.0, 0.0]])
    queries = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    # The answers of one query are known from all of its rows: a, b and c. d is as near as a.
    assert positive_ranks(queries, passages, rows, texts) == [[2, 3, 4], [2, 3, 4]]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"packing": True}, "training.packing: an embedding model has one vector for each text"),
        ({"router_aux_loss_coef": 0.1}, "training.router_aux_loss_coef: an embedding model has"),
        (
            {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1},
            "a step of one row without negatives compares its passage with no other",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, Any], problem: str) -> None:
    rows = [query_row("q", ["a"], []), query_row("r", ["b"], [])]
    with pytest.raises(ConfigError, match=problem):
        EMBEDDING.check(_config(**changes), rows, "train.jsonl")


def test_rows_that_cannot_be_compared_or_are_too_long_are_refused(base: ModelSource) -> None:
    with pytest.raises(DataError, match="all rows have one passage"):
        EMBEDDING.check(_config(), [query_row("q", ["a"], [])] * 2, "train.jsonl")
    long = [query_row("q", ["word " * 200], [])]
    tokenizer = load_tokenizer(base.path)
    with pytest.raises(DataError, match="1 of 1 rows have a text longer than max_length=64"):
        EMBEDDING.render(_config(), tokenizer, long, (), "train.jsonl")


def test_a_text_that_no_server_of_the_base_takes_is_refused(tmp_path: Path) -> None:
    folder = _bert(tmp_path / "bert")
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 16}')
    write_recipe(folder, folder, Recipe("mean", is_normalized=True), {})
    config, tokenizer = _config(), load_tokenizer(folder)
    assert read_recipe(folder).max_tokens == 16
    short, long = query_row("q", ["red " * 4], []), query_row("q", ["red blue " * 8], [])
    assert len(EMBEDDING.render(config, tokenizer, [short], (), "train.jsonl")) == 1
    assert len(tokenizer(long.passages[0][0])["input_ids"]) <= config.max_length
    with pytest.raises(DataError, match="longer than the base's max_seq_length=16") as error:
        EMBEDDING.render(config, tokenizer, [short, long], (), "train.jsonl")
    assert (error.value.hint or "").startswith("Split the passages")


def test_an_encoder_that_does_not_say_its_pooling_needs_one(tmp_path: Path) -> None:
    folder = _bert(tmp_path / "bert")
    source = resolve_model("bert", relative_to=folder.parent)
    with pytest.raises(ArtifactError, match="nothing says how its vectors are made") as error:
        EMBEDDING.check_models(_config(), source, None)
    assert "training.method.pooling" in (error.value.hint or "")
    EMBEDDING.check_models(_config(method={"type": "embedding", "pooling": "mean"}), source, None)
    assert set(POOLINGS) > {"cls", "lasttoken", "mean"}
