"""The fast path computes what the plain one does: the same loss, the same gradients."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from tests.integration.training.conftest import Line
from training.adapters.lora import add_lora
from training.config import TrainingConfig
from training.loop import shared_rows
from training.loop.arguments import trainer_arguments
from training.loop.row_shares import fits_row_shares
from training.methods.sft import SFT
from training.model import load_base
from training.rendering.chat import Rendered
from tuneline.models.tokenizer import load_tokenizer


def _rows(num_rows: int) -> list[Rendered]:
    """Rows of 9 to 60 tokens whose answers have 1 to 11 tokens."""
    generator = torch.Generator().manual_seed(3)
    rows = []
    for index in range(num_rows):
        num_prompt, num_answer = 8 + 7 * (index % 6), 1 + index % 11
        ids = torch.randint(3, 250, (num_prompt + num_answer,), generator=generator).tolist()
        rows.append(Rendered(ids, ((num_prompt, len(ids)),)))
    return rows


def _model(line: Line, config: TrainingConfig) -> Any:
    torch.manual_seed(0)
    if config.finetuning_type == "full":
        return load_base(line.base, torch.float32).requires_grad_(True)
    model = add_lora(config, load_base(line.base, torch.float32))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # zeros at first, which would hide the gradient of lora_A
            torch.nn.init.normal_(parameter, std=0.05)
    return model


def _trained(model: Any) -> Iterator[tuple[str, Any]]:
    return ((name, p) for name, p in model.named_parameters() if p.requires_grad)


class _Record(TrainerCallback):  # type: ignore[misc]
    """The gradients of each optimizer step."""

    def __init__(self) -> None:
        self.gradients: list[dict[str, Any]] = []

    def on_pre_optimizer_step(self, *_: Any, model: Any, **__: Any) -> None:
        self.gradients.append({name: p.grad.clone() for name, p in _trained(model)})


@pytest.mark.parametrize(
    ("strategy", "way", "num_threads"),
    [("group_by_length", "lora", 1), ("random", "lora", 2), ("random", "full", 1)],
)
def test_gradients_equal_those_of_one_padded_batch(
    line: Line,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    strategy: str,
    way: str,
    num_threads: int,
) -> None:
    monkeypatch.setattr(shared_rows, "SHARE_LEAST", 32)
    # 18 rows in batches of 4, three batches to a window: the last window has two batches and the
    # last batch two rows.
    config = TrainingConfig.model_validate(
        {
            "per_device_train_batch_size": 4, "gradient_accumulation_steps": 3,
            "num_train_epochs": 1, "warmup_steps": 0, "max_grad_norm": 1e9, "learning_rate": 1e-12,
            "train_sampling_strategy": strategy, "finetuning_type": way,
            "gradient_checkpointing": False, "eval_steps": 99,
        }
    )  # fmt: skip
    model, rows, record = _model(line, config), _rows(18), _Record()
    tokenizer = load_tokenizer(line.base.path)
    arguments = trainer_arguments(config, tmp_path, resumed=True)
    trainer = SFT.trainer(config, model, tokenizer, arguments, rows, rows[:5])
    assert trainer.has_answer_loss
    trainer.add_callback(record)
    seen: list[list[dict[str, Any]]] = []
    collate = trainer.data_collator

    def collate_and_keep(examples: list[dict[str, Any]]) -> Any:
        seen.append(examples)
        return collate(examples)

    trainer.data_collator = collate_and_keep
    trainer.has_row_shares = fits_row_shares(trainer.model, [row.input_ids for row in rows])
    assert trainer.has_row_shares is (way == "lora")
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        trainer.train()
        assert torch.get_num_threads() == num_threads
    finally:
        torch.set_num_threads(before)
    seen = seen[:5]  # the held-out rows follow, at the end of training
    assert [len(batch) for batch in seen] == [4, 4, 4, 4, 2]
    windows = [list(itertools.chain(*seen[:3])), list(itertools.chain(*seen[3:]))]
    assert len(record.gradients) == 2

    plain = _plain(line, config)
    for window, found in zip(windows, record.gradients, strict=True):
        plain.zero_grad()
        _own_loss(plain, window).backward()
        expected = {name: p.grad for name, p in _trained(plain)}
        assert expected.keys() == found.keys() and len(found) == (28 if way == "lora" else 20)
        for name, gradient in expected.items():
            largest = float(gradient.abs().max())
            assert largest > 0
            # float32 sums in another order
            torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5 * largest)


@pytest.mark.parametrize(
    ("packing", "batch_size"), [(False, 1), (False, 4), (True, 1), (True, 2), (True, 4)]
)
def test_the_heldout_loss_is_the_mean_over_all_answer_tokens(
    line: Line, tmp_path: Path, packing: bool, batch_size: int
) -> None:
    config = TrainingConfig(
        per_device_train_batch_size=batch_size, gradient_checkpointing=False, packing=packing,
        max_length=64,
    )  # fmt: skip
    model, rows = _model(line, config), _rows(11)
    arguments = trainer_arguments(config, tmp_path, resumed=True)
    trainer = SFT.trainer(config, model, load_tokenizer(line.base.path), arguments, rows, rows)
    # Packed rows hold one row or two, so that their token numbers differ.
    assert len(trainer.eval_dataset) == (6 if packing else 11)
    found = trainer.evaluate()["eval_loss"]
    plain = _plain(line, config)
    examples = [{"input_ids": row.input_ids, "labels": row.labels} for row in rows]
    with torch.no_grad():
        assert found == pytest.approx(float(_own_loss(plain, examples)), rel=1e-5)


def test_a_measurement_does_not_count_the_heldout_tokens_again(line: Line, tmp_path: Path) -> None:
    # Counting them in every batch takes time that grows with the square of the number of rows.
    config = TrainingConfig(per_device_train_batch_size=4, gradient_checkpointing=False)
    model, rows = _model(line, config), _rows(11)
    arguments = trainer_arguments(config, tmp_path, resumed=True)
    trainer = SFT.trainer(config, model, load_tokenizer(line.base.path), arguments, rows, rows)
    expected = trainer.evaluate()["eval_loss"]
    dataset, trainer.eval_dataset = trainer.eval_dataset, None
    assert trainer.evaluate(dataset)["eval_loss"] == expected


def _plain(line: Line, config: TrainingConfig) -> Any:
    """The same model with peft's own layers and without TRL."""
    model = _model(line, config)
    for module in model.modules():
        module.__dict__.pop("forward", None)
    return model


def _own_loss(model: Any, examples: list[dict[str, Any]]) -> Any:
    """transformers' own loss on one batch, padded by hand."""
    longest = max(len(example["input_ids"]) for example in examples)
    ids, labels, mask = (
        torch.tensor([list(values(e)) + [fill] * (longest - len(e["input_ids"])) for e in examples])
        for values, fill in (
            (lambda e: e["input_ids"], 0),
            (lambda e: e["labels"], -100),
            (lambda e: [1] * len(e["input_ids"]), 0),
        )
    )
    return model(input_ids=ids, attention_mask=mask, labels=labels).loss


def test_a_head_that_caps_its_logits_keeps_the_loss_of_trl() -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    from training.loop.answer_loss import add_answer_loss

    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, head_dim=16, initializer_range=1.0,
    )  # fmt: skip
    ids = list(range(5, 25))
    capped = Gemma2ForCausalLM(config).float()
    assert not add_answer_loss(capped, ids, [-100] * 10 + ids[10:])
    assert "forward" not in capped.__dict__ or capped(torch.tensor([ids])).logits.shape[1] == 20
    config.final_logit_softcapping = None
    torch.manual_seed(0)
    assert add_answer_loss(Gemma2ForCausalLM(config).float(), ids, [-100] * 10 + ids[10:])
