"""Names of an adapter's tensors, and options that the merge refuses."""

from __future__ import annotations

from typing import Any

import pytest

from export.merge.adapter import PREFIX, parse_key
from export.merge.methods.table import METHODS, PEFT_TYPES, unsupported_options
from tests.unit.export.merge.made import adapter_of
from tuneline.core.errors import ArtifactError
from tuneline.models.adapter_config import foreign_options

Q = "model.layers.0.self_attn.q_proj"

# Options, the tensor's name, and its module, part and base tensor.
KEYS: dict[str, tuple[dict[str, Any], str, str, str, str]] = {
    "lora-a": ({}, f"{Q}.lora_A.weight", Q, "lora_A", f"{Q}.weight"),
    "lora-b": ({}, f"{Q}.lora_B.weight", Q, "lora_B", f"{Q}.weight"),
    "lora-bias": ({"lora_bias": True}, f"{Q}.lora_B.bias", Q, "lora_B.bias", f"{Q}.bias"),
    "dora": ({}, f"{Q}.lora_magnitude_vector", Q, "lora_magnitude_vector", f"{Q}.weight"),
    "dora-new": (
        {}, f"{Q}.lora_magnitude_vector.weight", Q, "lora_magnitude_vector", f"{Q}.weight",
    ),
    "embedding": (
        {}, "model.embed_tokens.lora_embedding_A", "model.embed_tokens", "lora_embedding_A",
        "model.embed_tokens.weight",
    ),
    "tokens": (
        {}, "model.embed_tokens.token_adapter.trainable_tokens_delta", "model.embed_tokens",
        "trainable_tokens_delta", "model.embed_tokens.weight",
    ),
    "copy-under-lora": (
        {}, "model.embed_tokens.base_layer.weight", "model.embed_tokens", "copy",
        "model.embed_tokens.weight",
    ),
    "copy-under-tokens": (
        {}, "model.embed_tokens.token_adapter.base_layer.weight", "model.embed_tokens", "copy",
        "model.embed_tokens.weight",
    ),
    "bias-under-lora": (
        {"bias": "all"}, f"{Q}.base_layer.bias", Q, "bias", f"{Q}.bias",
    ),
    "trained-bias": ({"bias": "all"}, f"{Q}.bias", f"{Q}.bias", "copy", f"{Q}.bias"),
    "saved-module": (
        {"modules_to_save": ["model.norm"]}, "model.norm.weight", "model.norm.weight", "copy",
        "model.norm.weight",
    ),
    "inside-a-saved-module": (
        {"modules_to_save": ["layers.0.mlp"]}, "model.layers.0.mlp.up_proj.weight",
        "model.layers.0.mlp.up_proj.weight", "copy", "model.layers.0.mlp.up_proj.weight",
    ),
    "resized-head": ({}, "lm_head.weight", "lm_head.weight", "copy", "lm_head.weight"),
    "experts": (
        {}, "model.layers.0.mlp.experts.base_layer.lora_A.weight",
        "model.layers.0.mlp.experts.base_layer", "lora_A",
        "model.layers.0.mlp.experts.base_layer.weight",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", KEYS)
def test_a_name_says_module_part_and_base_tensor(case: str) -> None:
    options, key, module, part, target = KEYS[case]
    (found,) = adapter_of(key, **options).tensors()
    assert (found.module, found.part.name, found.target) == (module, part, target)
    assert found.part.is_copy is (part in ("copy", "bias"))
    assert found.stored.name == f"{PREFIX}{key}"


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (f"{PREFIX}{Q}.lora_C.weight", "is a tensor of an unknown kind"),
        (f"{Q}.lora_A.weight", "is a tensor of an unknown kind"),
        (f"{PREFIX}{Q}.bias", "is a bias; expected none, because the option bias is 'none'"),
        (f"{PREFIX}model.norm.weight", "expected modules_to_save in adapter_config.json to name"),
        (f"{PREFIX}{Q}.oft_R.weight", "expected modules_to_save in adapter_config.json to name"),
        (f"{PREFIX}{Q}.oft_R", "is a tensor of an unknown kind"),
    ],
)
def test_a_name_of_no_method_is_refused(key: str, message: str) -> None:
    with pytest.raises(ArtifactError) as caught:
        parse_key(adapter_of(), key)
    assert key in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("options", "refused"),
    [
        ({"r": 4, "lora_alpha": 8, "use_rslora": True, "use_dora": True}, []),
        ({"lora_dropout": 0.1, "fan_in_fan_out": True, "task_type": "CAUSAL_LM"}, []),
        ({"use_qalora": False, "layer_replication": None, "alora_invocation_tokens": []}, []),
        ({"layer_replication": [[0, 2]]}, ["layer_replication=[[0, 2]]"]),
        ({"init_lora_weights": "pissa"}, ["init_lora_weights='pissa'"]),
        ({"init_lora_weights": "gaussian"}, []),
        ({"tomorrow": 1, "megatron_config": {}}, ["tomorrow=1"]),
    ],
)
def test_options_that_no_method_knows_are_named(
    options: dict[str, Any], refused: list[str]
) -> None:
    assert unsupported_options({"peft_type": "LORA", **options}) == refused


# The fields of LoraConfig in PEFT 0.21.2 that the merge knows, and some that it does not.
KNOWN = [
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_bias",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "modules_to_save",
    "peft_version",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "revision",
    "runtime_config",
    "target_modules",
    "target_parameters",
    "task_type",
    "trainable_token_indices",
    "use_dora",
    "use_rslora",
]
UNKNOWN = [
    "layer_replication",
    "use_qalora",
    "alora_invocation_tokens",
    "arrow_config",
    "loftq_config",
]


@pytest.mark.parametrize("name", [*KNOWN, *UNKNOWN])
def test_the_merge_and_the_server_know_the_same_options_of_lora(name: str) -> None:
    config = {"peft_type": "LORA", name: 1}
    expected = [f"{name}=1"] if name in UNKNOWN else []
    assert unsupported_options(config) == foreign_options(config) == expected


def test_the_table_has_one_row_for_each_name() -> None:
    titles = [method.title for method in METHODS]
    assert len(titles) == len(set(titles)) > 5
    assert "LORA" in PEFT_TYPES
    for method in METHODS:
        assert method.on is None or method.on in titles
        parts = {suffix: part.is_copy for suffix, part in method.suffixes.items()}
        assert not method.makes or (parts and not any(parts.values()))
        assert method.makes or all(parts.values())
