"""The reach of an adapter in the families: every name means layers that get a gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers

from tests.integration.export import families
from training.adapters.lora import add_lora
from training.adapters.reach import left_out, reached
from training.config import TrainingConfig
from tuneline.core.errors import ConfigError

DEEPSEEK = {
    **families.SMALL, "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "n_group": 1, "topk_group": 1, "moe_intermediate_size": 48, "first_k_dense_replace": 1,
    "q_lora_rank": 32, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
    "v_head_dim": 16, "n_shared_experts": 1,
}  # fmt: skip
STATE = {
    "vocab_size": families.VOCABULARY, "hidden_size": 64, "state_size": 8, "num_hidden_layers": 2,
    "pad_token_id": 0, "eos_token_id": 2, "bos_token_id": None,
}  # fmt: skip
CONFIGS: dict[str, Callable[[], Any]] = {
    **families.FAMILIES,
    **families.NAMED_OTHERWISE,
    "deepseek-v3": lambda: transformers.DeepseekV3Config(**DEEPSEEK),
    "qwen2-moe": lambda: transformers.Qwen2MoeConfig(
        **families.SMALL, **families.FEW, shared_expert_intermediate_size=48
    ),
    "phimoe": lambda: transformers.PhimoeConfig(**families.SMALL, **families.LOCAL),
    "mamba": lambda: transformers.MambaConfig(**STATE),
    "mamba2": lambda: transformers.Mamba2Config(**STATE, num_heads=8, head_dim=16, n_groups=1),
    "granite-hybrid": lambda: transformers.GraniteMoeHybridConfig(
        **families.SMALL, layer_types=["mamba", "attention"], num_local_experts=0,
        shared_intermediate_size=96, mamba_n_heads=8, mamba_d_head=16, mamba_d_state=8,
    ),
}  # fmt: skip
EXPERTS = {"experts"}
DENSE = {"gate_proj", "up_proj", "down_proj"}
ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
# The modules of each family, by the last part of their names; a router is in none.
REACHED = {
    "llama": ATTENTION | DENSE,
    "gpt2": {"c_attn", "c_proj", "c_fc"},
    "phi3": {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"},
    "mixtral": ATTENTION | EXPERTS,
    "qwen3-moe": ATTENTION | EXPERTS,
    "qwen2-moe": ATTENTION | EXPERTS | DENSE | {"shared_expert_gate"},
    "gpt-oss": ATTENTION | EXPERTS,
    "granite-moe": ATTENTION | EXPERTS,
    "phimoe": ATTENTION | EXPERTS,
    "llama4-text": ATTENTION | EXPERTS | DENSE,
    "jamba": ATTENTION | EXPERTS | {"in_proj", "x_proj", "out_proj"},
    "mamba": {"in_proj", "x_proj"},
    "mamba2": {"in_proj"},
    "granite-hybrid": ATTENTION | {"in_proj", "input_linear", "output_linear"},
    "deepseek-v3": EXPERTS | DENSE
    | {"q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"},
}  # fmt: skip
ROUTERS = {
    "mixtral": "gate", "qwen3-moe": "gate", "qwen2-moe": "gate", "gpt-oss": "router",
    "granite-moe": "router", "phimoe": "router", "llama4-text": "router", "jamba": "router",
    "deepseek-v3": "gate",
}  # fmt: skip


def model_of(family: str) -> Any:
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(CONFIGS[family](), dtype=torch.float32)


def config(**values: Any) -> TrainingConfig:
    return TrainingConfig.model_validate({"r": 4, **values})


@pytest.mark.parametrize("family", REACHED)
def test_all_linear_reaches_every_layer_and_each_gets_a_gradient(family: str) -> None:
    model = model_of(family)
    without = left_out(model)
    tuned = add_lora(config(), model)
    patterns = {row.pattern.rpartition(".")[2] for row in reached(tuned)}
    assert patterns == REACHED[family]
    routers = {name.rpartition(".")[2] for name, why in without.items() if why == "a router"}
    assert routers == ({ROUTERS[family]} if family in ROUTERS else set())
    trained = {name: p for name, p in tuned.named_parameters() if p.requires_grad}
    assert len(trained) >= 4
    optimizer = torch.optim.SGD(trained.values(), 0.1)
    ids = torch.randint(5, 300, (2, 24))
    for _ in range(2):  # B is zero at first, and with it the gradient of A
        optimizer.step()
        optimizer.zero_grad()
        tuned(input_ids=ids, labels=ids).loss.backward()
    assert [n for n, p in trained.items() if p.grad is None or not p.grad.abs().max()] == []


def test_names_of_dense_layers_reach_dense_layers_and_experts() -> None:
    tuned = add_lora(config(target_modules=sorted(DENSE)), model_of("deepseek-v3"))
    assert {row.pattern for row in reached(tuned)} == {
        "model.layers.*.mlp.gate_proj", "model.layers.*.mlp.up_proj",
        "model.layers.*.mlp.down_proj", "model.layers.*.mlp.experts",
        "model.layers.*.mlp.shared_experts.gate_proj", "model.layers.*.mlp.shared_experts.up_proj",
        "model.layers.*.mlp.shared_experts.down_proj",
    }  # fmt: skip


def test_layers_and_exclusions_limit_experts_too() -> None:
    values = {"layers_to_transform": [1], "exclude_modules": ["o_proj"]}
    tuned = add_lora(config(**values), model_of("mixtral"))
    names = [name for name, p in tuned.named_parameters() if p.requires_grad]
    assert len(names) == 10 and all(".layers.1." in name for name in names)
    assert not any("o_proj" in name for name in names)


@pytest.mark.parametrize(
    ("family", "values", "problem"),
    [
        ("llama-tied", {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True},
         "puts an adapter on the output head too"),
        ("llama", {"lora_config": {"lora_bias": True}}, "down_proj, .* have no bias in this model"),
        ("mixtral", {"lora_dropout": 0.1}, "lora_dropout: is not possible on mlp.experts"),
        ("mixtral", {"use_dora": True}, "use_dora: is not possible on mlp.experts"),
        ("mixtral", {"lora_config": {"lora_bias": True}}, "lora_config.lora_bias: is not possible"),
        ("qwen3-moe", {"target_modules": ["gate_proj"]}, "expected up_proj too"),
        ("llama", {"target_modules": ["q_proj", "typo_proj"]}, "target_modules: 'typo_proj' match"),
        ("llama", {"target_modules": "q_proj"}, "target_modules: 'q_proj' matches nothing"),
        ("llama", {"exclude_modules": ["none"]}, "exclude_modules: 'none' matches nothing"),
        ("llama", {"modules_to_save": ["emb_x"]}, "modules_to_save: 'emb_x' matches nothing"),
        ("llama", {"rank_pattern": {"x_proj": 2}}, "rank_pattern: 'x_proj' matches nothing"),
        ("llama", {"target_parameters": ["mlp.w"]}, "target_parameters: 'mlp.w' matches nothing"),
        ("llama", {"layers_to_transform": [2]}, "layer 2 does not exist; the model has 2"),
        ("llama", {"lora_config": {"use_dorra": 1}}, r"use_dorra is not .* mean use_dora\?"),
        ("llama", {"lora_config": {"init_lora_weights": "pissa"}}, "init_lora_weights='pissa'"),
    ],
)  # fmt: skip
def test_a_target_that_cannot_be_trained_is_refused(
    family: str, values: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem) as error:
        add_lora(config(**values), model_of(family))
    assert error.value.exit_code == 2


def test_every_option_of_peft_is_reached_by_its_own_name() -> None:
    values = {
        "use_dora": True, "bias": "lora_only", "rank_pattern": {"q_proj": 2},
        "lora_config": {"init_lora_weights": "gaussian"},
    }  # fmt: skip
    lora = add_lora(config(**values), model_of("llama")).peft_config["default"]
    assert lora.use_dora and lora.bias == "lora_only" and lora.rank_pattern == {"q_proj": 2}
    assert lora.init_lora_weights == "gaussian"
