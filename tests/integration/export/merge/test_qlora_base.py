"""QLoRA adapters: merged onto the original weights and onto NF4's, and the closer kept."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import bitsandbytes.functional
import peft
import pytest
import torch
import transformers
from bitsandbytes.nn.modules import Linear4bit

from export.config import MergeConfig
from export.merge.merge import merge
from tests.integration.export import families
from tests.integration.export.merging import as_qlora, run_merge, tensors
from tuneline.core.errors import ArtifactError
from tuneline.models.source import resolve_model

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def made(tmp_path: Path, dtype: torch.dtype = torch.float32) -> tuple[Path, Path]:
    base = families.make_base(tmp_path / "base", "llama-even", dtype)
    return base, families.make_adapter(tmp_path / "adapter", base)


def live_qlora(base: Path, adapter: Path) -> Any:
    config = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float32, quantization_config=config
    )
    for module in model.modules():
        # With AVX-512 BF16, bitsandbytes would compute in bfloat16 all the same.
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
    return peft.PeftModel.from_pretrained(model, adapter)


def test_the_dequantized_base_is_that_of_bitsandbytes(tmp_path: Path) -> None:
    """Bit by bit: the library's own round trip of each whole weight, and PEFT's own merge."""
    base, adapter = made(tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    count = 0
    for name, module in model.named_modules():
        if name.endswith(LINEAR):
            codes, state = bitsandbytes.functional.quantize_4bit(
                module.weight.data, compress_statistics=True, quant_type="nf4"
            )
            module.weight.data = bitsandbytes.functional.dequantize_4bit(codes, state)
            count += 1
    assert count == 14
    expected = dict(peft.PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict())
    source = resolve_model(str(base))
    merged = merge(MergeConfig(merge_base="dequantized"), source, adapter, tmp_path / "out")
    found = tensors(merged.path)
    assert found.keys() == expected.keys() & found.keys()
    assert len(found) > 14
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name
    assert merged.manifest.metrics["merge_base"] == "dequantized"


def test_the_dequantized_merge_is_the_live_model(tmp_path: Path) -> None:
    base, adapter = made(tmp_path)
    live = families._logits(live_qlora(base, adapter), families.VOCABULARY)
    source = resolve_model(str(base))
    differences = {}
    for side in ("original", "dequantized"):
        config = MergeConfig.model_validate({"merge_base": side})
        merged = merge(config, source, adapter, tmp_path / side)
        found = families.merged_logits(merged.path)
        differences[side] = float((found - live).abs().max())
    assert differences["dequantized"] < 1e-3 < 0.05 < differences["original"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_auto_measures_both_and_keeps_the_closer(dtype: torch.dtype, tmp_path: Path) -> None:
    base, adapter = made(tmp_path, dtype)
    trained = as_qlora(adapter, base, tmp_path / "trained")
    (tmp_path / "runs" / ".out.work" / "original").mkdir(parents=True)  # of a killed merge
    merged = merge(MergeConfig(), resolve_model(str(base)), trained, tmp_path / "runs" / "out")
    metrics = merged.manifest.metrics
    assert metrics["num_compared_tokens"] > 100
    assert 0 <= metrics["kl_dequantized"] < metrics["kl_original"]
    assert metrics["merge_base"] == "dequantized"
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["out"]
    source = resolve_model(str(base))
    said = merge(MergeConfig(merge_base="dequantized"), source, adapter, tmp_path / "said")
    assert said.digest == merged.digest


def test_no_code_is_fetched(tmp_path: Path) -> None:
    """bitsandbytes asks `kernels` for code as it is imported, where the processor has bfloat16."""
    base, adapter = made(tmp_path)
    (tmp_path / "path" / "kernels").mkdir(parents=True)
    asked = tmp_path / "asked"
    (tmp_path / "path" / "kernels" / "__init__.py").write_text(
        f"open({str(asked)!r}, 'w').close()\ndef get_kernel(*_, **__): raise RuntimeError\n"
    )
    paths = os.pathsep.join([str(tmp_path / "path"), *filter(None, sys.path)])
    done = subprocess.run(
        [
            sys.executable, "-m", "tuneline", "export", "merge", "--base", str(base), "--adapter",
            str(adapter), "--merge-base", "dequantized", "--out", str(tmp_path / "out"),
        ],
        capture_output=True, text=True, check=False, timeout=200,
        env={**os.environ, "PYTHONPATH": paths},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "kernel" not in done.stderr
    assert not asked.exists()


def test_an_adapter_without_a_manifest_goes_onto_the_original(tmp_path: Path) -> None:
    base, adapter = made(tmp_path)
    merged = run_merge(base, adapter, tmp_path / "out")
    assert "merge_base" not in merged.manifest.metrics
    config = MergeConfig(merge_base="original")
    said = merge(config, resolve_model(str(base)), adapter, tmp_path / "said")
    assert said.digest == merged.digest


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3-moe"])
def test_layers_that_nf4_keeps_otherwise_are_refused(family: str, tmp_path: Path) -> None:
    base = families.make_base(tmp_path / "base", family)
    adapter = families.make_adapter(tmp_path / "adapter", base, target_modules="all-linear")
    config = MergeConfig(merge_base="dequantized")
    with pytest.raises(ArtifactError, match=r"(?s)NF4.*--merge-base original"):
        merge(config, resolve_model(str(base)), adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_auto_without_a_tokenizer_to_measure_with_is_refused(tmp_path: Path) -> None:
    base, adapter = made(tmp_path)
    for folder in (base, adapter):
        for file in folder.glob("token*"):
            file.unlink()
    trained = as_qlora(adapter, base, tmp_path / "trained")
    with pytest.raises(ArtifactError, match="cannot load its tokenizer"):
        merge(MergeConfig(), resolve_model(str(base)), trained, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_left_over_quantization_config_does_no_harm(tmp_path: Path) -> None:
    """Merges of QLoRA adapters often keep the key on weights that are plain again."""
    from safetensors.torch import load_file, save_file

    from tests.integration.export.merging import edit_json
    from tuneline.models.load import load_network

    base, adapter = made(tmp_path, torch.bfloat16)
    expected = tensors(run_merge(base, adapter, tmp_path / "expected").path)
    left_over = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    edit_json(base / "config.json", quantization_config=left_over)
    merged = run_merge(base, adapter, tmp_path / "out").path
    found = tensors(merged)
    assert found.keys() == expected.keys() and len(found) > 14
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert "quantization_config" not in (merged / "config.json").read_text()
    network = load_network(base, torch.float32, what="base")
    assert not [one for one in network.modules() if isinstance(one, Linear4bit)]

    weights = load_file(base / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"] = torch.zeros(64, 1, dtype=torch.uint8)
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ArtifactError, match="the model is quantized"):
        run_merge(base, adapter, tmp_path / "refused")
