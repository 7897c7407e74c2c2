"""A reward model, merged: the scores are those of base and adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from transformers import AutoModelForSequenceClassification, LlamaConfig, LlamaForCausalLM

from export import merge_adapter
from export.config import MergeConfig
from tuneline.core.errors import ArtifactError
from tuneline.models.source import resolve_model

IDS = torch.tensor([[5, 9, 60, 7, 3], [8, 8, 1, 40, 22]])


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    torch.manual_seed(3)
    folder = tmp_path / "base"
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=request.param,
            bos_token_id=None, eos_token_id=2,
        )
    ).save_pretrained(folder)  # fmt: skip
    return folder


def _scorer(base: Path, out: Path) -> Any:
    """Save an adapter with random weights, and return the live model."""
    torch.manual_seed(4)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    tuned = get_peft_model(
        model,
        LoraConfig(r=4, target_modules=["q_proj", "embed_tokens", "down_proj"],
                   task_type="SEQ_CLS", init_lora_weights=False),
    )  # fmt: skip
    tuned.save_pretrained(out)
    return tuned.eval()


def _scores(model: Any) -> torch.Tensor:
    model.config.pad_token_id = None
    with torch.no_grad():
        return torch.cat([model(input_ids=row[None]).logits for row in IDS])


def test_a_merged_reward_model_scores_as_base_and_adapter_do(base: Path, tmp_path: Path) -> None:
    live = _scores(_scorer(base, tmp_path / "adapter"))
    assert abs(live[0] - live[1]) > 1e-3
    source = resolve_model(str(base))
    made = merge_adapter(MergeConfig(), source, tmp_path / "adapter", tmp_path / "merged")
    config = json.loads((made.path / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert config["problem_type"] == "regression"
    with safe_open(made.path / "model.safetensors", framework="pt") as file:
        names = set(file.keys())
    assert "score.weight" in names
    assert "lm_head.weight" not in names
    merged, info = AutoModelForSequenceClassification.from_pretrained(
        made.path, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.allclose(_scores(merged.eval()), live, atol=1e-5)
    # A model that was trained whole has its score layer already.
    again = merge_adapter(MergeConfig(), resolve_model(str(made.path)), (), tmp_path / "cast")
    whole = AutoModelForSequenceClassification.from_pretrained(again.path)
    assert torch.equal(_scores(whole.eval()), _scores(merged))


def test_a_reward_model_that_was_trained_whole_says_that_its_score_is_a_number(
    base: Path, tmp_path: Path
) -> None:
    whole = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    whole.save_pretrained(tmp_path / "trained")
    source = resolve_model(str(tmp_path / "trained"))
    made = merge_adapter(MergeConfig(), source, (), tmp_path / "cast")
    config = json.loads((made.path / "config.json").read_text())
    assert config["problem_type"] == "regression"


def test_a_reward_model_is_no_part_of_a_sum(base: Path, tmp_path: Path) -> None:
    _scorer(base, tmp_path / "adapter")
    weighted = [(tmp_path / "adapter", 0.5), (tmp_path / "adapter", 0.5)]
    with pytest.raises(ArtifactError, match="an adapter of a reward model; expected one adapter"):
        merge_adapter(MergeConfig(), resolve_model(str(base)), weighted, tmp_path / "merged")
