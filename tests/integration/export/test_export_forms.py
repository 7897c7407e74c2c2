"""ONNX, TorchScript and torch.export: the graphs give transformers' own logits at shapes that the
export did not try, answers end where the model's own `generate` ends, and what cannot be exported
is refused by name."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import onnxruntime_genai
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from export import to_onnx
from export.config import OnnxConfig
from export.forms import open_form, resolve_folder, resolve_form
from export.loaded_model import load_model
from export.onnx_model import answers, generated, load_genai
from export.to_onnx import export_onnx
from export.to_torch_export import export_torch_export, refuse_pickles
from export.to_torchscript import export_torchscript
from tests.integration.export import families
from tests.integration.export.exported import make_model
from tuneline.core.artifact import Artifact, verify_artifact
from tuneline.core.errors import (
    ArtifactError,
    ConfigError,
    DiskFullError,
    MissingError,
    TamperedError,
)
from tuneline.core.model_source import ModelSource

SHAPES = ((1, 1), (1, 13), (2, 2), (4, 3), (7, 11))
FAMILIES = ("llama-tied", "qwen2", "qwen3", "mistral", "gemma", "phi", "gpt2", "mixtral")
DECODERS = ("llama-tied", "qwen2", "qwen3", "mistral", "gemma", "phi")
SMALL_FILES = {
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    "chat_template.jinja", "manifest.json",
}  # fmt: skip
MESSAGES = [{"role": "user", "content": "what is the weather on the second floor"}]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {
        name: make_model(folder / name, name, num_layers=1)
        for name in sorted({*FAMILIES, *DECODERS, "llama"})
    }


def random_ids(batch: int, length: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(batch * 100 + length)
    return torch.randint(families.VOCABULARY, (batch, length), generator=generator)


def transformers_logits(base: Path, input_ids: torch.Tensor) -> torch.Tensor:
    network = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    with torch.no_grad():
        logits: torch.Tensor = network(input_ids=input_ids).logits
    return logits


def load_graph(artifact: Artifact) -> Any:
    """The graph by its own runtime, without a line of ours."""
    if artifact.kind == "torchscript":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.jit.load(artifact.path / "model.pt")
    if artifact.kind == "torch-export":
        return torch.export.load(artifact.path / "model.pt2").module()
    session = onnxruntime.InferenceSession(str(artifact.path / "model.onnx"))
    return lambda ids: torch.from_numpy(session.run(None, {"input_ids": ids.numpy()})[0])


@pytest.fixture(scope="module")
def exported(
    bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], Artifact]:
    """Each form of each family, made once."""
    folder = tmp_path_factory.mktemp("exported")

    @functools.cache
    def make(form: str, family: str) -> Artifact:
        return export(form, bases[family], folder / f"{form}-{family}")

    return make


def export(form: str, base: Path, out: Path) -> Artifact:
    model = resolve_folder(str(base))
    if form == "torchscript":
        return export_torchscript(model, out)
    if form == "torch-export":
        return export_torch_export(model, out)
    return export_onnx(OnnxConfig(graph="logits"), model, out)


@pytest.mark.parametrize(
    ("form", "family"),
    [
        *(("torchscript", family) for family in FAMILIES),
        *(("torch-export", family) for family in ("llama-tied", "mistral", "gpt2", "mixtral")),
        *(("onnx-logits", family) for family in ("mistral", "gpt2", "mixtral")),
    ],
)
def test_the_graph_gives_the_logits_of_the_model(
    form: str, family: str, bases: dict[str, Path], exported: Callable[[str, str], Artifact]
) -> None:
    artifact = exported(form, family)
    verify_artifact(artifact)
    graph = load_graph(artifact)
    network = transformers.AutoModelForCausalLM.from_pretrained(bases[family]).eval()
    for shape in SHAPES:
        input_ids = random_ids(*shape)
        with torch.no_grad():
            expected, found = network(input_ids=input_ids).logits, graph(input_ids)
        assert found.shape == (*shape, families.VOCABULARY)
        assert float((found - expected).abs().max()) < 1e-4, shape
    contract = artifact.manifest.metrics["shape_contract"]
    assert contract["inputs"]["input_ids"]["shape"] == ["batch", "length"]
    assert contract["length"] == {"min": 1, "max": 128}
    assert len(contract["checked_shapes"]) > 3
    assert [1, 128] in contract["checked_shapes"]  # the whole of what it takes
    for name in SMALL_FILES - {"manifest.json", "config.json"}:
        assert (artifact.path / name).read_bytes() == (bases[family] / name).read_bytes(), name


TORCH_ALONE = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("transformers", "export", "tuneline", "safetensors"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
import torch
path, ids = sys.argv[1], torch.tensor(eval(sys.argv[2]))
graph = torch.jit.load(path) if path.endswith(".pt") else torch.export.load(path).module()
print(repr(graph(ids)[:, -1].tolist()))
"""


@pytest.mark.parametrize("form", ["torchscript", "torch-export"])
def test_torch_alone_loads_it(
    form: str, bases: dict[str, Path], exported: Callable[[str, str], Artifact], tmp_path: Path
) -> None:
    base = bases["mixtral"]
    artifact = exported(form, "mixtral")
    (graph,) = artifact.path.glob("model.pt*")
    input_ids = random_ids(3, 4)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", TORCH_ALONE, str(graph), str(input_ids.tolist())],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = np.array(json.loads(done.stdout))
    expected = transformers_logits(base, input_ids)[:, -1].numpy()
    assert found.shape == (3, families.VOCABULARY)
    assert np.abs(found - expected).max() < 1e-4


def test_the_program_holds_no_pickle(exported: Callable[[str, str], Artifact]) -> None:
    path = exported("torch-export", "llama-tied").path / "model.pt2"
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    assert sum("/data/weights/weight_" in name for name in members) > 10
    for name, data in members.items():
        # A pickle of protocol 2 and later begins with 0x80, torch's own files with a zip's PK.
        assert not (name.endswith((".pt", ".pkl")) and data), name
        if name.endswith(".json"):
            assert b'"use_pickle": true' not in data
    refuse_pickles(path)


@pytest.mark.parametrize("kind", ["sample_inputs", "use_pickle", "opaque", "unknown"])
def test_a_program_with_a_pickle_is_refused(
    kind: str, exported: Callable[[str, str], Artifact], tmp_path: Path
) -> None:
    artifact = exported("torch-export", "llama-tied")
    altered = tmp_path / "altered.pt2"
    config = "data/weights/model_weights_config.json"
    with (
        zipfile.ZipFile(artifact.path / "model.pt2") as archive,
        zipfile.ZipFile(altered, "w") as out,
    ):
        root = archive.namelist()[0].partition("/")[0]
        for name in archive.namelist():
            data = archive.read(name)
            if kind == "sample_inputs" and "sample_inputs" in name:
                data = b"\x80\x02."
            if kind in ("use_pickle", "opaque") and name.endswith(config):
                document = json.loads(data)
                entry = next(iter(document["config"].values()))
                entry |= (
                    {"use_pickle": True} if kind == "use_pickle" else {"path_name": "opaque_obj_0"}
                )
                data = json.dumps(document).encode()
            out.writestr(name, data)
        if kind == "unknown":
            out.writestr(f"{root}/data/weights/model.pt", b"\x80\x02.")
    with pytest.raises(ArtifactError, match="pickle"):
        refuse_pickles(altered)


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.pt2").write_bytes(b"\x80\x02.")
    with pytest.raises(ArtifactError, match=r"not a torch\.export archive"):
        refuse_pickles(tmp_path / "model.pt2")


NO_NETWORK = """
import socket

def refused(*args, **kwargs):
    raise AssertionError("the network was asked")

socket.socket.connect = refused
socket.getaddrinfo = refused
"""


@pytest.fixture
def builder_here() -> Iterator[None]:
    """The builder in this process: what it is, without starting it anew for each family."""
    from onnxruntime_genai.models import builder

    def run(model: ModelSource, folder: Path, precision: str) -> None:
        arguments = (None, str(model.path), str(folder), precision, "cpu", str(folder.parent))
        options = builder.parse_extra_options(*arguments, ["hf_token=false"])
        builder.create_model(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(to_onnx, "run_builder", run)
        yield


def test_the_builder_asks_for_no_network_and_gets_no_token(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Every Python process that the export starts refuses to connect anywhere.
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(NO_NETWORK)
    path = os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setenv("HF_TOKEN", "hf_not_a_real_token_0123456789")
    artifact = export_onnx(OnnxConfig(), resolve_folder(str(bases["llama"])), tmp_path / "out")
    verify_artifact(artifact)
    check_decoder_artifact(artifact, bases["llama"])


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.usefixtures("builder_here")
def test_the_decoder_answers_as_the_model_does(
    family: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    model = resolve_folder(str(bases[family]))
    check_decoder_artifact(export_onnx(OnnxConfig(), model, tmp_path / "out"), bases[family])


def check_decoder_artifact(artifact: Artifact, base: Path) -> None:
    """The exact files; transformers' own greedy answer; its logits, whole and continued."""
    files = {file.name for file in artifact.path.iterdir()}
    assert files == SMALL_FILES | {"model.onnx", "model.onnx.data", "genai_config.json"}
    for name in SMALL_FILES - {"manifest.json"}:
        assert (artifact.path / name).read_bytes() == (base / name).read_bytes(), name
    genai = json.loads((artifact.path / "genai_config.json").read_text())
    assert genai["model"]["eos_token_id"] == [2]

    network, tokenizer = load_model(base)
    prompt = tokenizer.apply_chat_template(
        MESSAGES, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    length = prompt["input_ids"].shape[1] + 24
    expected = network.generate(**prompt, max_length=length, do_sample=False, pad_token_id=0)[0]
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


@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.usefixtures("builder_here")
def test_a_decoder_in_fewer_bits_is_near(
    precision: Any, bases: dict[str, Path], tmp_path: Path
) -> None:
    base = bases["llama"]
    config = OnnxConfig(precision=precision)
    artifact = export_onnx(config, resolve_folder(str(base)), tmp_path / "out")
    ids = random_ids(1, 12)
    wanted = torch.log_softmax(transformers_logits(base, ids)[0], dim=-1)
    score = open_form(resolve_form(str(artifact.path))).score
    found = torch.log_softmax(score(ids[0].tolist(), 12), dim=-1)
    mean = float((found - wanted).abs().mean())
    assert 1e-4 < mean < {"int8": 0.05, "int4": 0.5}[precision]
    weights = artifact.manifest.metrics["size_bytes"]
    assert weights < sum(f.stat().st_size for f in base.glob("*.safetensors"))


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
@pytest.mark.usefixtures("builder_here")
def test_a_decoder_that_computes_something_else_is_refused(
    precision: Any, bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A builder that takes a layer for another: the graph runs, and agrees with its own cache."""
    mistaken = Path(shutil.copytree(bases["llama"], tmp_path / "mistaken"))
    values = {**load_file(mistaken / "model.safetensors")}
    if precision == "fp32":  # the slightest: one head's queries
        values["model.layers.0.self_attn.q_proj.weight"][:16] = 0
    else:
        values["lm_head.weight"] = values["model.embed_tokens.weight"].clone()
    save_file(values, mistaken / "model.safetensors", metadata={"format": "pt"})
    right = to_onnx.run_builder

    def run(model: ModelSource, folder: Path, precision: str) -> None:
        right(resolve_folder(str(mistaken)), folder, precision)

    monkeypatch.setattr(to_onnx, "run_builder", run)
    with pytest.raises(ArtifactError, match=r"'llama' cannot be .* computes something else at len"):
        export_onnx(
            OnnxConfig(precision=precision), resolve_folder(str(bases["llama"])), tmp_path / "out"
        )
    assert [path.name for path in tmp_path.iterdir()] == ["mistaken"]


@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
def test_a_logits_graph_that_rounding_broke_is_refused(
    precision: Any,
    bases: dict[str, Path],
    exported: Callable[[str, str], Artifact],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = exported("onnx-logits", "llama-tied").path  # another output layer

    def broken(path: Path, precision: str) -> None:
        for file in other.glob("model.onnx*"):
            shutil.copyfile(file, path.parent / file.name)

    monkeypatch.setattr(to_onnx, "reduce_weights", broken)
    with pytest.raises(ArtifactError, match=r"'llama' cannot be exported to ONNX: .* something el"):
        export_onnx(
            OnnxConfig(precision=precision, graph="logits"),
            resolve_folder(str(bases["llama"])),
            tmp_path / "out",
        )
    assert list(tmp_path.iterdir()) == []


ROPES: dict[str, dict[str, Any]] = {
    "linear": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 32},
    "dynamic": {"factor": 4.0},
    "longrope": {
        "factor": 4.0, "original_max_position_embeddings": 32,
        "short_factor": [1.0] * 8, "long_factor": [4.0] * 8,
    },
}  # fmt: skip


def with_rope(folder: Path, rope_type: str) -> Path:
    rope = {"rope_type": rope_type, "rope_theta": 10000.0, **ROPES[rope_type]}
    config = transformers.LlamaConfig(**families.SMALL, rope_parameters=rope)
    return families.save_random(folder, config, torch.float32)


@pytest.mark.parametrize("rope_type", ["linear", "yarn", "dynamic"])
@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_rotary_positions_that_the_decoder_lacks_are_refused_by_name(
    rope_type: str, precision: Any, tmp_path: Path
) -> None:
    model = resolve_folder(str(with_rope(tmp_path / "base", rope_type)))
    with pytest.raises(ArtifactError, match=f"rotary positions of the type '{rope_type}'"):
        export_onnx(OnnxConfig(precision=precision), model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("rope_type", ["dynamic", "longrope"])
@pytest.mark.parametrize("form", ["torchscript", "torch-export", "onnx-logits"])
def test_rotary_positions_that_change_with_the_length_are_refused_by_name(
    form: str, rope_type: str, tmp_path: Path
) -> None:
    base = with_rope(tmp_path / "base", rope_type)
    with pytest.raises(ArtifactError, match=f"positions are of the type '{rope_type}', which chan"):
        export(form, base, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_traced_graph_is_right_at_its_longest(tmp_path: Path) -> None:
    artifact = export("torchscript", with_rope(tmp_path / "base", "yarn"), tmp_path / "out")
    ids = random_ids(1, 128)
    difference = load_graph(artifact)(ids) - transformers_logits(tmp_path / "base", ids)
    assert float(difference.abs().max()) < 1e-4


@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
def test_a_logits_graph_in_fewer_bits_is_smaller_and_near(
    precision: Any,
    bases: dict[str, Path],
    exported: Callable[[str, str], Artifact],
    tmp_path: Path,
) -> None:
    base, artifact = bases["mistral"], exported("onnx-logits", "mistral")
    for file in artifact.path.glob("model.onnx*"):
        shutil.copyfile(file, tmp_path / file.name)
    to_onnx.reduce_weights(tmp_path / "model.onnx", precision)
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    ids = random_ids(3, 9)
    (found,) = session.run(None, {"input_ids": ids.numpy()})
    assert found.dtype == np.float32
    difference = np.abs(found - transformers_logits(base, ids).numpy()).mean()
    assert 1e-6 < difference < {"fp16": 0.01, "int8": 0.05, "int4": 0.5}[precision]
    reduced = sum(file.stat().st_size for file in tmp_path.glob("model.onnx*"))
    assert reduced < 0.7 * artifact.manifest.metrics["size_bytes"]


def test_a_graph_without_matrix_products_is_not_quantized(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    config = OnnxConfig(precision="int8", graph="logits")
    with pytest.raises(ArtifactError, match="'gpt2' cannot be exported to ONNX: it has no matrix"):
        export_onnx(config, resolve_folder(str(bases["gpt2"])), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_family_that_the_decoder_cannot_take(bases: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="'GPT2LMHeadModel' cannot be exported to an ONNX dec"):
        export_onnx(OnnxConfig(), resolve_folder(str(bases["gpt2"])), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_decoder_in_fp16_is_refused_on_a_cpu(bases: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no fp16 decoder for a CPU"):
        export_onnx(
            OnnxConfig(precision="fp16"), resolve_folder(str(bases["llama"])), tmp_path / "o"
        )
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_a_stop_token_is_refused(tmp_path: Path) -> None:
    base = make_model(tmp_path / "base", "llama")
    (base / "generation_config.json").write_text("{}")
    with pytest.raises(ArtifactError, match="names no stop token"):
        export_onnx(OnnxConfig(), resolve_folder(str(base)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_logits_graph_cannot_chat(exported: Callable[[str, str], Artifact]) -> None:
    artifact = exported("onnx-logits", "mistral")
    with pytest.raises(ConfigError, match="--graph decoder"):
        answers(artifact.path)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no such folder"):
        resolve_folder(str(tmp_path / "none"))


def test_a_truncated_model_writes_nothing(bases: dict[str, Path], tmp_path: Path) -> None:
    base = make_model(tmp_path / "base", "llama")
    data = (base / "model.safetensors").read_bytes()
    (base / "model.safetensors").write_bytes(data[:-9])
    for form in ("torchscript", "torch-export", "onnx-logits"):
        with pytest.raises(ArtifactError, match="cannot load it"):
            export(form, base, tmp_path / form)
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


@pytest.mark.parametrize("form", ["torchscript", "torch-export", "onnx-logits"])
def test_a_disk_that_fills_up_is_no_fault_of_the_family(
    form: str, bases: dict[str, Path], small_disk: Callable[[str], Path]
) -> None:
    disk = small_disk("64k")
    with pytest.raises(DiskFullError, match="the disk is full"):
        export(form, bases["llama"], disk / "out")
    assert list(disk.iterdir()) == []


def test_an_altered_graph_is_not_run(
    exported: Callable[[str, str], Artifact], tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(exported("torchscript", "qwen2").path, tmp_path / "copy"))
    data = bytearray((copy / "model.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (copy / "model.pt").write_bytes(data)
    with pytest.raises(TamperedError, match=r"model\.pt"):
        open_form(resolve_form(str(copy)))


@pytest.mark.parametrize("form", ["torchscript", "torch-export", "onnx-logits"])
def test_no_file_names_this_machine(form: str, exported: Callable[[str, str], Artifact]) -> None:
    artifact = exported(form, "mistral")
    places = [os.fsencode(Path(torch.__file__).parents[1]), os.fsencode(Path(__file__).parents[3])]
    files = [file for file in artifact.path.rglob("*") if file.is_file()]
    assert len(files) > 5
    for file in files:
        contents = [file.read_bytes()]
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                contents = [archive.read(name) for name in archive.namelist()]
        for place in places:
            assert not any(place in content for content in contents), file
