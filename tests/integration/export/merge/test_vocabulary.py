"""Merging what was trained of embeddings and output layers: whole, low-rank, row by row, resized.

The truth is what the live adapter model computes. Where PEFT's own merge computes the same, the
bits must be PEFT's too.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file

from export.config import MergeConfig
from export.merge.merge import merge
from tests.integration.export import families
from tests.integration.export.merging import (
    assert_same_bits,
    edit_json,
    edit_tensors,
    refusal,
    run_merge,
    tensors,
)
from tuneline.core.artifact import verify_artifact
from tuneline.core.errors import ArtifactError
from tuneline.models.source import resolve_model

HEAD = "lm_head.weight"
Q = ["q_proj"]

# Family, options, whether the output layer comes untied, whether PEFT's own merge is right.
CASES: dict[str, tuple[str, dict[str, Any], bool, bool]] = {
    "whole-norm": ("llama", {"modules_to_save": ["model.norm"]}, False, True),
    "whole-both": ("llama", {"modules_to_save": ["embed_tokens", "lm_head"]}, False, True),
    "whole-head-with-bias": ("phi", {"modules_to_save": ["lm_head"]}, False, True),
    "whole-layer": ("qwen3", {"modules_to_save": ["layers.1.mlp"]}, False, True),
    "whole-both-tied": (
        "llama-tied", {"modules_to_save": ["embed_tokens", "lm_head"]}, True, True,
    ),
    "whole-embedding-tied": ("qwen3", {"modules_to_save": ["embed_tokens"]}, True, True),
    "whole-head-tied": ("gemma", {"modules_to_save": ["lm_head"]}, True, True),
    "whole-ensured": (
        "llama-tied", {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}, False,
        True,
    ),
    "lora-embedding": ("mistral", {"target_modules": [*Q, "embed_tokens"]}, False, True),
    "lora-embedding-tied": ("llama-tied", {"target_modules": [*Q, "embed_tokens"]}, True, False),
    "lora-embedding-gpt2": ("gpt2", {"target_modules": ["c_attn", "wte"]}, True, False),
    "lora-embedding-ensured": (
        "llama-tied", {"target_modules": [*Q, "embed_tokens"], "ensure_weight_tying": True}, False,
        False,
    ),
    "lora-head-tied": ("qwen3", {"target_modules": [*Q, "lm_head"]}, True, False),
    # PEFT ties only an embedding with the name embed_tokens.
    "lora-embedding-ensured-gpt2": (
        "gpt2", {"target_modules": ["c_attn", "wte"], "ensure_weight_tying": True}, True, False,
    ),
    "whole-ensured-gpt2": (
        "gpt2", {"modules_to_save": ["wte"], "ensure_weight_tying": True}, True, True,
    ),
    "tokens-under-lora-head-tied": (
        "qwen3",
        {"target_modules": [*Q, "lm_head"], "trainable_token_indices": {"embed_tokens": [3, 7]}},
        True, False,
    ),
    "tokens": ("llama", {"trainable_token_indices": [3, 7, 11]}, False, True),
    "tokens-of-both": (
        "llama", {"trainable_token_indices": {"embed_tokens": [3, 7], "lm_head": [5]}}, False, True,
    ),
    "tokens-tied": ("qwen3", {"trainable_token_indices": [3, 7, 11]}, False, True),
    "tokens-tied-but-different": (
        "llama-tied", {"trainable_token_indices": {"embed_tokens": [3, 7], "lm_head": [5]}}, True,
        False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES)
def test_the_merge_is_what_the_live_model_computes(
    case: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    family, options, untied, peft_is_right = CASES[case]
    if case == "lora-embedding-ensured" and dtype == torch.bfloat16:
        pytest.skip("PEFT keeps both in float32 on a bfloat16 base, and does not tie them")
    base = families.make_base(tmp_path / "base", family, dtype)
    values = {"target_modules": ["c_attn"] if family == "gpt2" else Q, **options}
    adapter = families.make_adapter(tmp_path / "adapter", base, **values)
    merged = run_merge(base, adapter, tmp_path / "out")
    verify_artifact(merged)

    found, before = tensors(merged.path), tensors(base)
    assert found.keys() == before.keys() | ({HEAD} if untied else set())
    assert merged.manifest.metrics["untied"] is untied
    tied_before = json.loads((base / "config.json").read_text())["tie_word_embeddings"]
    tied_after = json.loads((merged.path / "config.json").read_text())["tie_word_embeddings"]
    assert tied_after is (tied_before and not untied)
    changed = [name for name in before if not torch.equal(found[name], before[name])]
    assert changed
    if peft_is_right:
        by_peft = families.peft_merge(base, adapter)
        for name, value in found.items():
            assert value.dtype == dtype
            assert torch.equal(value, by_peft[name].to(dtype)), name
    if dtype == torch.float32:
        live = families.live_logits(base, adapter)
        assert live.std() > 0.05
        assert (families.merged_logits(merged.path) - live).abs().max() < 2e-5
        alone = families.merged_logits(base)
        assert (alone - live).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("options", "untied"),
    [
        ({"trainable_token_indices": [3, 7]}, False),
        ({"modules_to_save": ["embeddings"]}, True),
        ({"target_modules": ["x_proj", "embeddings"]}, True),
        ({"target_modules": ["x_proj", "lm_head"]}, True),
    ],
    ids=["tokens", "whole", "lora-embedding", "lora-head"],
)
def test_mambas_embedding_has_a_name_of_its_own(
    options: dict[str, Any], untied: bool, tmp_path: Path
) -> None:
    config = transformers.MambaConfig(
        vocab_size=families.VOCABULARY, hidden_size=64, num_hidden_layers=2, state_size=8
    )
    base = families.save_random(tmp_path / "base", config, torch.float32)
    values = {"target_modules": ["x_proj"], **options}
    adapter = families.make_adapter(tmp_path / "adapter", base, **values)
    merged = run_merge(base, adapter, tmp_path / "out")
    assert merged.manifest.metrics["untied"] is untied
    live = families.live_logits(base, adapter)
    assert (families.merged_logits(base) - live).abs().max() > 1e-3
    assert (families.merged_logits(merged.path) - live).abs().max() < 2e-5 * live.abs().max()


def test_tokens_of_an_embedding_with_a_norm_are_refused(tmp_path: Path) -> None:
    """PEFT looks rows up without the module's own norm, so the live model is another model."""
    config = transformers.InklingTextConfig(
        **families.HEADS, n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=48,
        swa_num_attention_heads=4, swa_num_key_value_heads=2, swa_head_dim=16, rel_extent=64,
    )  # fmt: skip
    base = families.save_random(tmp_path / "base", config, torch.float32)
    alone = families.merged_logits(base)
    options = peft.LoraConfig(target_modules=["q_proj"], trainable_token_indices=[3, 7])
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    peft.get_peft_model(model, options).save_pretrained(tmp_path / "adapter")
    untrained = families.live_logits(base, tmp_path / "adapter")
    assert (untrained - alone).abs().max() > 1e-3
    message = refusal(base, tmp_path / "adapter", tmp_path / "out")
    assert "embed_tokens.embed_norm.weight), which PEFT leaves out for all tokens" in message


def test_an_embedding_may_have_more_rows_than_the_output_layer(tmp_path: Path) -> None:
    config = transformers.MoshiConfig(**families.HEADS, ffn_dim=96)
    base = families.save_random(tmp_path / "base", config, torch.float32)
    rows = {name: len(value) for name, value in tensors(base).items() if "layers" not in name}
    assert rows["model.embed_tokens.weight"] == rows[HEAD] + 1
    adapter = families.make_adapter(tmp_path / "adapter", base, target_modules=["fc1"])
    merged = run_merge(base, adapter, tmp_path / "out")
    assert_same_bits(merged.path, families.peft_merge(base, adapter), base)


@pytest.mark.parametrize("ensured", [False, True], ids=["not-ensured", "ensured"])
def test_where_peft_is_wrong_on_a_tied_embedding(ensured: bool, tmp_path: Path) -> None:
    """Why its merge is not the truth there: its result is not what its live model computes."""
    base = families.make_base(tmp_path / "base", "llama-tied")
    options: dict[str, Any] = {
        "target_modules": ["q_proj", "embed_tokens"],
        "ensure_weight_tying": ensured,
    }
    adapter = families.make_adapter(tmp_path / "adapter", base, **options)
    live = families.live_logits(base, adapter)
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    peft.PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(
        tmp_path / "peft"
    )
    assert (families.merged_logits(tmp_path / "peft") - live).abs().max() > 1e-2
    merged = run_merge(base, adapter, tmp_path / "out")
    assert (families.merged_logits(merged.path) - live).abs().max() < 2e-5


RESIZED: dict[str, tuple[str, dict[str, Any]]] = {
    "untied": ("llama", {}),
    "tied": ("qwen3", {}),
    "with-bias": ("phi", {}),
    "saved-whole": ("llama", {"modules_to_save": ["embed_tokens", "lm_head"]}),
    "new-tokens-tied": ("llama-tied", {"trainable_token_indices": [320, 321, 327]}),
    "lora-embedding": ("llama", {"target_modules": ["q_proj", "embed_tokens", "lm_head"]}),
    "saved-tied": (
        "llama-tied", {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ),
    "saved-head-tied": ("qwen3", {"modules_to_save": ["lm_head"], "ensure_weight_tying": True}),
    "tokens-by-name-tied": (
        "llama-tied", {"trainable_token_indices": {"embed_tokens": [320, 321, 327]}},
    ),
    "tokens-by-name-ensured": (
        "qwen3",
        {
            "trainable_token_indices": {"embed_tokens": [320, 321, 327]},
            "ensure_weight_tying": True,
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", RESIZED)
def test_a_resized_vocabulary_comes_with_the_adapter(case: str, tmp_path: Path) -> None:
    family, options = RESIZED[case]
    base = families.make_base(tmp_path / "base", family, max_shard_size="60KB")
    values = {"target_modules": Q, **options}
    adapter = families.make_adapter(tmp_path / "adapter", base, num_tokens=328, **values)
    tokenizer = transformers.AutoTokenizer.from_pretrained(adapter)
    tokenizer.add_tokens([f"<|new-{index}|>" for index in range(328 - len(tokenizer))])
    tokenizer.save_pretrained(adapter)

    merged = run_merge(base, adapter, tmp_path / "out")
    found, before = tensors(merged.path), tensors(base)
    assert found.keys() == before.keys()
    resized = {name for name in found if found[name].shape != before[name].shape}
    embedding = "model.embed_tokens.weight"
    with_bias = {"lm_head.bias"} if family == "phi" else set()
    assert resized == ({embedding, HEAD} | with_bias) & before.keys()
    assert all(found[name].shape == (328, *before[name].shape[1:]) for name in resized)
    assert json.loads((merged.path / "config.json").read_text())["vocab_size"] == 328
    index = json.loads((merged.path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in found.values())
    saved = load_file(adapter / WEIGHTS)
    if f"{EMBEDDING}.weight" in saved:
        assert torch.equal(found[embedding], saved[f"{EMBEDDING}.weight"])
    rows = saved.get(f"{EMBEDDING}.token_adapter.trainable_tokens_delta")
    if rows is not None:
        assert torch.equal(found[embedding][[320, 321, 327]], rows)
    live = families.live_logits(base, adapter, 328)
    assert (families.merged_logits(merged.path, 328) - live).abs().max() < 2e-5
    assert len(transformers.AutoTokenizer.from_pretrained(merged.path)) == 328


def made(tmp_path: Path, family: str = "llama-tied", **options: Any) -> tuple[Path, Path]:
    base = families.make_base(tmp_path / "base", family)
    values = {"target_modules": Q, **options}
    return base, families.make_adapter(tmp_path / "adapter", base, **values)


WEIGHTS = "adapter_model.safetensors"
EMBEDDING = "base_model.model.model.embed_tokens"


def test_a_vocabulary_resized_in_part_is_refused(tmp_path: Path) -> None:
    base, adapter = made(tmp_path, "llama", modules_to_save=["embed_tokens"])
    edit_tensors(
        adapter / WEIGHTS,
        lambda t: t.update({f"{EMBEDDING}.weight": torch.ones(330, 64)}),
    )
    message = refusal(base, adapter, tmp_path / "out")
    assert "the vocabulary is resized in part" in message
    assert "lm_head.weight has 320" in message


@pytest.mark.parametrize("indices", [[3, 320], [3, 3], [-1, 4], ["3", 4], None, [3]])
def test_wrong_token_numbers_are_refused(indices: Any, tmp_path: Path) -> None:
    base, adapter = made(tmp_path, trainable_token_indices=[3, 7])
    edit_json(adapter / "adapter_config.json", trainable_token_indices=indices)
    message = refusal(base, adapter, tmp_path / "out")
    assert "trainable_token" in message


def test_a_module_to_save_that_was_not_saved_is_refused(tmp_path: Path) -> None:
    base, adapter = made(tmp_path, modules_to_save=["lm_head", "model.norm"])
    edit_tensors(adapter / WEIGHTS, lambda t: t.pop("base_model.model.model.norm.weight"))
    message = refusal(base, adapter, tmp_path / "out")
    assert "has nothing for model.norm, which modules_to_save" in message


def test_a_module_that_was_saved_unasked_is_refused(tmp_path: Path) -> None:
    base, adapter = made(tmp_path)
    name = "base_model.model.model.norm.weight"
    edit_tensors(adapter / WEIGHTS, lambda t: t.update({name: torch.ones(64)}))
    assert f"{name}: is a module saved whole" in refusal(base, adapter, tmp_path / "out")


def test_a_saved_module_of_another_shape_is_refused(tmp_path: Path) -> None:
    base, adapter = made(tmp_path, modules_to_save=["model.norm"])
    name = "base_model.model.model.norm.weight"
    edit_tensors(adapter / WEIGHTS, lambda t: t.update({name: torch.ones(32)}))
    assert f"{name}: has shape [32]; expected [64]" in refusal(base, adapter, tmp_path / "out")


def test_dora_on_an_embedding_is_refused(tmp_path: Path) -> None:
    base, adapter = made(tmp_path, target_modules=["q_proj", "embed_tokens"], use_dora=True)
    assert "DoRA on an embedding is not supported" in refusal(base, adapter, tmp_path / "out")


def test_a_base_without_its_head_cannot_be_untied(tmp_path: Path) -> None:
    """A folder saved from the inner model only (GPT-2 on the Hub) has no place for a head."""
    base, adapter = made(tmp_path, target_modules=["q_proj", "embed_tokens"])

    def drop_prefix(values: dict[str, torch.Tensor]) -> None:
        for name in list(values):
            values[name.removeprefix("model.")] = values.pop(name)

    edit_tensors(base / "model.safetensors", drop_prefix)
    with pytest.raises(
        ArtifactError, match=r"embed_tokens.weight: the output layer comes to differ"
    ):
        merge(MergeConfig(), resolve_model(str(base)), adapter, tmp_path / "out")


FURTHER = {
    "model.layers.2.embed_tokens.weight": (320, 64),
    "model.layers.2.eh_proj.weight": (64, 128),
}


@pytest.mark.parametrize(
    ("options", "num_tokens"),
    [
        ({"target_modules": [*Q, "embed_tokens"]}, None),
        ({"target_modules": Q, "modules_to_save": ["embed_tokens"]}, None),
        ({"target_modules": Q, "modules_to_save": ["embed_tokens", "lm_head"]}, 330),
    ],
)
@pytest.mark.parametrize("family", ["llama", "llama-tied"])
def test_layers_that_predict_further_tokens_have_embeddings_of_their_own(
    family: str, options: dict[str, Any], num_tokens: int | None, tmp_path: Path
) -> None:
    base = families.make_base(tmp_path / "base", family)
    adapter = families.make_adapter(tmp_path / "adapter", base, num_tokens=num_tokens, **options)
    live = families.live_logits(base, adapter, num_tokens)
    further = {name: torch.randn(shape) for name, shape in FURTHER.items()}
    edit_tensors(base / "model.safetensors", lambda t: t.update(further))
    merged = run_merge(base, adapter, tmp_path / "out").path / "model.safetensors"
    edit_tensors(merged, lambda t: [t.pop(name) for name in further])
    assert (families.merged_logits(merged.parent, num_tokens) - live).abs().max() < 5e-5


@pytest.mark.parametrize(
    ("config", "target", "said"),
    [
        (
            lambda: transformers.ModernBertDecoderConfig(
                **{**families.SMALL, "bos_token_id": 1, "eos_token_id": 2}
            ),
            "tok_embeddings", "the names in the files do not say which tensor that is",
        ),
        (
            lambda: transformers.BioGptConfig(
                vocab_size=320, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
                intermediate_size=96, max_position_embeddings=128,
            ),
            "embed_tokens", "in this family it is not called lm_head.weight",
        ),
    ],
    ids=["modernbert", "biogpt"],
)  # fmt: skip
def test_a_tied_output_layer_of_another_name_is_refused(
    config: Any, target: str, said: str, tmp_path: Path
) -> None:
    base = families.save_random(tmp_path / "base", config(), torch.float32)
    adapter = families.make_adapter(tmp_path / "adapter", base, target_modules=[target])
    assert said in refusal(base, adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_tokens_of_an_output_layer_with_a_bias_are_refused(tmp_path: Path) -> None:
    base = families.make_base(tmp_path / "base", "phi")
    adapter = families.make_adapter(
        tmp_path / "adapter", base, target_modules=Q, trainable_token_indices={"lm_head": [5, 7]}
    )
    assert "a bias (lm_head.bias), which PEFT leaves out" in refusal(
        base, adapter, tmp_path / "out"
    )
