"""A row that is padded on the left has the probabilities that it has by itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    RwkvConfig,
    RwkvForCausalLM,
)

from training.adapters.lora import add_lora
from training.config import TrainingConfig
from training.loop.left_padding import place_padded_rows
from tuneline.core.errors import ConfigError

ROW = [5, 6, 7, 8, 9, 10, 11, 12]
ENDS: dict[str, Any] = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}


def _gpt2() -> Any:
    # Positions count as much as tokens.
    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=2, **ENDS))
    torch.nn.init.normal_(model.transformer.wpe.weight, std=0.5)
    return model


def _gpt_neo() -> Any:
    model = GPTNeoForCausalLM(
        GPTNeoConfig(
            vocab_size=50, hidden_size=32, num_layers=2, num_heads=2,
            attention_types=[[["global"], 2]], **ENDS,
        )
    )  # fmt: skip
    torch.nn.init.normal_(model.transformer.wpe.weight, std=0.5)
    return model


def _llama() -> Any:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=2, **ENDS,
        )
    )  # fmt: skip


def _mamba() -> Any:
    return MambaForCausalLM(
        MambaConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2, state_size=4, **ENDS)
    )


@pytest.mark.parametrize(
    ("make", "num_hooks"), [(_gpt2, 1), (_gpt_neo, 1), (_llama, 0), (_mamba, 0)]
)
def test_padding_on_the_left_changes_no_probability(make: Any, num_hooks: int) -> None:
    torch.manual_seed(0)
    model = make().eval()
    ids = torch.tensor([[0, 0, 0, *ROW], [*ROW, 3, 4, 2]])
    mask = torch.tensor([[0] * 3 + [1] * 8, [1] * 11])
    with torch.no_grad():
        alone = model(input_ids=ids[:1, 3:]).logits[0].log_softmax(-1)
        before = model(input_ids=ids, attention_mask=mask).logits[0, 3:].log_softmax(-1)
        assert ((before - alone).abs().max() > 0.1) == bool(num_hooks)
        place_padded_rows(model, "grpo", ROW)
        assert len(model.base_model._forward_pre_hooks) == num_hooks
        after = model(input_ids=ids, attention_mask=mask).logits[0, 3:].log_softmax(-1)
        torch.testing.assert_close(after, alone, atol=1e-4, rtol=0)
        # Generation gives positions and a cache of its own.
        kept = model.generate(ids[:1], attention_mask=mask[:1], max_new_tokens=3, do_sample=False)
        plain = model.generate(ids[:1, 3:], max_new_tokens=3, do_sample=False)
    assert kept[0, -3:].tolist() == plain[0, -3:].tolist()


def test_an_adapter_s_base_gets_positions() -> None:
    torch.manual_seed(0)
    base = _gpt2()
    model = add_lora(TrainingConfig(r=2), base, "CAUSAL_LM")
    place_padded_rows(model, "grpo", ROW)
    assert len(base.transformer._forward_pre_hooks) == 1


def test_a_model_that_reads_its_padding_is_refused() -> None:
    torch.manual_seed(0)
    model = RwkvForCausalLM(RwkvConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2, **ENDS))
    with pytest.raises(ConfigError, match="grpo on a RwkvForCausalLM: a row that is padded on"):
        place_padded_rows(model, "grpo", ROW)
    assert not model.base_model._forward_pre_hooks
