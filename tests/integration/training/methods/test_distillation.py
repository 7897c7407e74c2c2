"""Distillation: the loss is the paper's divergence from the teacher, and only a teacher with the
base's tokens is taken."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForSequenceClassification,
    RecurrentGemmaConfig,
    RecurrentGemmaForCausalLM,
)

from export import merge_adapter, prove_model
from export.config import MergeConfig, ParityConfig
from tests.integration.training.methods.datasets import KINDS, write_dataset
from tests.integration.training.tiny import CHATML, make_base, make_tokenizer
from training.adapters.trainable import load_trainable
from training.config import ReferenceConfig, TrainingConfig
from training.estimates.memory import trained_network
from training.loop.arguments import trainer_arguments
from training.methods import find_method
from training.prepared import prepare_training
from training.reference import build_reference
from training.train import train_adapter
from tuneline.core.artifact import Artifact
from tuneline.core.errors import ArtifactError, ConfigError, DataError, TunelineError
from tuneline.models.source import ModelSource, resolve_model
from tuneline.models.tokenizer import load_tokenizer

COMMON = {
    "num_train_epochs": 1, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1,
    "learning_rate": 1e-2, "logging_steps": 1, "gradient_checkpointing": False,
    "max_length": 128, "report_to": [],
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("distillation")
    make_base(folder / "base")
    make_base(folder / "teacher", seed=1)
    return folder


@pytest.fixture(scope="module")
def base(folder: Path) -> ModelSource:
    return resolve_model("base", relative_to=folder)


@pytest.fixture(scope="module")
def dataset(folder: Path) -> Artifact:
    return write_dataset(folder / "data", "answer", 64, 8)


def _config(folder: Path, teacher: str = "teacher", **changes: Any) -> TrainingConfig:
    """Return a configuration whose paths are resolved."""
    options = {
        "type": "distillation", "teacher_model_name_or_path": teacher, "max_completion_length": 8,
        **changes.pop("options", {}),
    }  # fmt: skip
    config = TrainingConfig.model_validate({**COMMON, "method": options, **changes})
    return config.model_copy(update={"method": config.method.resolved(folder)})


def _wider(folder: Path, num_padded: int = 0, **changes: Any) -> None:
    """Write a teacher with the base's tokens, twice as wide, and rows after its tokens."""
    make_base(folder, seed=2, hidden_size=128, num_padded=num_padded, **changes)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_the_loss_is_the_mean_divergence_of_the_answers_tokens(
    beta: float, folder: Path, base: ModelSource, tmp_path: Path
) -> None:
    config = _config(folder, options={"beta": beta, "temperature": 0.7})
    method, tokenizer = find_method(config.method), load_tokenizer(base.path)
    rows = [KINDS["uneven"](index) for index in range(4)]
    prompts = method.render(config, tokenizer, rows, [tokenizer.eos_token_id], "rows")
    model, _, _ = load_trainable(config, base)
    arguments = trainer_arguments(config, tmp_path, resumed=True)
    trainer = method.trainer(config, model, tokenizer, arguments, prompts, prompts)
    model = trainer.model.train()
    (batch, *_) = trainer.get_train_dataloader()
    inputs = trainer._prepare_inputs(batch)
    found = float(trainer.compute_loss(model, inputs).detach())
    model.eval()
    teacher = AutoModelForCausalLM.from_pretrained(folder / "teacher")
    total, number, asked = 0.0, 0, set()
    for index in range(4):
        prompt, answer = (
            [i for i, kept in zip(*row, strict=True) if kept]
            for row in (
                (inputs[f"{part}_ids"][index].tolist(), inputs[f"{part}_mask"][index].tolist())
                for part in ("prompt", "completion")
            )
        )
        asked.add(tuple(prompt))
        q, p = (
            _distributions(each, [*prompt, *answer])[len(prompt) - 1 : -1]
            for each in (model, teacher)
        )
        m = beta * p + (1 - beta) * q
        parts = [(beta, p, m), (1 - beta, q, m)]
        if beta in (0, 1):
            parts = [(1, p, q) if beta == 0 else (1, q, p)]
        total += sum(share * float((a * np.log(a / b)).sum()) for share, a, b in parts)
        number += len(answer)
    assert asked == {tuple(prompt.prompt_ids) for prompt in prompts}
    assert found == pytest.approx(total / number, rel=1e-4) and found > 0.1


def _distributions(model: Any, input_ids: list[int]) -> np.ndarray[Any, Any]:
    """Return the distribution after each token at a temperature of 0.7, in 64 bits."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([input_ids])).logits[0].double().numpy() / 0.7
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    found: np.ndarray[Any, Any] = powers / powers.sum(-1, keepdims=True)
    return found


@pytest.mark.parametrize(
    ("teacher", "changes"),
    [
        ("teacher", {}),
        ("wider", {"finetuning_type": "full", "learning_rate": 5e-3}),
        ("padded", {"load_in_4bit": True}),
    ],
)
def test_a_model_comes_nearer_to_its_teacher_and_is_proven(
    teacher: str,
    changes: dict[str, Any],
    folder: Path,
    base: ModelSource,
    dataset: Artifact,
    tmp_path: Path,
) -> None:
    if teacher != "teacher":
        _wider(folder / teacher, 64 if teacher == "padded" else 0)
    config = _config(folder, teacher, **changes)
    trained = train_adapter(config, dataset, base, tmp_path / "a")
    figures = trained.manifest.metrics
    assert figures["num_steps"] == 16 and 64 < figures["num_trained_tokens"] <= 64 * 8
    assert figures["eval_loss"] < 0.95 * figures["eval_loss_before"]
    assert all(row["max_change"] > 0 for row in figures["trained"])
    digests = {entry.role: entry.digest for entry in trained.manifest.inputs}
    assert digests["teacher"] == resolve_model(teacher, relative_to=folder).digest
    asked = ReferenceConfig(num_prompts=2, max_new_tokens=6)
    reference = build_reference(asked, dataset, base, trained, tmp_path / "reference")
    source = resolve_model(str(trained.path)) if trained.kind == "model" else base
    adapters = () if trained.kind == "model" else trained
    merged = merge_adapter(MergeConfig(), source, adapters, tmp_path / "merged")
    model = resolve_model(str(merged.path))
    parity = prove_model(ParityConfig(), reference, model, tmp_path / "parity", form="merged")
    assert parity.manifest.metrics["verdict"] == "PASS"


def test_the_answers_choose_the_best_checkpoint(
    folder: Path, base: ModelSource, dataset: Artifact, tmp_path: Path
) -> None:
    best: dict[str, Any] = {
        "load_best_model_at_end": True, "metric_for_best_model": "eval_exact_match",
        "num_eval_prompts": 4, "max_steps": 2, "eval_steps": 1,
    }  # fmt: skip
    trained = train_adapter(_config(folder, **best), dataset, base, tmp_path / "a")
    assert trained.manifest.metrics["best_eval_exact_match"] == 0
    lines = (trained.path / "loss.jsonl").read_text().splitlines()
    assert {"eval_loss", "eval_entropy"} <= set().union(*map(json.loads, lines))


def test_the_memory_of_the_teacher_is_counted(folder: Path, base: ModelSource) -> None:
    _wider(folder / "counted")
    network = trained_network(_config(folder, "counted"), base.path)
    teacher = AutoModelForCausalLM.from_pretrained(folder / "counted")
    assert network.num_beside == sum(p.numel() for p in teacher.parameters())
    assert trained_network(TrainingConfig(), base.path).num_beside == 0


def _other_tokens(folder: Path) -> None:
    make_base(folder)
    make_tokenizer(texts=["zebra quagga okapi " * 9]).save_pretrained(folder)


def _cut(folder: Path) -> None:
    make_base(folder, num_padded=-8)


def _short(folder: Path) -> None:
    make_base(folder, max_position_embeddings=64)


def _capped(folder: Path) -> None:
    """Write a network whose soft cap of logits the installed TRL does not know."""
    make_base(folder)
    torch.manual_seed(0)
    tokenizer = load_tokenizer(folder)
    network = RecurrentGemmaForCausalLM(
        RecurrentGemmaConfig(
            vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=3,
            num_attention_heads=2, lru_width=64, logits_soft_cap=0.5, initializer_range=0.2,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
        )
    )  # fmt: skip
    network.save_pretrained(folder)


def _rewarding(folder: Path) -> None:
    """Write a model of scores, whose tied head transformers would take for one of tokens."""
    make_base(folder)
    network = LlamaForSequenceClassification(LlamaConfig.from_pretrained(folder, num_labels=1))
    network.save_pretrained(folder)


def _embedding(folder: Path) -> None:
    make_base(folder)
    (folder / "modules.json").write_text("[]")


def _ends_otherwise(folder: Path) -> None:
    """Write a model that ends its turns with a token at which the base does not stop."""
    make_base(folder, chat_template=CHATML.replace("<|im_end|>", "<|endoftext|>"))
    (folder / "generation_config.json").write_text('{"eos_token_id": [0, 2]}')


def _no_weights(folder: Path) -> None:
    make_base(folder)
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (_other_tokens, ConfigError, "has other tokens than the base model base, the first '"),
        (_cut, ConfigError, "has 284 rows, and that of the base model base has 292"),
        (_short, DataError, "takes 64"),
        (_capped, ConfigError, "leaves out what this network, or the base model's, does"),
        (_rewarding, ArtifactError, "is a model of vectors or scores"),
        (_embedding, ArtifactError, "is a model of vectors or scores"),
        (_ends_otherwise, ConfigError, "ends its answers with '<|endoftext|>', at which the base"),
        (_no_weights, ArtifactError, "no weights; expected safetensors"),
        (None, TunelineError, "no such folder"),
    ],
)
def test_a_teacher_that_cannot_teach_is_refused(
    make: Any,
    error: type[TunelineError],
    message: str,
    folder: Path,
    base: ModelSource,
    dataset: Artifact,
) -> None:
    name = make.__name__ if make else "./nobody"
    if make:
        make(folder / name)
    config = _config(folder, name)
    with pytest.raises(error, match=r"teacher|nobody|safetensors|takes 64") as caught:
        arguments = trainer_arguments(config, folder / "work", resumed=True)
        prepare_training(config, dataset, base).trainer(config, arguments)
    assert message in caught.value.message


def test_another_chat_template_of_the_teacher_is_said(
    folder: Path, base: ModelSource, caplog: pytest.LogCaptureFixture
) -> None:
    make_base(folder / "otherwise", chat_template=CHATML.replace("assistant", "bot"))
    config = _config(folder, "otherwise")
    with caplog.at_level(logging.WARNING):
        find_method(config.method).check_models(config, base, load_tokenizer(base.path))
    assert "the chat template of teacher" in caplog.text


def test_a_teacher_that_ends_otherwise_teaches_with_its_end_token(
    folder: Path, base: ModelSource
) -> None:
    _ends_otherwise(folder / "ends")
    config = _config(folder, "ends", eos_token="<|endoftext|>")
    find_method(config.method).check_models(config, base, load_tokenizer(base.path))


def test_a_base_teaches_only_its_own_4_bit_form(folder: Path, base: ModelSource) -> None:
    config, tokenizer = _config(folder, "base"), load_tokenizer(base.path)
    check = find_method(config.method).check_models
    with pytest.raises(ConfigError, match="base is the base model itself"):
        check(config, base, tokenizer)
    check(_config(folder, "base", load_in_4bit=True), base, tokenizer)


def test_the_held_out_loss_is_the_mean_of_all_answer_tokens(
    folder: Path, base: ModelSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = _config(folder, options={"temperature": 0.7, "max_completion_length": 12})
    method, tokenizer = find_method(config.method), load_tokenizer(base.path)
    rows = [KINDS["uneven"](index) for index in range(7)]
    # With many stop tokens, answers of random weights end early, at unequal lengths.
    prompts = method.render(config, tokenizer, rows, [2, *range(40, 80)], "rows")
    model, _, _ = load_trainable(config, base)
    arguments = trainer_arguments(config, tmp_path, resumed=True)
    trainer = method.trainer(config, model, tokenizer, arguments, prompts, prompts)
    batches: list[Any] = []
    answer = trainer._generate_and_score_completions

    def noted(inputs: Any) -> Any:
        batches.append(answer(inputs))
        return batches[-1]

    monkeypatch.setattr(trainer, "_generate_and_score_completions", noted)
    trainer.model.eval()
    found = trainer.evaluate()
    teacher = AutoModelForCausalLM.from_pretrained(folder / "teacher")
    losses, entropies = [], []
    for batch in batches:
        for index in range(len(batch["prompt_ids"])):
            prompt, said = (
                batch[f"{part}_ids"][index][batch[f"{part}_mask"][index].bool()].tolist()
                for part in ("prompt", "completion")
            )
            q, p = (
                _distributions(each, [*prompt, *said])[len(prompt) - 1 : -1]
                for each in (trainer.model, teacher)
            )
            losses += (q * np.log(q / p)).sum(-1).tolist()
            entropies += (-q * np.log(q)).sum(-1).tolist()
    assert [len(batch["prompt_ids"]) for batch in batches] == [4, 3]
    assert len(losses) == sum(int(batch["completion_mask"].sum()) for batch in batches) < 84
    assert found["eval_loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert found["eval_entropy"] == pytest.approx(np.mean(entropies), rel=1e-5)


def test_answers_are_given_without_dropout(folder: Path, base: ModelSource, tmp_path: Path) -> None:
    config = _config(folder, options={"top_k": 1}, lora_dropout=0.5)
    method, tokenizer = find_method(config.method), load_tokenizer(base.path)
    rows = [KINDS["uneven"](index) for index in range(4)]
    prompts = method.render(config, tokenizer, rows, [tokenizer.eos_token_id], "rows")
    model, _, _ = load_trainable(config, base)
    arguments = trainer_arguments(config, tmp_path, resumed=True)
    trainer = method.trainer(config, model, tokenizer, arguments, prompts, prompts)
    for name, parameter in trainer.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    trainer.model.train()
    (batch, *_) = trainer.get_train_dataloader()
    inputs = trainer._prepare_inputs(batch)
    assert trainer.model.training
    trainer.model.eval()
    for index in range(4):
        prompt, said = (
            inputs[f"{part}_ids"][index][inputs[f"{part}_mask"][index].bool()].tolist()
            for part in ("prompt", "completion")
        )
        with torch.no_grad():
            logits = trainer.model(input_ids=torch.tensor([[*prompt, *said]])).logits[0]
        assert said == logits[len(prompt) - 1 : -1].argmax(-1).tolist()
