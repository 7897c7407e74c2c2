"""The ladder: every form of a right merge passes, and each form broken on purpose is caught."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import transformers
from onnx import numpy_helper
from safetensors.torch import load_file, save_file

from export import form_name, make_form, quantize_model, resolve_form
from export.config import MergeConfig, OnnxConfig, ParityConfig, PruneConfig, QuantizeConfig
from export.graphs.to_onnx import export_onnx
from export.merge.merge import merge
from export.parity import prove_model, weight_tolerances
from export.prune import prune_model
from tests.integration.export.exported import builder_in_this_process
from tests.integration.export.test_parity import Line, make_line
from tuneline.core.artifact import Artifact, new_artifact, open_artifact
from tuneline.core.errors import ArtifactError, TamperedError
from tuneline.core.parity import Parity
from tuneline.core.reference import read_reference
from tuneline.core.tolerances import WEIGHT_TOLERANCES
from tuneline.models.source import resolve_model

Q_PROJ = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Line:
    return make_line(tmp_path_factory.mktemp("line"), "llama")


@pytest.fixture(scope="module")
def decoder(line: Line) -> Artifact:
    out = line.merged.parent / "onnx"
    with builder_in_this_process():
        return export_onnx(OnnxConfig(), resolve_form(str(line.merged)), out)


def prove(line: Line, candidate: Path, out: Path) -> Parity:
    source = resolve_form(str(candidate))
    artifact = prove_model(ParityConfig(), line.reference, source, out, form=form_name(source))
    return Parity.model_validate_json((artifact.path / "parity.json").read_text())


def remade(artifact: Artifact, out: Path, edit: Callable[[Path], None]) -> Path:
    """The same artifact as a faulty exporter would have made it: altered, then given a manifest."""
    manifest = artifact.manifest
    with new_artifact(out, artifact.kind, config=manifest.config) as draft:
        for entry in manifest.files:
            shutil.copyfile(artifact.path / entry.path, draft.dir / entry.path)
        edit(draft.dir)
    return out


def test_the_decoder_passes(line: Line, decoder: Artifact, tmp_path: Path) -> None:
    parity = prove(line, decoder.path, tmp_path / "parity")
    assert parity.form == "onnx-float32"
    assert parity.verdict == "PASS", parity.problems
    assert parity.num_equal_answers == parity.num_prompts > 3
    assert parity.num_agreeing_tokens == parity.num_tokens > 20
    assert parity.max_logprob_difference is not None and parity.max_logprob_difference < 1e-4
    files = {file.name for file in (tmp_path / "parity").iterdir()}
    assert files == {"manifest.json", "parity.json", "parity.md", "parity.png"}
    assert (tmp_path / "parity" / "parity.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("form", ["torchscript", "torch-export", "onnx-logits"])
def test_a_graph_without_a_cache_passes(form: str, line: Line, tmp_path: Path) -> None:
    model, out = resolve_form(str(line.merged)), tmp_path / "form"
    make_form(form, model, out)
    parity = prove(line, out, tmp_path / "parity")
    assert (parity.form, parity.verdict) == (form, "PASS"), parity.problems
    assert parity.num_agreeing_tokens == parity.num_tokens > 20


def scaled(folder: Path, line: Line) -> Path:
    adapter = Path(shutil.copytree(line.adapter, folder / "adapter"))
    options = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**options, "use_rslora": True}))
    return merge(MergeConfig(), resolve_model(str(line.base)), adapter, folder / "broken").path


def dropped(folder: Path, line: Line) -> Path:
    model = Path(shutil.copytree(line.merged, folder / "broken"))
    (model / "manifest.json").unlink()
    values = {**load_file(model / "model.safetensors")}
    values[Q_PROJ] = load_file(line.base / "model.safetensors")[Q_PROJ]
    save_file(values, model / "model.safetensors", metadata={"format": "pt"})
    return model


def headless(folder: Path, line: Line) -> Path:
    """The untied output layer lost: the config ties it to the embedding, and nothing complains."""
    model = Path(shutil.copytree(line.merged, folder / "broken"))
    (model / "manifest.json").unlink()
    values = {**load_file(model / "model.safetensors")}
    del values["lm_head.weight"]
    save_file(values, model / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((model / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    (model / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    transformers.AutoModelForCausalLM.from_pretrained(model)  # transformers takes it
    return model


@pytest.mark.parametrize("broken", [scaled, dropped, headless])
@pytest.mark.parametrize("form", ["folder", "torchscript"])
def test_a_broken_model_is_caught_in_each_form(
    broken: Callable[[Path, Line], Path], form: str, line: Line, tmp_path: Path
) -> None:
    candidate = broken(tmp_path, line)
    if form == "torchscript":
        candidate = make_form("torchscript", resolve_form(str(candidate)), tmp_path / "form").path
    parity = prove(line, candidate, tmp_path / "parity")
    assert parity.verdict == "FAIL"
    assert parity.num_prompts_with_equal_ids == parity.num_prompts
    assert any("logprob_difference" in problem for problem in parity.problems)


def with_tensor(path: Path, shape: tuple[int, ...], value: np.ndarray | None) -> None:
    """Replace the last initializer of a shape in the graph; None makes it zero."""
    graph = onnx.load(str(path / "model.onnx"))
    matching = [entry for entry in graph.graph.initializer if tuple(entry.dims) == shape]
    assert matching, [tuple(entry.dims) for entry in graph.graph.initializer]
    replaced = np.zeros(shape, np.float32) if value is None else value.astype(np.float32)
    matching[-1].CopyFrom(numpy_helper.from_array(replaced, matching[-1].name))
    for file in path.glob("model.onnx*"):
        file.unlink()
    onnx.save(graph, str(path / "model.onnx"))


def test_a_tensor_dropped_from_the_graph_is_caught(
    line: Line, decoder: Artifact, tmp_path: Path
) -> None:
    broken = remade(decoder, tmp_path / "broken", lambda out: with_tensor(out, (96, 64), None))
    parity = prove(line, broken, tmp_path / "parity")
    assert parity.verdict == "FAIL"


def test_an_output_layer_replaced_by_the_embedding_is_caught(
    line: Line, decoder: Artifact, tmp_path: Path
) -> None:
    embedding = load_file(line.merged / "model.safetensors")["model.embed_tokens.weight"]
    broken = remade(
        decoder, tmp_path / "broken",
        lambda out: with_tensor(out, (64, 320), embedding.numpy().T),
    )  # fmt: skip
    parity = prove(line, broken, tmp_path / "parity")
    assert parity.verdict == "FAIL"


def test_another_template_next_to_the_graph_is_caught(
    line: Line, decoder: Artifact, tmp_path: Path
) -> None:
    def edit(out: Path) -> None:
        template = (out / "chat_template.jinja").read_text()
        assert "{{ message['role'] }}\n" in template
        (out / "chat_template.jinja").write_text(template.replace("}}\n{{", "}} {{"))

    parity = prove(line, remade(decoder, tmp_path / "broken", edit), tmp_path / "parity")
    assert parity.verdict == "FAIL"
    assert parity.num_prompts_with_equal_ids == 0


@pytest.mark.parametrize("stop", [319, []])
def test_a_missing_stop_token_of_the_decoder_is_caught(
    stop: int | list[int], line: Line, decoder: Artifact, tmp_path: Path
) -> None:
    def edit(out: Path) -> None:
        config = json.loads((out / "genai_config.json").read_text())
        config["model"]["eos_token_id"] = stop
        (out / "genai_config.json").write_text(json.dumps(config))

    parity = prove(line, remade(decoder, tmp_path / "broken", edit), tmp_path / "parity")
    stopped = [c for c in read_reference(line.reference) if c.finish_reason == "stop"]
    assert parity.verdict == "FAIL"
    assert len(parity.first_divergences) == len(stopped) > 0


def test_a_graph_that_differs_from_its_manifest_is_not_run(
    line: Line, decoder: Artifact, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(decoder.path, tmp_path / "copy"))
    template = copy / "chat_template.jinja"
    template.write_text(template.read_text().replace("assistant", "assistent"))
    with pytest.raises(TamperedError, match=r"chat_template\.jinja"):
        prove(line, copy, tmp_path / "parity")
    assert not (tmp_path / "parity").exists()


def test_a_model_whose_weights_are_not_its_manifests_is_not_proven(
    line: Line, tmp_path: Path
) -> None:
    """The trained model's weights under the manifest of another model: the same sizes."""

    def edit(out: Path) -> None:
        shutil.copyfile(line.base / "model.safetensors", out / "model.safetensors")

    broken = remade(open_artifact(line.merged), tmp_path / "broken", edit)
    shutil.copyfile(line.merged / "model.safetensors", broken / "model.safetensors")
    with pytest.raises(TamperedError, match=r"model\.safetensors: sha256"):
        prove(line, broken, tmp_path / "parity")
    assert not (tmp_path / "parity").exists()


def test_a_pruned_model_is_reported_as_what_it_is(line: Line, tmp_path: Path) -> None:
    prune_model(PruneConfig(sparsity=0.5), resolve_form(str(line.merged)), tmp_path / "pruned")
    parity = prove(line, tmp_path / "pruned", tmp_path / "parity")
    assert parity.form == "pruned"
    assert parity.verdict == "FAIL"
    assert parity.mean_kl is None or parity.mean_kl > 1e-4


def write_quantized(merged: Path, out: Path) -> dict[str, torch.Tensor]:
    """INT4 weights with a scale per 32 inputs in compressed-tensors' packed format, by hand.

    Returns:
        The dequantized weights, by name.
    """
    shutil.copytree(merged, out)
    (out / "manifest.json").unlink(missing_ok=True)
    stored, dequantized = {}, {}
    for name, value in load_file(merged / "model.safetensors").items():
        if value.ndim != 2 or "embed" in name or "lm_head" in name:
            stored[name] = dequantized[name] = value
            continue
        num_out, num_in = value.shape
        groups = value.reshape(num_out, num_in // 32, 32)
        scale = groups.abs().amax(dim=2, keepdim=True) / 7
        rounded = (groups / scale).round().clamp(-8, 7)
        dequantized[name] = (rounded * scale).reshape(num_out, num_in)
        # Eight values in 32 bits, the first in the lowest, each with 8 added.
        nibbles = (rounded.reshape(num_out, num_in // 8, 8) + 8).to(torch.int64)
        packed = (nibbles << (4 * torch.arange(8))).sum(dim=2)
        packed = torch.where(packed >= 2**31, packed - 2**32, packed).to(torch.int32)
        module = name.removesuffix(".weight")
        stored[f"{module}.weight_packed"] = packed
        stored[f"{module}.weight_scale"] = scale.reshape(num_out, num_in // 32).contiguous()
        stored[f"{module}.weight_shape"] = torch.tensor([num_out, num_in])
    save_file(stored, out / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((out / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "compressed-tensors", "format": "pack-quantized",
        "quantization_status": "compressed", "ignore": ["lm_head"],
        "config_groups": {"group_0": {
            "targets": ["Linear"], "input_activations": None, "output_activations": None,
            "weights": {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group",
                        "group_size": 32},
        }},
    }  # fmt: skip
    (out / "config.json").write_text(json.dumps(config))
    return dequantized


def test_a_compressed_tensors_folder_is_dequantized(line: Line, tmp_path: Path) -> None:
    """The same answers, to the bit of a sum, as a plain folder with the dequantized weights."""
    dequantized = write_quantized(line.merged, tmp_path / "quantized")
    plain = Path(shutil.copytree(line.merged, tmp_path / "plain"))
    (plain / "manifest.json").unlink()
    save_file(dequantized, plain / "model.safetensors", metadata={"format": "pt"})
    found = prove(line, tmp_path / "quantized", tmp_path / "parity")
    expected = prove(line, plain, tmp_path / "parity-plain")
    assert found.form == "quantized-w4a16"
    assert found.max_logprob_difference == pytest.approx(expected.max_logprob_difference, rel=1e-3)
    assert found.mean_kl == pytest.approx(expected.mean_kl, rel=1e-2)
    assert found.greedy_agreement == expected.greedy_agreement
    assert expected.max_logprob_difference is not None
    assert expected.max_logprob_difference > 1e-4  # the rounding shows


def test_a_coarse_quantizer_is_caught(line: Line, tmp_path: Path) -> None:
    """A model that says int8 and has three values per weight."""
    right = quantize_model(
        QuantizeConfig(scheme="int8"), resolve_model(str(line.merged)), tmp_path / "right"
    )
    fine = prove(line, right.path, tmp_path / "parity-right")
    assert not any("max_logprob_difference" in problem for problem in fine.problems)

    def coarsen(model: Path) -> None:
        values = load_file(model / "model.safetensors")
        codes = {name: value for name, value in values.items() if value.dtype == torch.int8}
        assert codes
        values |= {
            name: (torch.round(value.float() / 127) * 127).to(torch.int8)
            for name, value in codes.items()
        }
        save_file(values, model / "model.safetensors", metadata={"format": "pt"})

    parity = prove(line, remade(right, tmp_path / "coarse", coarsen), tmp_path / "parity")
    assert parity.verdict == "FAIL"
    assert parity.num_prompts_with_equal_ids == parity.num_prompts
    assert any("max_logprob_difference" in problem for problem in parity.problems)


def test_a_reference_is_not_a_candidate(line: Line, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="kind 'reference'"):
        resolve_form(str(line.reference.path))


@pytest.mark.parametrize(
    ("dtype", "computed", "expected"),
    [
        ("float32", "float32", None),
        ("float32", "bfloat16", None),
        ("bfloat16", "bfloat16", None),  # the server's own format: nothing more is rounded
        ("bfloat16", "float32", "bfloat16"),
        ("int8", "bfloat16", "int8"),
        ("int4", "float32", "int4"),
    ],
)
def test_what_the_rounding_of_served_weights_may_cost(
    dtype: str, computed: str, expected: str | None, line: Line, tmp_path: Path
) -> None:
    model = line.merged
    if dtype == "bfloat16":
        model = merge(
            MergeConfig(dtype="bfloat16"), resolve_model(str(line.base)), line.adapter,
            tmp_path / "model",
        ).path  # fmt: skip
    elif dtype != "float32":
        config = QuantizeConfig(scheme="int8" if dtype == "int8" else "w4a16", group_size=32)
        model = quantize_model(config, resolve_model(str(line.merged)), tmp_path / "model").path
    found = weight_tolerances(resolve_form(str(model)), computed)
    assert found == (None if expected is None else WEIGHT_TOLERANCES[expected])


def test_every_form_has_tolerances() -> None:
    assert WEIGHT_TOLERANCES.keys() >= {
        "float32", "float16", "bfloat16", "int8", "int4", "fp8", "pruned",
    }  # fmt: skip
