"""Adapters that PEFT saved, with one tensor lost or one too many: each is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.integration.export import families
from tests.integration.export.merging import edit_json, edit_tensors, refusal, run_merge

WEIGHTS = "adapter_model.safetensors"
LAST_Q = "model.layers.1.self_attn.q_proj.weight"
Q: dict[str, Any] = {"target_modules": ["q_proj"]}
TOKENS = {"trainable_token_indices": [3, 7]}
BOTH_TOKENS = {"trainable_token_indices": {"embed_tokens": [3, 7], "lm_head": [5]}}
SAME_TOKENS = {"trainable_token_indices": {"embed_tokens": [3, 7], "lm_head": [3, 7]}}
TIED = {"ensure_weight_tying": True}
EXPERTS = {"target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]}

# Family, options, what the names of the lost tensors hold, and what the refusal names.
LOST: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "target-pattern": (
        "mistral", {"target_modules": r".*\.(gate|up)_proj"}, "layers.1.mlp.up_proj",
        "model.layers.1.mlp.up_proj, which target_modules",
    ),
    "target-pattern-gpt2": (
        "gpt2", {"target_modules": r"transformer\.h\.\d+\.attn\.c_attn"}, "h.1.attn.c_attn",
        "transformer.h.1.attn.c_attn, which target_modules",
    ),
    "some-layers": (
        "llama", {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [0, 1]},
        "layers.1.self_attn.v_proj", "model.layers.1.self_attn.v_proj, which target_modules",
    ),
    "one-layer-of-a-pattern": (
        "llama",
        {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": 1,
         "layers_pattern": "layers"},
        "layers.1.self_attn.v_proj", "model.layers.1.self_attn.v_proj, which target_modules",
    ),
    "excluded-modules": (
        "llama", {"target_modules": "all-linear", "exclude_modules": ["k_proj"]},
        "layers.1.self_attn.v_proj", "model.layers.1.self_attn.v_proj, which target_modules",
    ),
    "bias-all-of-another-module": (
        "qwen2", {**Q, "bias": "all"}, "layers.1.self_attn.k_proj.bias",
        "model.layers.1.self_attn.k_proj.bias, which bias",
    ),
    "bias-all-of-its-own": (
        "gpt2", {"target_modules": ["c_attn"], "bias": "all"}, "h.1.attn.c_attn.base_layer.bias",
        "transformer.h.1.attn.c_attn.bias, which bias",
    ),
    "bias-lora-only": (
        "phi", {**Q, "bias": "lora_only"}, "layers.1.self_attn.q_proj.base_layer.bias",
        "model.layers.1.self_attn.q_proj.bias, which bias",
    ),
    "lora-bias": (
        "phi", {**Q, "lora_bias": True}, "layers.1.self_attn.q_proj.lora_B.bias",
        "model.layers.1.self_attn.q_proj, which lora_bias",
    ),
    "tokens": ("llama", {**Q, **TOKENS}, "token", "embed_tokens, which trainable_token_indices"),
    "tokens-tied": (
        "qwen3", {**Q, **TOKENS}, "token_adapter", "embed_tokens, which trainable_token_indices",
    ),
    "tokens-of-the-head": (
        "llama-tied", {**Q, **BOTH_TOKENS}, "lm_head", "lm_head, which trainable_token_indices",
    ),
    "tokens-of-both-at-once": (
        "llama-tied", {**Q, **SAME_TOKENS}, "token_adapter",
        "embed_tokens, which trainable_token_indices",
    ),
    "one-tensor-of-a-saved-module": (
        "qwen3", {**Q, "modules_to_save": ["layers.1.mlp"]}, "layers.1.mlp.up_proj",
        "model.layers.1.mlp.up_proj, which modules_to_save",
    ),
    "one-of-two-saved-modules": (
        "llama", {**Q, "modules_to_save": ["input_layernorm"]}, "layers.1.input_layernorm",
        "model.layers.1.input_layernorm, which modules_to_save",
    ),
    "a-saved-head-that-is-tied": (
        "qwen3", {**Q, "modules_to_save": ["embed_tokens", "lm_head"]}, "lm_head",
        "lm_head, which modules_to_save",
    ),
    "a-tied-head": (
        "qwen3", {"target_modules": ["q_proj", "lm_head"]}, "lm_head.lora",
        "lm_head, which target_modules",
    ),
    "experts": (
        "mixtral", {**Q, **EXPERTS}, "layers.1.mlp.experts.", "which target_parameters",
    ),
}  # fmt: skip

# Adapters that are whole without a tensor for each name that an option could mean.
WHOLE: dict[str, tuple[str, dict[str, Any]]] = {
    "excluded-pattern": ("llama", {**Q, "exclude_modules": r".*\.0\..*"}),
    "a-saved-module-is-not-adapted": (
        "qwen3", {"target_modules": "all-linear", "modules_to_save": ["layers.1.mlp"]},
    ),
    "bias-of-a-saved-module": ("qwen2", {**Q, "bias": "all", "modules_to_save": ["k_proj"]}),
    "tied-tokens": ("llama-tied", {**Q, **SAME_TOKENS}),
    "tied-embedding": ("llama-tied", {"target_modules": ["q_proj", "embed_tokens"], **TIED}),
    "tied-head": ("llama-tied", {"target_modules": ["q_proj", "lm_head"], **TIED}),
    "a-saved-router": ("qwen3-moe", {**Q, "modules_to_save": ["mlp.gate"]}),
    "old-names-of-experts": ("mixtral", {"target_modules": ["w1", "w2", "w3"]}),
    "a-parameter-of-another-family": (
        "qwen3-moe", {**Q, "target_parameters": ["mlp.experts.down_proj", "mlp.gate.wg.weight"]},
    ),
    "patterns-of-parameters": (
        "qwen3-moe",
        {**Q, "target_parameters": ["mlp.gate.weight", "k_proj.weight"],
         "alpha_pattern": {"mlp.gate.weight": 64, "k_proj": 64, "q_proj": 2},
         "rank_pattern": {"k_proj.weight": 3}},
    ),
}  # fmt: skip


def made(family: str, options: dict[str, Any], tmp_path: Path) -> tuple[Path, Path]:
    base = families.make_base(tmp_path / "base", family)
    return base, families.make_adapter(tmp_path / "adapter", base, **options)


@pytest.mark.parametrize("case", LOST)
def test_an_adapter_that_lost_a_tensor_is_refused(case: str, tmp_path: Path) -> None:
    family, options, lost, message = LOST[case]
    base, adapter = made(family, options, tmp_path)
    run_merge(base, adapter, tmp_path / "whole")
    names = [name for name in load_file(adapter / WEIGHTS) if lost in name]
    assert names
    edit_tensors(adapter / WEIGHTS, lambda t: [t.pop(name) for name in names])
    found = refusal(base, adapter, tmp_path / "out")
    assert f"{message} in adapter_config.json names" in found


def test_a_lost_layer_is_refused_on_a_base_without_its_head(tmp_path: Path) -> None:
    """The options name modules by a prefix that the base's files do not have."""
    base, adapter = made("llama-tied", {"target_modules": r"model\..*\.q_proj"}, tmp_path)
    edit_tensors(
        base / "model.safetensors",
        lambda t: [t.update({name[6:]: t.pop(name)}) for name in list(t)],
    )
    run_merge(base, adapter, tmp_path / "whole")
    edit_tensors(adapter / WEIGHTS, lambda t: [t.pop(name) for name in list(t) if ".1." in name])
    assert "has nothing for model.layers.1." in refusal(base, adapter, tmp_path / "out")


@pytest.mark.parametrize(
    ("family", "prefix"), [("qwen3-next", "mtp.layers.0"), ("qwen3", "model.layers.2")]
)
def test_layers_that_transformers_does_not_load_need_nothing_and_stay(
    family: str, prefix: str, tmp_path: Path
) -> None:
    """Weights that predict further tokens have the names that the options mean."""
    base, adapter = made(family, {"target_modules": ["q_proj", "down_proj"]}, tmp_path)
    name = f"{prefix}.self_attn.q_proj.weight"
    further = torch.randn(load_file(base / "model.safetensors")[LAST_Q].shape)
    edit_tensors(base / "model.safetensors", lambda t: t.update({name: further}))
    merged = run_merge(base, adapter, tmp_path / "out")
    weights = merged.path / "model.safetensors"
    assert torch.equal(load_file(weights)[name], further)
    edit_tensors(weights, lambda t: t.pop(name))
    live = families.live_logits(base, adapter)
    assert (families.merged_logits(merged.path) - live).abs().max() < 5e-5
    lost = "layers.1.self_attn.q_proj"
    edit_tensors(adapter / WEIGHTS, lambda t: [t.pop(name) for name in list(t) if lost in name])
    message = refusal(base, adapter, tmp_path / "again")
    assert "has nothing for model.layers.1.self_attn.q_proj, which target_modules" in message


@pytest.mark.parametrize("case", WHOLE)
def test_a_whole_adapter_answers_as_the_live_model(case: str, tmp_path: Path) -> None:
    base, adapter = made(*WHOLE[case], tmp_path)
    merged = run_merge(base, adapter, tmp_path / "out")
    live = families.live_logits(base, adapter)
    assert (families.merged_logits(merged.path) - live).abs().max() < 5e-5


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("target_parameters", ["mlp.experts.gate_up_proj"]),
        ("modules_to_save", ["score"]),
        ("trainable_token_indices", {"wte": [3]}),
    ],
)
def test_an_option_that_names_what_the_base_lacks_is_refused(
    option: str, value: Any, tmp_path: Path
) -> None:
    base, adapter = made("llama", Q, tmp_path)
    edit_json(adapter / "adapter_config.json", **{option: value})
    (target,) = value
    message = refusal(base, adapter, tmp_path / "out")
    assert f"has nothing for {target}, which {option}" in message
    assert "no such tensor" in message


@pytest.mark.parametrize(
    ("options", "lost"),
    [
        ({"exclude_modules": ["v_proj"]}, "v_proj"),
        ({"layers_to_transform": [0]}, "layers.1."),
        ({"target_modules": ["q_proj"]}, "v_proj"),
        ({"target_modules": []}, "layers.0."),
    ],
)
def test_a_change_that_no_option_names_is_refused(
    options: dict[str, Any], lost: str, tmp_path: Path
) -> None:
    """PEFT does not load it, so the live model is without it."""
    base, adapter = made("llama", {"target_modules": ["q_proj", "v_proj"]}, tmp_path)
    edit_json(adapter / "adapter_config.json", **options)
    message = refusal(base, adapter, tmp_path / "out")
    assert "which no option in adapter_config.json names" in message
    assert lost in message


def test_two_tensors_for_one_are_refused(tmp_path: Path) -> None:
    base, adapter = made("llama", {"target_modules": ["q_proj", "embed_tokens"]}, tmp_path)
    name = "base_model.model.model.embed_tokens"
    assert f"{name}.base_layer.weight" in load_file(adapter / WEIGHTS)
    edit_tensors(adapter / WEIGHTS, lambda t: t.update({f"{name}.weight": torch.randn(320, 64)}))
    message = refusal(base, adapter, tmp_path / "out")
    assert f"{name}.base_layer.weight and {name}.weight both replace" in message


@pytest.mark.parametrize("options", [Q, {**Q, "modules_to_save": ["norm"]}])
def test_two_spellings_of_one_module_are_refused(options: dict[str, Any], tmp_path: Path) -> None:
    base, adapter = made("llama-tied", options, tmp_path)
    edit_tensors(
        base / "model.safetensors",
        lambda t: [t.update({name[6:]: t.pop(name)}) for name in list(t)],
    )
    run_merge(base, adapter, tmp_path / "whole")
    kind = "norm.weight" if "modules_to_save" in options else "q_proj"
    edit_tensors(
        adapter / WEIGHTS,
        lambda t: t.update(
            {name.replace("model.model.", "model.", 1): value.clone() * 2
             for name, value in list(t.items()) if kind in name}
        ),
    )  # fmt: skip
    assert "has no tensor" in refusal(base, adapter, tmp_path / "out")
