"""Pruning: which weights become zero, by numpy's own sort; and what stays byte for byte."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from export.config import PruneConfig
from export.prune import prune_model
from tests.integration.export.exported import make_model
from tests.integration.export.merging import edit_json, edit_tensors
from tuneline.core.artifact import verify_artifact
from tuneline.core.errors import ArtifactError
from tuneline.models.source import resolve_model

HALF = PruneConfig(sparsity=0.5)
TWO_OF_FOUR = PruneConfig(pattern="2:4")
CONV1D = ("c_attn", "c_proj", "c_fc")


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def expected_half(weights: np.ndarray, share: float) -> np.ndarray:
    flat = weights.reshape(-1).copy()
    order = np.argsort(np.abs(flat), kind="stable")
    flat[order[: int(share * flat.size)]] = 0
    return flat.reshape(weights.shape)


def expected_two_of_four(weights: np.ndarray) -> np.ndarray:
    result = weights.copy()
    for row in result:
        for start in range(0, len(row), 4):
            smallest = sorted(range(4), key=lambda i: (abs(row[start + i]), i))[:2]
            row[[start + i for i in smallest]] = 0
    return result


@pytest.mark.parametrize("family", ["llama", "llama-tied", "qwen3", "phi", "gpt2", "mixtral"])
@pytest.mark.parametrize("config", [HALF, TWO_OF_FOUR], ids=["half", "two-of-four"])
def test_the_smallest_weights_become_zero(family: str, config: PruneConfig, tmp_path: Path) -> None:
    base = make_model(tmp_path / "base", family, dtype=torch.bfloat16)
    artifact = prune_model(config, resolve_model(str(base)), tmp_path / "out")
    before, after = tensors(base), tensors(artifact.path)
    assert before.keys() == after.keys()
    num_pruned = 0
    for name, original in before.items():
        found = after[name]
        assert found.dtype == original.dtype == torch.bfloat16
        kept = original.ndim < 2 or any(
            part in name.split(".") for part in ("embed_tokens", "lm_head", "wte", "wpe", "gate")
        )
        if kept:
            assert torch.equal(found, original), name
            continue
        num_pruned += 1
        numbers = original.float().numpy()
        if config.sparsity is not None:
            expected = expected_half(numbers, config.sparsity)
        elif name.split(".")[-2] in CONV1D:
            expected = expected_two_of_four(numbers.T).T
        else:
            expected = expected_two_of_four(numbers)
        assert np.array_equal(found.float().numpy(), expected), name
    assert num_pruned == artifact.manifest.metrics["num_changed_tensors"] > 5
    assert artifact.manifest.metrics["sparsity"] == pytest.approx(0.5, abs=0.002)
    verify_artifact(artifact)


def test_the_result_is_a_model_that_transformers_loads(tmp_path: Path) -> None:
    base = make_model(tmp_path / "base", "qwen2")
    artifact = prune_model(HALF, resolve_model(str(base)), tmp_path / "out")
    files = {entry.path for entry in artifact.manifest.files}
    assert files == {file.name for file in base.iterdir()}
    network, info = transformers.AutoModelForCausalLM.from_pretrained(
        artifact.path, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    share = float((network.model.layers[0].mlp.up_proj.weight == 0).float().mean())
    assert share == pytest.approx(0.5, abs=0.001)


def test_shards_and_header_stay(tmp_path: Path) -> None:
    base = make_model(tmp_path / "base", "llama", max_shard_size="100KB")
    artifact = prune_model(HALF, resolve_model(str(base)), tmp_path / "out")
    shards = sorted(file.name for file in base.glob("*.safetensors"))
    assert len(shards) > 1
    for name in shards:
        with safe_open(base / name, "pt") as one, safe_open(artifact.path / name, "pt") as other:
            assert list(one.keys()) == list(other.keys())
            assert one.metadata() == other.metadata()


def test_equal_magnitudes_are_zeroed_in_their_order(tmp_path: Path) -> None:
    base = make_model(tmp_path / "base", "llama")
    values = load_file(base / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    values[name] = torch.ones_like(values[name])
    save_file(values, base / "model.safetensors", metadata={"format": "pt"})
    half = prune_model(HALF, resolve_model(str(base)), tmp_path / "half")
    flat = tensors(half.path)[name].reshape(-1)
    middle = len(flat) // 2
    assert not flat[:middle].any() and bool((flat[middle:] == 1).all())
    pattern = prune_model(TWO_OF_FOUR, resolve_model(str(base)), tmp_path / "pattern")
    assert tensors(pattern.path)[name].reshape(-1)[:8].tolist() == [0, 0, 1, 1, 0, 0, 1, 1]


def test_inputs_that_do_not_divide_into_fours(tmp_path: Path) -> None:
    base = make_model(tmp_path / "base", "llama-odd")
    with pytest.raises(ArtifactError, match="98 inputs, which do not divide into fours"):
        prune_model(TWO_OF_FOUR, resolve_model(str(base)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    "name", ["model.layers.0.mlp.up_proj.weight", "model.norm.weight", "model.embed_tokens.weight"]
)
@pytest.mark.parametrize("config", [HALF, TWO_OF_FOUR])
def test_values_that_are_not_finite_are_refused(
    config: PruneConfig, name: str, value: float, tmp_path: Path
) -> None:
    base = make_model(tmp_path / "base", "llama", dtype=torch.bfloat16)
    edit_tensors(base / "model.safetensors", lambda t: t[name].view(-1)[5:6].fill_(value))
    with pytest.raises(ArtifactError, match=f"{name}: holds NaN or infinity"):
        prune_model(config, resolve_model(str(base)), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_a_quantized_model_is_refused(tmp_path: Path) -> None:
    base = make_model(tmp_path / "base", "llama")
    config = json.loads((base / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "compressed-tensors"}
    (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match="quantized"):
        prune_model(HALF, resolve_model(str(base)), tmp_path / "out")


def test_keys_that_the_weights_and_the_files_do_not_fit_are_left_out(tmp_path: Path) -> None:
    base = make_model(tmp_path / "base", "llama")
    expected = json.loads((base / "config.json").read_text())
    left_over = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    own = {"auto_map": {"AutoModelForCausalLM": "own.Model"}}
    edit_json(base / "config.json", quantization_config=left_over, **own)
    artifact = prune_model(HALF, resolve_model(str(base)), tmp_path / "out")
    assert json.loads((artifact.path / "config.json").read_text()) == expected
