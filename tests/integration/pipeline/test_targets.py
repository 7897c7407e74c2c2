"""An adapter that no merge takes is refused before the training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as T
from safetensors import safe_open

from training.adapters.lora import add_lora, write_lora
from training.adapters.outline import write_outline
from training.config import TrainingConfig
from training.model import load_base
from tuneline.core.errors import ConfigError
from tuneline.models.adapter_config import ADAPTER_WEIGHTS, read_peft_config
from tuneline.models.source import ModelSource, resolve_model
from tuneline.pipeline.run_config import RunConfig
from tuneline.pipeline.targets import require_targets

SMALL: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 2,
}  # fmt: skip
NETWORKS: dict[str, Any] = {
    "llama": T.LlamaConfig(**SMALL, tie_word_embeddings=True),
    "gpt2": T.GPT2Config(vocab_size=64, n_embd=64, n_layer=2, n_head=2),
    "falcon": T.FalconConfig(**SMALL),
    "biogpt": T.BioGptConfig(**SMALL),
    "inkling": T.InklingTextConfig(
        **SMALL, num_key_value_heads=1, head_dim=32, n_routed_experts=4, num_experts_per_tok=2,
        moe_intermediate_size=32, swa_num_attention_heads=2, swa_num_key_value_heads=1,
        swa_head_dim=32, rel_extent=64,
    ),
}  # fmt: skip


@pytest.fixture
def base(request: pytest.FixtureRequest, tmp_path: Path) -> ModelSource:
    """A network with random weights, of the family in the parameter."""
    torch.manual_seed(0)
    model = T.AutoModelForCausalLM.from_config(NETWORKS[request.param])
    model.save_pretrained(tmp_path / "base")
    return resolve_model("base", relative_to=tmp_path)


def _targets(base: ModelSource, sections: dict[str, Any]) -> dict[str, str]:
    values = {"name": "x", "base_model": base.name, "data": {"path": "rows.jsonl"}, **sections}
    return require_targets(RunConfig.model_validate(values), base)


@pytest.mark.parametrize(
    ("base", "training", "problem"),
    [
        ("inkling", {"trainable_token_indices": [3]}, r"an embedding with further tensors"),
        ("llama", {"use_dora": True, "target_modules": ["embed_tokens"]}, "DoRA on an embedding"),
        ("gpt2", {"use_dora": True}, "DoRA on a Conv1D weight"),
        ("biogpt", {"modules_to_save": ["embed_tokens"]}, r"is not called lm_head\.weight"),
        ("falcon", {"load_in_4bit": True}, "has no linear layer to quantize to NF4"),
    ],
    indirect=["base"],
)
def test_an_adapter_that_no_merge_takes_is_refused(
    base: ModelSource, training: dict[str, Any], problem: str
) -> None:
    match = f"^training: the adapter could not be merged after the training: .*{problem}"
    with pytest.raises(ConfigError, match=match):
        _targets(base, {"training": training})
    assert _targets(base, {"training": {"target_modules": "all-linear"}})["trained"]


@pytest.mark.parametrize("base", ["falcon"], indirect=True)
def test_a_hint_of_the_merge_names_the_key_of_run_yaml(base: ModelSource) -> None:
    sections: dict[str, Any] = {"training": {"load_in_4bit": True}}
    with pytest.raises(ConfigError) as caught:
        _targets(base, sections)
    assert caught.value.hint == "Try: --set export.merge.merge_base=original"
    assert _targets(base, {**sections, "export": {"merge": {"merge_base": "original"}}})["4 bits"]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_dora": True, "rank_pattern": {"q_proj": 2}},
        {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
        {"trainable_token_indices": [3, 5], "bias": "all"},
    ],
    ids=str,
)
@pytest.mark.parametrize("base", ["llama"], indirect=True)
def test_the_outline_of_an_adapter_has_the_names_and_shapes_of_its_files(
    base: ModelSource, options: dict[str, Any], tmp_path: Path
) -> None:
    found = []
    config = TrainingConfig.model_validate({"r": 4, **options})
    for name in ("outline", "written"):
        (tmp_path / name).mkdir()
        model = add_lora(config, load_base(base, torch.float32))
        if name == "outline":
            write_outline(model.to("meta"), tmp_path / name)
        else:
            write_lora(model, base.name, tmp_path / name)
        with safe_open(tmp_path / name / ADAPTER_WEIGHTS, "pt") as file:
            shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
        options_of = read_peft_config(tmp_path / name)
        for key in ("base_model_name_or_path", "inference_mode"):  # the merge reads neither
            options_of.pop(key)
        for key in ("target_modules", "modules_to_save"):  # sets have no order
            options_of[key] = sorted(options_of[key] or [])
        found.append((shapes, options_of))
    assert found[0] == found[1] and len(found[0][0]) >= 28
