"""Rows of a packed sequence do not see one another, or packing is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as T

from training.loop.packing import (
    MAX_RELATIVE_LEAK,
    packing_leak,
    require_rows_apart,
    small_network,
)
from tuneline.core.errors import ConfigError

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}
GROUPED = SMALL | {"num_key_value_heads": 1, "head_dim": 16}
LINEAR = GROUPED | {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_value_heads": 2,
    "linear_num_key_heads": 1,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}

PLAIN = {
    "llama": lambda: T.LlamaForCausalLM(T.LlamaConfig(**GROUPED)),
    "qwen3": lambda: T.Qwen3ForCausalLM(T.Qwen3Config(**GROUPED)),
    "gpt-neox": lambda: T.GPTNeoXForCausalLM(T.GPTNeoXConfig(**SMALL)),
}
MIXING = {
    "lfm2": lambda: T.Lfm2ForCausalLM(
        T.Lfm2Config(**SMALL | {"num_key_value_heads": 1, "full_attn_idxs": [1]})
    ),
    "qwen3.5": lambda: T.Qwen3_5ForCausalLM(T.Qwen3_5TextConfig(**LINEAR)),
    "opt": lambda: T.OPTForCausalLM(
        T.OPTConfig(
            vocab_size=64, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=64, word_embed_proj_dim=32,
        )
    ),
}  # fmt: skip


def _model(build: Any) -> Any:
    torch.manual_seed(0)
    model = build()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim >= 2:
                weight.mul_(8)  # random weights of 0.02 mix tokens by too little to see
    return model.train()


@pytest.mark.parametrize("family", PLAIN)
def test_attention_with_positions_keeps_packed_rows_apart(family: str) -> None:
    model = _model(PLAIN[family])
    leak, largest = packing_leak(model)
    assert largest > 0.1
    assert leak == 0.0
    require_rows_apart(model, 64)
    assert model.training


@pytest.mark.parametrize("family", MIXING)
def test_packing_is_refused_where_rows_see_one_another(family: str) -> None:
    model = _model(MIXING[family])
    with pytest.raises(ConfigError, match="rows of one sequence see one another") as caught:
        require_rows_apart(model, 64)
    assert type(model).__name__ in str(caught.value)
    assert caught.value.hint == "Try: training.packing: false"
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("family", [*PLAIN, *MIXING])
def test_a_network_without_its_weights_shows_the_leak(family: str) -> None:
    with torch.device("meta"):
        model = (PLAIN | MIXING)[family]()
    network = small_network(model)
    leak, largest = packing_leak(network)
    assert (leak > MAX_RELATIVE_LEAK * largest) is (family in MIXING)
    assert model.config.vocab_size == 64


@pytest.mark.parametrize("family", [*PLAIN, *MIXING])
def test_the_leak_is_that_of_a_row_next_to_another(family: str) -> None:
    # Independent of the probe: the second row packed, against the same row on its own.
    model = _model((PLAIN | MIXING)[family]).eval()
    rows = torch.randint(1, 64, (2, 8), generator=torch.Generator().manual_seed(1))
    positions = torch.arange(8).repeat(2)[None]
    with torch.no_grad():
        output = model(input_ids=rows.view(1, -1), position_ids=positions, use_cache=False)
        packed = output.logits[0, 8:]
        alone = model(input_ids=rows[1:]).logits[0]
    assert bool((packed - alone).abs().max() > 1e-3) is (family in MIXING)


@pytest.mark.parametrize(
    ("chunk", "floor", "interval", "num_tokens"),
    [(12, 64, 9, 12), (64, 12, 1, 12)],
    ids=["chunks", "temperature"],
)
def test_packing_beyond_the_first_chunk_of_llama_4_is_refused(
    chunk: int, floor: int, interval: int, num_tokens: int
) -> None:
    config = T.Llama4TextConfig(
        **GROUPED, intermediate_size_mlp=48, num_local_experts=2, attention_chunk_size=chunk,
        floor_scale=floor, attn_scale=1.0, no_rope_layer_interval=interval,
    )  # fmt: skip
    model = _model(lambda: T.Llama4ForCausalLM(config)).eval()
    rows = torch.randint(1, 64, (2, 8), generator=torch.Generator().manual_seed(1))
    positions = torch.arange(8).repeat(2)[None]
    with torch.no_grad():
        packed = model(input_ids=rows.view(1, -1), position_ids=positions, use_cache=False)
        alone = model(input_ids=rows[1:], use_cache=False).logits[0]
    difference = (packed.logits[0, 8:] - alone).abs().amax(-1)
    assert difference[: num_tokens - 8 - 1].max() < 1e-4
    assert difference[num_tokens - 8 :].max() > 1e-3
    require_rows_apart(model, num_tokens)
    with pytest.raises(ConfigError, match=f"in chunks|chunks of {num_tokens} tokens") as caught:
        require_rows_apart(model, num_tokens + 1)
    assert f"training.max_length: {num_tokens}" in str(caught.value.hint)
