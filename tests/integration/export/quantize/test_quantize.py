"""Quantization against compressed-tensors' own arithmetic, packing, configuration and loading."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from export import quantize_model
from export.config import MergeConfig, QuantizeConfig
from export.merge.merge import merge
from export.runtimes.transformers_folder import load_model
from tests.commands import tuneline_here
from tests.integration.export import families
from tests.integration.export.merging import edit_tensors, killed, tensors
from tuneline.core.artifact import Artifact, verify_artifact
from tuneline.core.errors import ArtifactError
from tuneline.models.source import resolve_model

SCHEMES = ("fp8", "int8", "w4a16")
OTHER_THAN_0 = "expected a number other than 0"


def run_quantize(model: Path, name: str, out: Path, group_size: int = 32) -> Artifact:
    config = QuantizeConfig.model_validate({"scheme": name, "group_size": group_size})
    return quantize_model(config, resolve_model(str(model)), out)


@pytest.mark.parametrize("model_type", ["biogpt", "modernbert-decoder"])
def test_a_tied_output_layer_of_another_name_is_not_quantized(
    model_type: str, tmp_path: Path
) -> None:
    """It is in no file, and both transformers and vLLM would look for its scales."""
    values = {**families.SMALL, "bos_token_id": 1}
    config = transformers.CONFIG_MAPPING[model_type](**values)
    base = families.save_random(tmp_path / "base", config, torch.float32)
    made = run_quantize(base, "int8", tmp_path / "out")
    wanted, found = (
        families._logits(load_model(path)[0], families.VOCABULARY) for path in (base, made.path)
    )
    assert 0 < (found - wanted).abs().max() < 0.1 * wanted.std()


@pytest.mark.parametrize(
    ("family", "name", "options"),
    [
        ("llama", "int8", {}),
        ("qwen3", "w4a16", {}),
        ("mistral", "fp8", {}),
        ("llama-tied", "int8", {"modules_to_save": ["lm_head"], "target_modules": ["q_proj"]}),
        ("phi", "w4a16", {}),
    ],
)
def test_one_pass_gives_the_bytes_of_two(
    family: str, name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    base = families.make_base(tmp_path / "base", family, torch.bfloat16, max_shard_size="100KB")
    adapter = families.make_adapter(tmp_path / "adapter", base, **options)
    source = resolve_model(str(base))
    config = MergeConfig.model_validate({"quantize": name, "group_size": 32})
    at_once = merge(config, source, adapter, tmp_path / "at-once")
    merged = merge(MergeConfig(), source, adapter, tmp_path / "merged")
    in_two = run_quantize(merged.path, name, tmp_path / "in-two")
    assert at_once.digest == in_two.digest
    for artifact in (at_once, in_two):
        verify_artifact(artifact)

    before, after = tensors(merged.path), tensors(at_once.path)
    quantized = {
        key for key, value in before.items()
        if ".layers." in key and value.ndim == 2
    }  # fmt: skip
    assert at_once.manifest.metrics["num_quantized_tensors"] == len(quantized) > 10
    for key in before.keys() - quantized:
        assert torch.equal(after[key], before[key]), key
    extra = {
        part for key in quantized for part in (
            [f"{key}_packed", f"{key}_scale", f"{key}_shape"]
            if name == "w4a16" else [key, f"{key}_scale"]
        )
    }  # fmt: skip
    assert after.keys() == (before.keys() - quantized) | extra
    ignore = json.loads((at_once.path / "config.json").read_text())["quantization_config"]["ignore"]
    assert ignore == ["lm_head"]


@pytest.mark.parametrize("name", SCHEMES)
def test_transformers_loads_it_and_computes_nearly_the_same(name: str, tmp_path: Path) -> None:
    base = families.make_base(tmp_path / "base", "llama", torch.bfloat16)
    quantized = run_quantize(base, name, tmp_path / "out")
    exact = families.merged_logits(base)
    model = transformers.AutoModelForCausalLM.from_pretrained(quantized.path, dtype=torch.float32)
    found = families._logits(model, families.VOCABULARY)
    divergence = torch.nn.functional.kl_div(
        found.log_softmax(-1), exact.log_softmax(-1), log_target=True, reduction="none"
    ).sum(-1)
    assert divergence.shape == (4, 24)
    assert 1e-9 < divergence.mean() < {"fp8": 0.01, "int8": 0.005, "w4a16": 0.1}[name]
    size = (quantized.path / "model.safetensors").stat().st_size
    assert size < (base / "model.safetensors").stat().st_size


def test_linear_layers_outside_the_decoder_layers_stay_and_are_named(tmp_path: Path) -> None:
    config = transformers.OPTConfig(
        vocab_size=320, hidden_size=64, word_embed_proj_dim=32, ffn_dim=96, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=128,
    )  # fmt: skip
    base = families.save_random(tmp_path / "base", config, torch.float32)
    made = run_quantize(base, "int8", tmp_path / "out")
    said = json.loads((made.path / "config.json").read_text())["quantization_config"]["ignore"]
    prefix = "model.decoder"
    assert set(said) == {"lm_head", f"{prefix}.project_in", f"{prefix}.project_out"}
    network, _ = load_model(made.path)
    ids = torch.arange(3, 40)[None]
    plain, _ = load_model(base)
    with torch.inference_mode():
        difference = (network(input_ids=ids).logits - plain(input_ids=ids).logits).abs().max()
    assert difference < 0.5


def test_layers_that_mix_the_streams_of_gemma_3n_stay(tmp_path: Path) -> None:
    """Its rows have one value for each of the few streams, so no group fits."""
    config = transformers.Gemma3nTextConfig(
        **families.HEADS, vocab_size_per_layer_input=320, hidden_size_per_layer_input=32,
        laurel_rank=32, num_kv_shared_layers=0, layer_types=["sliding_attention", "full_attention"],
        sliding_window=16, activation_sparsity_pattern=[0.0, 0.0],
    )  # fmt: skip
    base = families.save_random(tmp_path / "base", config, torch.float32)
    made = run_quantize(base, "w4a16", tmp_path / "out", 32)
    said = json.loads((made.path / "config.json").read_text())["quantization_config"]["ignore"]
    mixers = ("modality_router", "prediction_coefs", "correction_coefs")
    assert {f"model.layers.{layer}.altup.{one}" for layer in (0, 1) for one in mixers} <= {*said}
    network, _ = load_model(made.path)
    before = tensors(base)
    for name in (f"model.layers.1.altup.{one}.weight" for one in mixers):
        assert torch.equal(network.get_parameter(name), before[name])


def test_the_gates_of_a_delta_net_stay(tmp_path: Path) -> None:
    config = transformers.Qwen3_5TextConfig(
        **families.SMALL, head_dim=16, layer_types=["linear_attention", "full_attention"],
        linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=16,
        linear_value_head_dim=16,
    )  # fmt: skip
    base = families.save_random(tmp_path / "base", config, torch.bfloat16)
    made = run_quantize(base, "w4a16", tmp_path / "out")
    gates = [f"model.layers.0.linear_attn.in_proj_{one}" for one in "ab"]
    said = json.loads((made.path / "config.json").read_text())["quantization_config"]["ignore"]
    assert sorted(said) == ["lm_head", *gates]
    before, after = tensors(base), tensors(made.path)
    assert all(torch.equal(before[f"{one}.weight"], after[f"{one}.weight"]) for one in gates)
    assert "model.layers.0.linear_attn.in_proj_qkv.weight_packed" in after
    load_model(made.path)  # what config.json says fits the files


def test_each_token_of_a_latent_attention_has_its_own_scale(tmp_path: Path) -> None:
    """Its inputs have four dimensions. compressed-tensors gives all tokens of these one scale."""
    config = transformers.MiniCPM3Config(
        **{**families.SMALL, "num_key_value_heads": 4}, q_lora_rank=16, kv_lora_rank=16,
        qk_nope_head_dim=16, qk_rope_head_dim=16, v_head_dim=16,
    )  # fmt: skip
    base = families.save_random(tmp_path / "base", config, torch.float32)
    made = run_quantize(base, "int8", tmp_path / "out")
    found = families._logits(load_model(made.path)[0], families.VOCABULARY)

    stored = tensors(made.path)
    by_hand, _ = load_model(base)
    for name, module in by_hand.named_modules():
        scale = stored.get(f"{name}.weight_scale")
        if scale is not None:
            module.weight.data = stored[f"{name}.weight"].float() * scale.float()
            module.register_forward_pre_hook(lambda _, given: (round_tokens(given[0]),))
    expected = families._logits(by_hand, families.VOCABULARY)
    assert len(stored) > len(tensors(base)) + 10
    assert (found - expected).abs().max() < 1e-5
    assert (found - families._logits(load_model(base)[0], families.VOCABULARY)).abs().max() > 1e-2


def round_tokens(values: torch.Tensor) -> torch.Tensor:
    """Symmetric rounding to eight bits, with one scale per token."""
    scale = values.abs().amax(dim=-1, keepdim=True) / 127.5
    return (values / scale).round().clamp(-128, 127) * scale


def test_a_model_that_has_nothing_to_quantize_is_refused(tmp_path: Path) -> None:
    base = families.make_base(tmp_path / "base", "gpt2")
    with pytest.raises(ArtifactError, match="has no linear layer that can be quantized"):
        run_quantize(base, "int8", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_rows_that_cannot_be_cut_into_groups_are_refused(tmp_path: Path) -> None:
    base = families.make_base(tmp_path / "base", "llama")
    with pytest.raises(ArtifactError, match=r"(?s)rows of 96 do not divide .*Try: --group-size 32"):
        run_quantize(base, "w4a16", tmp_path / "out", 128)


def test_a_quantized_model_is_not_quantized_again(tmp_path: Path) -> None:
    base = families.make_base(tmp_path / "base", "llama")
    once = run_quantize(base, "fp8", tmp_path / "once")
    with pytest.raises(ArtifactError, match=r"is quantized \(compressed-tensors\)"):
        run_quantize(once.path, "fp8", tmp_path / "twice")


def test_a_model_with_nan_is_not_quantized(tmp_path: Path) -> None:
    base = families.make_base(tmp_path / "base", "llama")
    name = "model.layers.1.mlp.up_proj.weight"
    edit_tensors(base / "model.safetensors", lambda t: t[name][5, 5:6].fill_(float("nan")))
    with pytest.raises(ArtifactError, match=r"up_proj.weight: holds NaN or infinity"):
        run_quantize(base, "int8", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base model and an adapter of it."""
    folder = tmp_path_factory.mktemp("commands")
    base = families.make_base(folder / "base", "llama", torch.bfloat16)
    return base, families.make_adapter(folder / "adapter", base)


def test_a_merge_of_shares_is_quantized_on_the_way(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    base, adapter = folders
    merged = tuneline_here(
        "export", "merge", "--base", str(base), "--adapter", f"{adapter}=0.5",
        "--adapter", f"{adapter}=0.5", "--quantize", "w4a16", "--group-size", "32",
        "--out", str(tmp_path / "a"), "--json",
    )  # fmt: skip
    assert merged.returncode == 0, merged.stderr
    document = json.loads(merged.stdout)
    assert document["config"]["adapter_weights"] == [0.5, 0.5]
    assert document["config"]["quantize"] == "w4a16"


@pytest.mark.parametrize("command", [("quantize", "--scheme", "fp8"), ("form", "quantized-fp8")])
def test_a_command_quantizes(
    command: tuple[str, ...], folders: tuple[Path, Path], tmp_path: Path
) -> None:
    base, _ = folders
    given = ("--model", str(base), "--out", str(tmp_path / "b"), "--json")
    quantized = tuneline_here("export", *command, *given)
    assert quantized.returncode == 0, quantized.stderr
    document = json.loads(quantized.stdout)
    assert document["config"] == {"scheme": "fp8", "group_size": 128}
    assert document["metrics"]["num_quantized_tensors"] == 14


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("merge", "--base", "BASE", "--adapter", "ADAPTER=half"),
            "expected a number other than 0",
        ),
        (("merge", "--base", "BASE", "--adapter", "ADAPTER=0"), "expected a number other than 0"),
        (("quantize", "--model", "BASE", "--scheme", "int3"), "int3"),
        (("quantize", "--model", "BASE"), "--scheme is required"),
        (("form", "quantized-w4a16", "--model", "BASE", "--group-size", "48"), "group_size"),
        (("form", "gptq-int8", "--model", "BASE"), "--data is required"),
        (("form", "onnx-fp32", "--model", "BASE"), "'onnx-fp32' is not a form"),
    ],
)
def test_a_bad_option_is_named(
    arguments: tuple[str, ...], message: str, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    base, adapter = folders

    def filled(text: str) -> str:
        return text.replace("BASE", str(base)).replace("ADAPTER", str(adapter))

    out = ("--out", str(tmp_path / "c"), "--json")
    refused = tuneline_here("export", *map(filled, arguments), *out)
    assert refused.returncode == 2, refused.stderr
    assert filled(message) in json.loads(refused.stdout)["error"]["message"]
    assert list(tmp_path.iterdir()) == []


def test_a_killed_one_pass_merge_is_not_a_model(tmp_path: Path) -> None:
    """A merge that quantizes does not continue the remains of a plain merge."""
    base = families.make_base(tmp_path / "base", "llama", torch.bfloat16)
    adapter = families.make_adapter(tmp_path / "adapter", base)
    killed(base, adapter, tmp_path / "out", "note_finished", 5)
    config = MergeConfig(quantize="int8")
    source = resolve_model(str(base))
    merged = merge(config, source, adapter, tmp_path / "out")
    assert merged.manifest.metrics["resumed_bytes"] == 0
    assert merged.digest == merge(config, source, adapter, tmp_path / "again").digest
