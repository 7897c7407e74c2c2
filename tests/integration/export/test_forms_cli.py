"""The commands around the forms, as they are typed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.export.test_export_parity import Line, make_line
from tuneline.core.artifact import open_artifact, verify_artifact


def tuneline(*args: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tuneline", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Line:
    return make_line(tmp_path_factory.mktemp("line"), "llama")


def test_export_prove_and_publish(line: Line, tmp_path: Path) -> None:
    graph, proof, tar = tmp_path / "graph", tmp_path / "proof", tmp_path / "model.tar"
    done = tuneline("export", "torchscript", "--model", line.merged, "--out", graph, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["kind"] == "torchscript"
    verify_artifact(open_artifact(graph, kind="torchscript"))

    reference = ("prove", "--reference", line.reference.path)
    done = tuneline(*reference, "--candidate", graph, "--out", proof, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["metrics"]["form"] == "torchscript"

    done = tuneline("push", "--model", graph, "--to", tar)
    assert done.returncode == 0, done.stderr
    assert tar.stat().st_size > (graph / "model.pt").stat().st_size
    card = tmp_path / "README.md"
    assert tuneline("card", graph, "--out", card).returncode == 0
    text = card.read_text()
    assert open_artifact(graph).digest in text
    assert "| torchscript | PASS |" in text
    assert tuneline("card", graph, "--out", card).returncode == 3  # nothing is written over


def test_a_candidate_that_is_not_the_model_exits_with_6(line: Line, tmp_path: Path) -> None:
    done = tuneline(
        "prove", "--reference", line.reference.path, "--candidate", line.base,
        "--out", tmp_path / "proof",
    )  # fmt: skip
    assert done.returncode == 6
    assert "FAIL" in done.stderr


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (("export", "onnx", "--precision", "int3"), 2, "precision"),
        (("export", "prune"), 2, "sparsity or pattern"),
        (("export", "torchscript", "--model", "/none"), 4, "no such folder"),
        (("chat", "--artifact", ".", "--url", "http://x/v1"), 2, "no meaning with --artifact"),
        (("push", "--to", "hf:name"), 2, "expected hf:ORG/NAME"),
    ],
)
def test_bad_options_are_named(
    args: tuple[str, ...], code: int, message: str, line: Line, tmp_path: Path
) -> None:
    given = list(args)
    if "--model" not in given and given[0] != "chat":
        given += ["--model", str(line.merged)]
    if given[0] == "export":
        given += ["--out", str(tmp_path / "out")]
    done = tuneline(*given)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert list(tmp_path.iterdir()) == []
