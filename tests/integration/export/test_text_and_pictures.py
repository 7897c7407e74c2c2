"""Models of text and pictures: their text half is merged and proven, the other stays as it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from export import make_form, quantize_model
from export.config import MergeConfig, OnnxConfig, ParityConfig, PruneConfig, QuantizeConfig
from export.graphs.to_onnx import export_onnx
from export.merge.merge import merge
from export.parity import prove_model
from export.prune import prune_model
from export.runtimes.transformers_folder import load_model
from export.weights.families import is_in_text_half
from tests.integration.export import families
from tests.integration.export.merging import as_qlora, edit_tensors, run_merge
from tuneline.core.artifact import Artifact
from tuneline.core.errors import ArtifactError
from tuneline.core.parity import Parity
from tuneline.models.source import resolve_model

TEXT_LAYERS = r".*language_model\.layers.*(q|v|o|up|down)_proj"


@pytest.mark.parametrize("family", ["gemma3", "mistral3", "qwen2.5-vl", "qwen3.5", "llama4"])
def test_a_merge_is_the_trained_model_and_a_broken_one_is_not(family: str, tmp_path: Path) -> None:
    base = families.save_random(
        tmp_path / "base", families.NAMED_OTHERWISE[family](), torch.float32
    )
    layers = TEXT_LAYERS.replace("layers", "model.layers") if family == "llama4" else TEXT_LAYERS
    adapter = families.make_adapter(tmp_path / "adapter", base, target_modules=layers)
    reference = families.make_reference(tmp_path / "reference", base, adapter)
    merged = run_merge(base, adapter, tmp_path / "merged")
    before, after = (load_file(path / "model.safetensors") for path in (base, merged.path))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert len(changed) > 4 and not [name for name in changed if "vis" in name]

    def verdict(out: str) -> str:
        proof = prove_model(
            ParityConfig(), reference, resolve_model(str(merged.path)), tmp_path / out
        )
        return Parity.model_validate_json((proof.path / "parity.json").read_text()).verdict

    assert verdict("proof") == "PASS"
    (merged.path / "manifest.json").unlink()  # no artifact any more: a plain folder, to be broken
    name = next(name for name in sorted(changed) if "o_proj" in name)
    edit_tensors(merged.path / "model.safetensors", lambda t: t.update({name: before[name]}))
    assert verdict("broken") == "FAIL"


def test_graphs_are_made_only_of_text_models(tmp_path: Path) -> None:
    base = families.save_random(
        tmp_path / "base", families.NAMED_OTHERWISE["gemma3"](), torch.float32
    )
    model = resolve_model(str(base))
    graphs: list[Callable[[Path], Artifact]] = [
        lambda out: export_onnx(OnnxConfig(), model, out),
        lambda out: export_onnx(OnnxConfig(graph="logits"), model, out),
        lambda out: make_form("torchscript", model, out),
        lambda out: make_form("torch-export", model, out),
    ]
    for export in graphs:
        with pytest.raises(ArtifactError, match=r"of text and pictures \(gemma3\)"):
            export(tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_pruning_leaves_the_half_that_no_proof_of_text_sees(tmp_path: Path) -> None:
    base = families.save_random(
        tmp_path / "base", families.NAMED_OTHERWISE["gemma3"](), torch.float32
    )
    pruned = prune_model(PruneConfig(sparsity=0.5), resolve_model(str(base)), tmp_path / "out")
    before, after = (load_file(path / "model.safetensors") for path in (base, pruned.path))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert len(changed) == 14
    assert all(name.startswith("language_model.model.layers.") for name in changed)


@pytest.mark.parametrize(
    ("family", "scheme"),
    [
        ("gemma3", "fp8"), ("gemma3", "int8"), ("gemma3", "w4a16"), ("mistral3", "int8"),
        ("qwen2.5-vl", "w4a16"), ("qwen3.5", "fp8"),
    ],
)  # fmt: skip
def test_quantizing_leaves_that_half_too(family: str, scheme: str, tmp_path: Path) -> None:
    """transformers, which calls that half otherwise than the files do, finds it unquantized."""
    base = families.save_random(
        tmp_path / "base", families.NAMED_OTHERWISE[family](), torch.float32
    )
    config = QuantizeConfig.model_validate({"scheme": scheme, "group_size": 32})
    quantized = quantize_model(config, resolve_model(str(base)), tmp_path / "out")
    before, after = (load_file(path / "model.safetensors") for path in (base, quantized.path))
    scaled = {name.removesuffix("_scale") for name in after if name.endswith("weight_scale")}
    layers = [name for name in before if is_in_text_half({"text_config": {}}, name)]
    # The gates of Qwen3.5's state stay whole.
    gates = (".in_proj_a.weight", ".in_proj_b.weight")
    two = {name for name in layers if before[name].ndim == 2 and not name.endswith(gates)}
    assert scaled == two
    assert len(scaled) >= 13
    same = before.keys() & after.keys() - scaled
    assert all(torch.equal(before[name], after[name]) for name in same)
    assert [name for name in same if "vis" in name]
    plain, found = (load_model(path)[0] for path in (base, quantized.path))
    ids = torch.randint(3, 300, (2, 12), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected, logits = (network(input_ids=ids).logits for network in (plain, found))
    least, most = {"fp8": (0.01, 0.4), "int8": (0.005, 0.1), "w4a16": (0.1, 0.9)}[scheme]
    assert least < float((expected - logits).abs().max()) < most
    halves = [dict(network.named_parameters()) for network in (plain, found)]
    seen = [name for name in halves[0] if "vis" in name and name in halves[1]]
    assert seen and all(torch.equal(halves[0][name], halves[1][name]) for name in seen)
    assert len(seen) == len([name for name in halves[0] if "vis" in name])


def test_a_linear_layer_next_to_the_text_layers_stays(tmp_path: Path) -> None:
    config = transformers.Gemma4Config(
        text_config={**families.HEADS, "sliding_window": 16, "hidden_size_per_layer_input": 16,
                     "vocab_size_per_layer_input": 320},
        vision_config={"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
                       "num_attention_heads": 2},
        audio_config=None,
    )  # fmt: skip
    base = families.save_random(tmp_path / "base", config, torch.float32)
    quantized = quantize_model(
        QuantizeConfig(scheme="int8"), resolve_model(str(base)), tmp_path / "out"
    )
    assert "model.language_model.per_layer_model_projection.weight" in load_file(
        quantized.path / "model.safetensors"
    )
    plain, found = (load_model(path)[0] for path in (base, quantized.path))
    ids = torch.randint(3, 300, (2, 12), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected, logits = (network(input_ids=ids).logits for network in (plain, found))
    assert 1e-4 < float((expected - logits).abs().mean()) < 0.1 < float(expected.abs().mean())


def test_a_4_bit_adapter_of_such_a_model_goes_onto_the_original(tmp_path: Path) -> None:
    base = families.save_random(
        tmp_path / "base", families.NAMED_OTHERWISE["mistral3"](), torch.float32
    )
    folder = families.make_adapter(tmp_path / "adapter", base, target_modules=TEXT_LAYERS)
    adapter = as_qlora(folder, base, tmp_path / "trained")
    merged = merge(MergeConfig(), resolve_model(str(base)), adapter, tmp_path / "out")
    assert merged.manifest.metrics["merge_base"] == "original"
    assert merged.digest == run_merge(base, folder, tmp_path / "plain").digest
