"""ONNX decoders: the answers and logits of transformers' own model, and refusals by name."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx
import onnxruntime_genai
import pytest
import torch
from safetensors.torch import load_file, save_file

from export import make_form, resolve_form
from export.config import OnnxConfig
from export.find_form import open_form
from export.graphs import to_onnx
from export.graphs.to_onnx import export_onnx
from export.runtimes.onnx_folder import answers, batch_logits, generated, load_genai
from export.runtimes.transformers_folder import load_model
from tests.integration.export.credentials import check_received, plant
from tests.integration.export.exported import (
    SMALL_FILES,
    builder_in_this_process,
    make_model,
    random_ids,
    transformers_logits,
    with_rope,
)
from tuneline.core.artifact import Artifact, verify_artifact
from tuneline.core.errors import (
    ArtifactError,
    ConfigError,
)
from tuneline.models.source import ModelSource

DECODERS = ("llama-tied", "qwen2", "qwen3", "mistral", "gemma", "phi")
MESSAGES = [{"role": "user", "content": "what is the weather on the second floor"}]

NO_NETWORK = """
import json, os, pathlib, socket, sys

if any("onnxruntime_genai.models.builder" in word for word in sys.orig_argv):
    path = pathlib.Path(__file__).with_name("received.json")
    path.write_text(json.dumps(dict(os.environ)))

def refused(*args, **kwargs):
    raise AssertionError("the network was asked")

socket.socket.connect = refused
socket.getaddrinfo = refused
"""


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {
        name: make_model(folder / name, name, num_layers=1) for name in (*DECODERS, "llama", "gpt2")
    }


@pytest.fixture
def builder_here() -> Iterator[None]:
    with builder_in_this_process():
        yield


def test_the_builder_asks_for_no_network_and_inherits_no_credential(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Every Python process that the export starts refuses to connect anywhere.
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(NO_NETWORK)
    path = os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    plant(monkeypatch)
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    artifact = make_form("onnx-float32", resolve_form(str(bases["llama"])), tmp_path / "out")
    check_received(tmp_path / "site" / "received.json")
    # Python does not see that ONNX Runtime connects; it would open a database of events here.
    assert not (tmp_path / "cache" / "Microsoft").exists()
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"
    verify_artifact(artifact)
    check_decoder_artifact(artifact, bases["llama"])


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.usefixtures("builder_here")
def test_the_decoder_answers_as_the_model_does(
    family: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    model = resolve_form(str(bases[family]))
    check_decoder_artifact(export_onnx(OnnxConfig(), model, tmp_path / "out"), bases[family])


def tokens_of_page(path: Path, prompt: list[int], length: int) -> Any:
    """The tokens that the example of the page on exports generates with only ONNX Runtime."""
    page = (Path(__file__).parents[4] / "docs" / "export.md").read_text()
    code = page.partition("```python\nimport json, numpy, onnxruntime")[2].partition("```")[0]
    for before, after in [("DIR/", f"{path}/"), ("[1, 15, 27]", str(prompt)), ("100", str(length))]:
        assert before in code
        code = code.replace(before, after)
    values: dict[str, Any] = {}
    exec(f"import json, numpy, onnxruntime\n{code}", values)  # noqa: S102
    return values["tokens"]


def check_decoder_artifact(artifact: Artifact, base: Path) -> None:
    """The exact files; transformers' own greedy answer; its logits, whole and continued."""
    files = {file.name for file in artifact.path.iterdir()}
    assert files == SMALL_FILES | {"model.onnx", "model.onnx.data", "genai_config.json"}
    for name in SMALL_FILES - {"manifest.json"}:
        assert (artifact.path / name).read_bytes() == (base / name).read_bytes(), name
    genai = json.loads((artifact.path / "genai_config.json").read_text())
    assert genai["model"]["eos_token_id"] == [2]
    graph = onnx.load(artifact.path / "model.onnx", load_external_data=False)
    assert graph.producer_version == version("onnxruntime-genai")  # no commit of this repository

    network, tokenizer = load_model(base)
    prompt = tokenizer.apply_chat_template(
        MESSAGES, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    length = prompt["input_ids"].shape[1] + 24
    expected = network.generate(**prompt, max_length=length, do_sample=False, pad_token_id=0)[0]
    given = prompt["input_ids"][0].tolist()
    assert tokens_of_page(artifact.path, given, length) == expected.tolist()
    ids = expected[prompt["input_ids"].shape[1] :]
    assert len(ids) >= 3
    model = load_genai(onnxruntime_genai, artifact.path)
    written = generated(onnxruntime_genai, model, prompt["input_ids"][0].tolist(), length)
    assert list(written) == ids.tolist()
    all_ids = list(generated(onnxruntime_genai, model, prompt["input_ids"][0].tolist(), 128))
    text = "".join(answers(artifact.path)(MESSAGES))
    whole_text = tokenizer.decode(all_ids, skip_special_tokens=True)
    assert text == whole_text.rstrip("\ufffd")

    score = open_form(resolve_form(str(artifact.path))).score
    whole = expected.tolist()
    wanted = torch.log_softmax(transformers_logits(base, expected[None])[0], dim=-1)
    found = torch.log_softmax(score(whole, len(whole)), dim=-1)
    assert float((found - wanted).abs().max()) < 1e-4
    score(whole[:-4], 1)
    continued = torch.log_softmax(score(whole, 3), dim=-1)
    assert float((continued - wanted[-3:]).abs().max()) < 1e-4

    rows = [whole, whole[:5]]
    for row, logits in zip(rows, batch_logits(artifact.path, rows), strict=True):
        wanted = transformers_logits(base, torch.tensor([row]))[0]
        assert float((logits - wanted).abs().max()) < 1e-4
    assert artifact.manifest.metrics["shape_contract"]["padding"] == "right"


@pytest.mark.parametrize("weights", ["int8", "int4"])
@pytest.mark.usefixtures("builder_here")
def test_a_decoder_in_fewer_bits_is_near(
    weights: Any, bases: dict[str, Path], tmp_path: Path
) -> None:
    base = bases["llama"]
    config = OnnxConfig(weights=weights)
    artifact = export_onnx(config, resolve_form(str(base)), tmp_path / "out")
    ids = random_ids(1, 12)
    wanted = torch.log_softmax(transformers_logits(base, ids)[0], dim=-1)
    score = open_form(resolve_form(str(artifact.path))).score
    found = torch.log_softmax(score(ids[0].tolist(), 12), dim=-1)
    mean = float((found - wanted).abs().mean())
    assert 1e-4 < mean < {"int8": 0.05, "int4": 0.5}[weights]
    weights = artifact.manifest.metrics["size_bytes"]
    assert weights < sum(f.stat().st_size for f in base.glob("*.safetensors"))


@pytest.mark.parametrize("weights", ["float32", "int8", "int4"])
@pytest.mark.usefixtures("builder_here")
def test_a_decoder_that_computes_something_else_is_refused(
    weights: Any, bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A builder that takes a layer for another: the graph runs, and agrees with its own cache."""
    mistaken = Path(shutil.copytree(bases["llama"], tmp_path / "mistaken"))
    values = {**load_file(mistaken / "model.safetensors")}
    if weights == "float32":  # the slightest: one head's queries
        values["model.layers.0.self_attn.q_proj.weight"][:16] = 0
    else:
        values["lm_head.weight"] = values["model.embed_tokens.weight"].clone()
    save_file(values, mistaken / "model.safetensors", metadata={"format": "pt"})
    right = to_onnx.run_builder

    def run(model: ModelSource, folder: Path, weights: str) -> None:
        right(resolve_form(str(mistaken)), folder, weights)

    monkeypatch.setattr(to_onnx, "run_builder", run)
    with pytest.raises(ArtifactError, match=r"'llama' cannot be .* computes something else at len"):
        export_onnx(
            OnnxConfig(weights=weights), resolve_form(str(bases["llama"])), tmp_path / "out"
        )
    assert [path.name for path in tmp_path.iterdir()] == ["mistaken"]


@pytest.mark.parametrize("rope_type", ["linear", "yarn", "dynamic"])
@pytest.mark.parametrize("weights", ["float32", "int4"])
def test_rotary_positions_that_the_decoder_lacks_are_refused_by_name(
    rope_type: str, weights: Any, tmp_path: Path
) -> None:
    model = resolve_form(str(with_rope(tmp_path / "base", rope_type)))
    with pytest.raises(ArtifactError, match=f"rotary positions of the type '{rope_type}'"):
        export_onnx(OnnxConfig(weights=weights), model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_family_that_the_decoder_cannot_take(bases: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="'GPT2LMHeadModel' cannot be exported to an ONNX dec"):
        export_onnx(OnnxConfig(), resolve_form(str(bases["gpt2"])), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_truncated_model_is_not_a_fault_of_the_family(tmp_path: Path) -> None:
    base = make_model(tmp_path / "base", "llama")
    data = (base / "model.safetensors").read_bytes()
    (base / "model.safetensors").write_bytes(data[:-9])
    with pytest.raises(ArtifactError, match=r"model\.safetensors: .*truncated"):
        export_onnx(OnnxConfig(), resolve_form(str(base)), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_a_decoder_in_fp16_is_refused_on_a_cpu(bases: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no float16 decoder for a CPU"):
        export_onnx(
            OnnxConfig(weights="float16"), resolve_form(str(bases["llama"])), tmp_path / "o"
        )
    assert list(tmp_path.iterdir()) == []
