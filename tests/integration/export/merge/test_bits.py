"""The merge against PEFT's own `merge_and_unload`: the same bits on every family and option."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from export.weights.blocks import block_rows
from tests.integration.export import families
from tests.integration.export.merging import assert_same_bits, run_merge
from tuneline.core.artifact import verify_artifact

FILES = {
    "chat_template.jinja", "config.json", "generation_config.json", "manifest.json",
    "tokenizer.json", "tokenizer_config.json",
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("family", [f for f in families.FAMILIES if f not in families.EXPERTS])
def test_every_family_has_the_bits_of_peft(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    base = families.make_base(tmp_path / "base", family, dtype)
    adapter = families.make_adapter(tmp_path / "adapter", base)
    merged = run_merge(base, adapter, tmp_path / "out")
    assert_same_bits(merged.path, families.peft_merge(base, adapter), base)
    assert {file.name for file in merged.path.iterdir()} == FILES | {"model.safetensors"}
    verify_artifact(merged)


OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "rank-and-alpha-patterns": (
        "llama",
        {
            "rank_pattern": {"q_proj": 4, r"layers\.1\.mlp\..*_proj": 3},
            "alpha_pattern": {"model.layers.0.self_attn.v_proj": 5, "down_proj": 32},
        },
    ),
    "rank-stabilized": ("qwen2", {"use_rslora": True, "r": 6}),
    "dora": ("llama-tied", {"use_dora": True}),
    "lora-bias": ("phi", {"lora_bias": True, "target_modules": ["q_proj", "fc1", "dense"]}),
    "bias-all": ("qwen2", {"bias": "all", "target_modules": ["q_proj", "v_proj"]}),
    "bias-lora-only": ("phi", {"bias": "lora_only", "target_modules": ["q_proj", "fc2"]}),
    "bias-all-gpt2": ("gpt2", {"bias": "all"}),
    "two-layers-of-one": ("llama", {"target_modules": ["q_proj"], "layers_to_transform": [1]}),
    "target-pattern": ("mistral", {"target_modules": r".*\.(gate|up)_proj"}),
    "untied-head": ("llama", {"target_modules": ["lm_head", "o_proj"]}),
    "rank-one": ("llama", {"r": 1}),
    "rank-above-width": ("llama", {"r": 80}),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("case", OPTIONS)
def test_every_option_has_the_bits_of_peft(case: str, dtype: torch.dtype, tmp_path: Path) -> None:
    family, options = OPTIONS[case]
    base = families.make_base(tmp_path / "base", family, dtype)
    adapter = families.make_adapter(tmp_path / "adapter", base, **options)
    merged = run_merge(base, adapter, tmp_path / "out")
    assert_same_bits(merged.path, families.peft_merge(base, adapter), base)


@pytest.mark.parametrize("base_dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_another_dtype_is_rounded_once(base_dtype: torch.dtype, dtype: str, tmp_path: Path) -> None:
    base = families.make_base(tmp_path / "base", "llama", base_dtype)
    adapter = families.make_adapter(tmp_path / "adapter", base)
    merged = run_merge(base, adapter, tmp_path / "out", dtype)
    exact = families.peft_merge(base, adapter, torch.float32)
    torch_dtype = getattr(torch, dtype)
    assert_same_bits(
        merged.path, {name: value.to(torch_dtype) for name, value in exact.items()}, base
    )
    assert json.loads((merged.path / "config.json").read_text())["dtype"] == dtype
    loaded = transformers.AutoModelForCausalLM.from_pretrained(merged.path)
    assert loaded.dtype == torch_dtype


def test_a_bfloat16_adapter_has_the_bits_of_peft(tmp_path: Path) -> None:
    base = families.make_base(tmp_path / "base", "qwen3", torch.bfloat16)
    adapter = families.make_adapter(tmp_path / "adapter", base, dtype=torch.bfloat16)
    stored = {value.dtype for value in load_file(adapter / "adapter_model.safetensors").values()}
    assert stored == {torch.bfloat16}
    merged = run_merge(base, adapter, tmp_path / "out")
    assert_same_bits(merged.path, families.peft_merge(base, adapter), base)


@pytest.mark.parametrize("dtype", ["auto", "float32"])
def test_a_base_in_many_shards_keeps_them(dtype: str, tmp_path: Path) -> None:
    base = families.make_base(tmp_path / "base", "llama", torch.bfloat16, max_shard_size="60KB")
    shards = sorted(file.name for file in base.glob("*.safetensors"))
    assert len(shards) >= 3
    adapter = families.make_adapter(tmp_path / "adapter", base)
    merged = run_merge(base, adapter, tmp_path / "out", dtype)
    expected = families.peft_merge(base, adapter, dtype)
    assert_same_bits(merged.path, expected, base)
    index_name = "model.safetensors.index.json"
    assert {file.name for file in merged.path.iterdir()} == FILES | {index_name, *shards}
    before = json.loads((base / index_name).read_text())
    after = json.loads((merged.path / index_name).read_text())
    assert after["weight_map"] == before["weight_map"]
    total_size = sum(value.nbytes for value in expected.values())
    assert after["metadata"]["total_size"] == total_size
    loaded = transformers.AutoModelForCausalLM.from_pretrained(merged.path)
    assert all(torch.equal(loaded.state_dict()[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("family", "options"), [("llama", {"use_dora": True}), ("gpt2", {}), ("llama", {})]
)
def test_blocks_of_rows_have_the_bits_of_the_whole_product(
    family: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The buffer is so small that a weight is merged in several blocks of unequal size."""
    monkeypatch.setattr("export.weights.blocks.BLOCK_BYTES", 1)
    monkeypatch.setattr("export.weights.blocks.MIN_PRODUCT_ROWS", 7)
    assert {stop - start for start, stop in block_rows(64, 64)} == {12, 13}
    base = families.make_base(tmp_path / "base", family, torch.bfloat16)
    adapter = families.make_adapter(tmp_path / "adapter", base, **options)
    merged = run_merge(base, adapter, tmp_path / "out")
    assert_same_bits(merged.path, families.peft_merge(base, adapter), base)


def test_merging_twice_gives_one_digest(tmp_path: Path) -> None:
    base = families.make_base(tmp_path / "base", "qwen3", torch.bfloat16)
    adapter = families.make_adapter(tmp_path / "adapter", base)
    first = run_merge(base, adapter, tmp_path / "first")
    second = run_merge(base, adapter, tmp_path / "second")
    assert first.digest == second.digest
    assert [entry.role for entry in first.manifest.inputs] == ["base", "adapter"]
