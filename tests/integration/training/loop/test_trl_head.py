"""A network whose logits TRL does not know trains on its own, or is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from trl.trainer import utils

from tests.integration.training.methods.datasets import KINDS
from tests.integration.training.tiny import make_base
from training.adapters.lora import add_lora
from training.config import TrainingConfig
from training.loop.arguments import trainer_arguments
from training.loop.trl_head import project_trained_positions
from training.methods import find_method
from training.model import load_base
from tuneline.core.errors import ConfigError
from tuneline.models.source import ModelSource, resolve_model
from tuneline.models.tokenizer import load_tokenizer

NUM_ROWS = 6


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    """A RecurrentGemma whose soft cap bends every logit."""
    folder = tmp_path_factory.mktemp("capped")
    make_base(folder / "llama")
    shutil.copytree(folder / "llama", folder / "base")
    vocab_size = json.loads((folder / "llama" / "config.json").read_text())["vocab_size"]
    torch.manual_seed(0)
    config = transformers.RecurrentGemmaConfig(
        vocab_size=vocab_size, hidden_size=64, intermediate_size=96, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=1, lru_width=64, attention_window_size=32,
        pad_token_id=0, eos_token_id=2, bos_token_id=None, logits_soft_cap=2.0,
    )  # fmt: skip
    model = transformers.RecurrentGemmaForCausalLM(config)
    with torch.no_grad():
        model.model.embed_tokens.weight.normal_(std=0.3)
    model.save_pretrained(folder / "base")
    return resolve_model("base", relative_to=folder)


def _trainer(base: ModelSource, work: Path, method: str, kind: str) -> tuple[Any, Any]:
    config = TrainingConfig.model_validate(
        {
            "per_device_train_batch_size": 2, "gradient_accumulation_steps": 3, "max_length": 128,
            "gradient_checkpointing": False, "report_to": [], "max_steps": 1, "logging_steps": 1,
            "warmup_steps": 0, "method": {"type": method},
        }
    )  # fmt: skip
    found, tokenizer = find_method(config.method), load_tokenizer(base.path)
    rows = [KINDS[kind](index) for index in range(NUM_ROWS)]
    examples = found.render(config, tokenizer, rows, [tokenizer.eos_token_id], "rows")
    model = add_lora(config, load_base(base, torch.float32))
    arguments = trainer_arguments(config, work, resumed=True)
    return found.trainer(config, model, tokenizer, arguments, examples, examples), examples


def test_trls_head_projects_trained_positions_on_a_cpu_too(
    base: ModelSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    # TRL's own answer for a CPU: an earlier training of this process may have replaced it.
    monkeypatch.setattr(utils, "_use_triton", lambda device: device.type != "cpu")
    counts: list[int] = []
    apply = utils._ChunkedLogProbFunction.apply

    def counted(hidden: torch.Tensor, *args: Any) -> Any:
        counts.append(hidden.shape[0])
        return apply(hidden, *args)

    monkeypatch.setattr(utils._ChunkedLogProbFunction, "apply", counted)
    model = load_base(base, torch.float32)
    utils.add_fused_lm_head(model)
    ids = torch.arange(24).view(2, 12)
    labels = torch.where(torch.arange(12) < 8, -100, ids)
    whole = model(input_ids=ids, labels=labels, fused_lm_head=True).log_probs
    project_trained_positions()
    found = model(input_ids=ids, labels=labels, fused_lm_head=True).log_probs
    assert counts == [2 * 11, 2 * 4]
    torch.testing.assert_close(found, whole)


def test_sft_has_the_loss_of_the_models_own_logits(base: ModelSource, tmp_path: Path) -> None:
    trainer, rows = _trainer(base, tmp_path, "sft", "uneven")
    model = trainer.model.eval()
    total, uncapped, number = 0.0, 0.0, 0
    for row in rows:
        labels = torch.tensor(row.labels[1:])
        ids = torch.tensor([row.input_ids])
        with torch.no_grad():
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
            hidden = model.get_base_model().model(input_ids=ids, use_cache=False)[0][0, :-1]
            raw = hidden @ model.get_output_embeddings().weight.t()
        total += float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"))
        uncapped += float(torch.nn.functional.cross_entropy(raw, labels, reduction="sum"))
        number += row.num_trained_tokens
    assert abs(uncapped - total) / number > 0.05  # the cap matters
    assert trainer.evaluate()["eval_loss"] == pytest.approx(total / number, rel=1e-4)
    trainer.train()
    (loss,) = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert loss == pytest.approx(total / number, rel=1e-4)


@pytest.mark.parametrize(("method", "kind"), [("dpo", "preference"), ("kto", "label")])
def test_a_method_that_reads_trls_probabilities_is_refused(
    base: ModelSource, tmp_path: Path, method: str, kind: str
) -> None:
    with pytest.raises(ConfigError, match=f"{method} on a RecurrentGemmaForCausalLM") as caught:
        _trainer(base, tmp_path, method, kind)
    assert "orpo" in str(caught.value.hint) and caught.value.exit_code == 2


def test_orpo_uses_the_models_own_logits(base: ModelSource, tmp_path: Path) -> None:
    trainer, _ = _trainer(base, tmp_path, "orpo", "preference")
    assert trainer.evaluate()["eval_loss"] > 0
