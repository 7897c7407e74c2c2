"""Attention that limits its scores is computed with the limit, whatever transformers picks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from export.runtimes.transformers_folder import load_model
from tests.integration.training.tiny import make_tokenizer
from training.model import load_base
from tuneline.models.load import limits_scores, load_network
from tuneline.models.source import resolve_model

TOKENS = torch.arange(3, 27)[None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gemma2")
    tokenizer = make_tokenizer(None)
    torch.manual_seed(0)
    config = transformers.Gemma2Config(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=80, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, attn_logit_softcapping=2.0,
        query_pre_attn_scalar=1, initializer_range=0.2, final_logit_softcapping=None,
    )  # fmt: skip
    transformers.Gemma2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(TOKENS).logits
    return found


def test_each_loader_limits_the_scores(folder: Path) -> None:
    def by_transformers(attention: str) -> torch.Tensor:
        return logits(
            transformers.AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, attn_implementation=attention
            ).eval()
        )

    expected = by_transformers("eager")
    assert (by_transformers("sdpa") - expected).abs().max() > 0.1
    source = resolve_model(str(folder))
    for model in (
        load_network(folder, torch.float32, what="it"),
        load_base(source, torch.float32).eval(),
        load_model(folder)[0],
    ):
        assert torch.equal(logits(model), expected)


@pytest.mark.parametrize(
    ("config", "limits"),
    [
        ({"model_type": "gemma2"}, True),  # transformers' default is 50
        ({"model_type": "gemma2", "attn_logit_softcapping": None}, False),
        ({"model_type": "gemma3_text", "attn_logit_softcapping": None}, False),
        ({"model_type": "llama"}, False),
        ({"model_type": "pair", "text_config": {"attn_logit_softcapping": 30.0}}, True),
    ],
)
def test_the_limit_is_read_from_config_json(config: dict[str, object], limits: bool) -> None:
    assert limits_scores(config) is limits
