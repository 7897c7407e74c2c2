"""The commands around the forms, as they are typed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.integration.export.test_parity import Line, make_line
from tuneline.cli import app
from tuneline.core.artifact import open_artifact, verify_artifact
from tuneline.core.errors import TunelineError


def tuneline(*args: str | Path) -> tuple[int, str, str]:
    """Exit code, stdout and the error's text, of a command run in this process: its imports are
    most of what a command costs."""
    done = CliRunner().invoke(app, [str(arg) for arg in args])
    if isinstance(done.exception, TunelineError):
        return done.exception.exit_code, done.stdout, str(done.exception)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, ""


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Line:
    return make_line(tmp_path_factory.mktemp("line"), "llama")


def test_export_prove_and_publish(line: Line, tmp_path: Path) -> None:
    graph, proof, tar = tmp_path / "graph", tmp_path / "proof", tmp_path / "model.tar"
    code, shown, error = tuneline(
        "export", "form", "torchscript", "--model", line.merged, "--out", graph, "--json"
    )
    assert code == 0, error
    assert json.loads(shown)["kind"] == "torchscript"
    verify_artifact(open_artifact(graph, kind="torchscript"))

    reference = ("prove", "--reference", line.reference.path)
    code, shown, error = tuneline(*reference, "--candidate", graph, "--out", proof, "--json")
    assert code == 0, error
    assert json.loads(shown)["metrics"]["form"] == "torchscript"

    assert tuneline("push", "--model", graph, "--to", tar)[0] == 0
    assert tar.stat().st_size > (graph / "model.pt").stat().st_size
    card = tmp_path / "README.md"
    assert tuneline("card", graph, "--out", card)[0] == 0
    text = card.read_text()
    assert open_artifact(graph).digest in text
    assert "| torchscript | PASS |" in text
    assert tuneline("card", graph, "--out", card)[0] == 3  # nothing is written over


def test_a_candidate_that_is_not_the_model_exits_with_6(line: Line, tmp_path: Path) -> None:
    code, shown, error = tuneline(
        "prove", "--reference", line.reference.path, "--candidate", line.base,
        "--out", tmp_path / "proof",
    )  # fmt: skip
    assert code == 6
    assert "FAIL" in error and "greedy_agreement" in shown


def test_a_proof_goes_next_to_the_form_by_default(
    line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = ("prove", "--reference", line.reference.path, "--candidate", line.merged)
    code, _, error = tuneline(*given)
    assert code == 0, error
    assert [path.name for path in tmp_path.iterdir()] == ["parity-merged"]
    verify_artifact(open_artifact(tmp_path / "parity-merged", kind="parity"))
    code, _, error = tuneline(*given)
    assert code == 3 and "parity-merged: exists already" in error


URL = ("--candidate", "http://127.0.0.1:1/v1", "--model", "m")


def test_the_weights_of_a_server_are_a_whole_folder(line: Line, tmp_path: Path) -> None:
    given = ("prove", "--reference", line.reference.path, *URL, "--out", tmp_path / "out")
    code, _, error = tuneline(*given, "--weights", tmp_path / "none")
    assert code == 4 and "--weights" in error and "no such folder" in error
    copy = Path(shutil.copytree(line.merged, tmp_path / "copy"))
    shutil.copyfile(line.base / "model.safetensors", copy / "model.safetensors")
    code, _, error = tuneline(*given, "--weights", copy)
    assert code == 3 and "model.safetensors: sha256" in error


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (("export", "form", "onnx-logits", "--weights", "int3"), 2, "weights"),
        (("export", "form", "pruned"), 2, "sparsity or pattern"),
        (("export", "quantize", "--scheme", "int8", "--method", "awq", "--data", "x"), 2, "w4a16"),
        (("export", "quantize", "--scheme", "int8", "--method", "gptq"), 2, "--data is required"),
        (("export", "quantize", "--scheme", "int8", "--data", "x"), 2, "without --method"),
        (("export", "quantize", "--scheme", "fp8", "--group-size", "32"), 2, "no meaning without"),
        (("export", "form", "quantized-fp8", "--group-size", "32"), 2, ""),  # the parser says it
        (("export", "form", "torchscript", "--model", "/none"), 4, "no such folder"),
        (
            ("export", "quantize", "--scheme", "int8", "--method", "gptq", "--data", "/none"),
            2,
            "--data /none: no such file",
        ),
        (("push", "--to", "x", "--model", "/none"), 4, "--model /none: no such folder"),
        (("prove", "--weights", "."), 2, "--weights: has no meaning with a model on disk"),
        (("chat", "--artifact", ".", "--url", "http://x/v1"), 2, "no meaning with --artifact"),
        (("chat", "--artifact", ".", "--api-key-env", "KEY"), 2, "no meaning with --artifact"),
        (("push", "--to", "hf:name"), 2, "expected hf:ORG/NAME"),
    ],
)
def test_bad_options_are_named(
    args: tuple[str, ...], code: int, message: str, line: Line, tmp_path: Path
) -> None:
    given = list(args)
    if given[0] == "prove":
        given += ["--reference", str(line.reference.path), "--candidate", str(line.merged)]
    elif "--model" not in given and given[0] != "chat":
        given += ["--model", str(line.merged)]
    if given[0] == "export":
        given += ["--out", str(tmp_path / "out")]
    found, _, error = tuneline(*given)
    assert found == code, error
    assert message in error
    assert list(tmp_path.iterdir()) == []
