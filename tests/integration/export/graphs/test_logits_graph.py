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
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import transformers

from export import make_form, open_chat, resolve_form
from export.config import OnnxConfig
from export.find_form import open_form
from export.graphs import to_onnx, to_torch_export
from export.graphs.to_onnx import export_onnx
from export.graphs.to_torch_export import refuse_pickles
from tests.integration.export import families
from tests.integration.export.exported import (
    SMALL_FILES,
    make_model,
    random_ids,
    transformers_logits,
    with_rope,
)
from tuneline.core.artifact import Artifact, verify_artifact
from tuneline.core.errors import (
    ArtifactError,
    ConfigError,
    DiskFullError,
    TamperedError,
)

SHAPES = ((1, 1), (1, 13), (2, 2), (4, 3), (7, 11))
FAMILIES = ("llama-tied", "qwen2", "qwen3", "mistral", "gemma", "phi", "gpt2", "mixtral")


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {name: make_model(folder / name, name, num_layers=1) for name in sorted(FAMILIES)}


@pytest.fixture(scope="module", autouse=True)
def traced_once() -> Iterator[None]:
    """torch traces each model once for a form: the trace is most of what an export costs."""

    def once(trace: Callable[[Any], Any]) -> Callable[[Any], Any]:
        programs: dict[str, Any] = {}

        def traced(logits: Any) -> Any:
            folder = logits.network.config._name_or_path
            assert folder
            if folder not in programs:
                programs[folder] = trace(logits)
            return programs[folder]

        return traced

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(to_onnx, "trace_logits", once(to_onnx.trace_logits))
        patch.setattr(to_torch_export, "export_program", once(to_torch_export.export_program))
        yield


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
    return make_form(form, resolve_form(str(base)), out)


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
def test_only_torch_is_needed_to_load_it(
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


@pytest.mark.parametrize("weights", ["float16", "int8", "int4"])
def test_a_logits_graph_that_rounding_broke_is_refused(
    weights: Any,
    bases: dict[str, Path],
    exported: Callable[[str, str], Artifact],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = exported("onnx-logits", "mixtral").path

    def broken(path: Path, weights: str) -> None:
        for file in other.glob("model.onnx*"):
            shutil.copyfile(file, path.parent / file.name)

    monkeypatch.setattr(to_onnx, "reduce_weights", broken)
    with pytest.raises(
        ArtifactError, match=r"'mistral' cannot be exported to ONNX: .* something e"
    ):
        export_onnx(
            OnnxConfig(weights=weights, graph="logits"),
            resolve_form(str(bases["mistral"])),
            tmp_path / "out",
        )
    assert list(tmp_path.iterdir()) == []


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


@pytest.mark.parametrize("weights", ["float16", "int8", "int4"])
def test_a_logits_graph_in_fewer_bits_is_smaller_and_near(
    weights: Any,
    bases: dict[str, Path],
    exported: Callable[[str, str], Artifact],
    tmp_path: Path,
) -> None:
    base, artifact = bases["mistral"], exported("onnx-logits", "mistral")
    for file in artifact.path.glob("model.onnx*"):
        shutil.copyfile(file, tmp_path / file.name)
    to_onnx.reduce_weights(tmp_path / "model.onnx", weights)
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    ids = random_ids(3, 9)
    (found,) = session.run(None, {"input_ids": ids.numpy()})
    assert found.dtype == np.float32
    difference = np.abs(found - transformers_logits(base, ids).numpy()).mean()
    assert 1e-6 < difference < {"float16": 0.01, "int8": 0.05, "int4": 0.5}[weights]
    reduced = sum(file.stat().st_size for file in tmp_path.glob("model.onnx*"))
    assert reduced < 0.7 * artifact.manifest.metrics["size_bytes"]


def test_a_graph_without_matrix_products_is_not_quantized(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    config = OnnxConfig(weights="int8", graph="logits")
    with pytest.raises(ArtifactError, match="'gpt2' cannot be exported to ONNX: it has no matrix"):
        export_onnx(config, resolve_form(str(bases["gpt2"])), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_without_a_stop_token_is_refused(tmp_path: Path) -> None:
    base = make_model(tmp_path / "base", "llama")
    (base / "generation_config.json").write_text("{}")
    with pytest.raises(ArtifactError, match="has no stop token"):
        export_onnx(OnnxConfig(), resolve_form(str(base)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_logits_graph_cannot_chat(exported: Callable[[str, str], Artifact]) -> None:
    artifact = exported("onnx-logits", "mistral")
    with pytest.raises(ConfigError, match="tuneline export form onnx-float32"):
        open_chat(artifact.path)


@pytest.mark.parametrize("form", ["torchscript", "torch-export", "onnx-logits"])
def test_a_truncated_model_writes_nothing(form: str, tmp_path: Path) -> None:
    base = make_model(tmp_path / "base", "llama")
    data = (base / "model.safetensors").read_bytes()
    (base / "model.safetensors").write_bytes(data[:-9])
    with pytest.raises(ArtifactError, match="truncated: its header describes"):
        export(form, base, tmp_path / form)
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


@pytest.mark.parametrize("form", ["torchscript", "torch-export", "onnx-logits"])
def test_a_disk_that_fills_up_is_not_a_fault_of_the_family(
    form: str, bases: dict[str, Path], small_disk: Callable[[str], Path]
) -> None:
    disk = small_disk("64k")
    with pytest.raises(DiskFullError, match="the disk is full"):
        export(form, bases["mistral"], disk / "out")
    assert list(disk.iterdir()) == []


@pytest.mark.parametrize("form", ["torchscript", "torch-export", "onnx-logits", "onnx-int4"])
def test_space_is_asked_for_before_the_model_is_loaded(
    form: str, bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    monkeypatch.setattr(transformers, "AutoModelForCausalLM", None)
    with pytest.raises(DiskFullError, match="0 MiB are free; expected"):
        export(form, bases["mistral"], tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


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
    places = [os.fsencode(Path(torch.__file__).parents[1]), os.fsencode(Path(__file__).parents[4])]
    files = [file for file in artifact.path.rglob("*") if file.is_file()]
    assert len(files) > 5
    for file in files:
        contents = [file.read_bytes()]
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                contents = [archive.read(name) for name in archive.namelist()]
        for place in places:
            assert not any(place in content for content in contents), file
