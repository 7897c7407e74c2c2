"""The release of a line that serves an adapter: its base model is a part of what is released."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.integration.release.line import Answers, FinishedLine, rewrite, verify, write_line
from tuneline.core.release import Outcome, read_release
from tuneline.models import source
from tuneline.models.source import embedded_base

CONFIG = {"base_model": "base", "serving": {"mode": "adapter"}}


def with_base(folder: Path) -> Path:
    shutil.copytree(embedded_base(), folder / "base")
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> FinishedLine:
    return write_line(with_base(tmp_path_factory.mktemp("whole")), config=CONFIG)


@pytest.fixture
def line(whole: FinishedLine, tmp_path: Path) -> FinishedLine:
    """A copy that a test may damage; files keep their times."""
    folder = Path(shutil.copytree(whole.run.path.parent, tmp_path / "line"))
    run = type(whole.run)(
        folder / "run.yaml", whole.run.config, folder / "runs" / whole.run.config.name
    )
    return FinishedLine(run)


def base_of(line: FinishedLine) -> Path:
    return line.run.path.parent / "base"


def change_without_a_trace(path: Path) -> None:
    """Change a byte, and keep the size and the time that the cache of digests knows."""
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_the_base_is_verified_with_the_adapter(line: FinishedLine) -> None:
    release = line.released()
    document = read_release(release)
    assert document.model.form == "adapter"
    done = verify(release)
    assert done.returncode == 0, done.stderr
    assert "--  base model: not here; give its folder with --base DIR" in done.stdout
    done = verify(release, "--base", base_of(line))
    assert done.returncode == 0, done.stderr
    assert f"ok  base model: {base_of(line)}, {document.base.digest}" in done.stdout
    change_without_a_trace(base_of(line) / "model.safetensors")
    done = verify(release, "--base", base_of(line))
    assert done.returncode == 3
    assert "is not the base model of the release" in done.stderr


def test_a_base_of_a_merged_model_has_no_meaning(tmp_path: Path) -> None:
    release = write_line(tmp_path).released()
    done = verify(release, "--base", embedded_base())
    assert done.returncode == 2
    assert "--base: has no meaning for a merged model" in done.stderr


def test_a_small_base_that_changed_makes_the_line_stale(line: FinishedLine) -> None:
    line.released()
    change_without_a_trace(base_of(line) / "model.safetensors")
    done = line.release()
    assert done.returncode == 3
    assert "stage adapter: its configuration" in done.stderr


def test_a_base_that_changed_since_it_was_measured_is_refused(
    line: FinishedLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A release reads the files, whatever the cache of digests says."""
    monkeypatch.setattr(source, "REMEMBERED_BYTES", 0)
    monkeypatch.setattr(source, "_cache_key", lambda file: f"{file}:0:0")
    line.released()  # the cache of digests knows the base from now on
    change_without_a_trace(base_of(line) / "model.safetensors")
    done = line.release()
    assert done.returncode == 6
    assert "chain: The chain is broken: base model base: its files have digest" in done.stderr


def _on_no_base(report: dict[str, Any]) -> None:
    report["inputs"] = [one for one in report["inputs"] if one["role"] != "base"]


def test_a_load_test_of_the_adapter_on_another_base_is_refused(tmp_path: Path) -> None:
    line = write_line(with_base(tmp_path), Answers(load=_on_no_base), CONFIG)
    done = line.release()
    assert done.returncode == 6
    assert "load: The load test does not hold: it measured" in done.stderr


@pytest.mark.parametrize("stage", ["parity-served", "evaluation-served", "loadtest"])
def test_a_measurement_whose_manifest_lacks_the_base_is_refused(
    line: FinishedLine, stage: str
) -> None:
    manifest = line.artifact(stage) / "manifest.json"
    values = json.loads(manifest.read_text())
    values["inputs"] = [one for one in values["inputs"] if one["role"] != "base"]
    manifest.write_text(json.dumps(values))
    done = line.release()
    assert done.returncode == 6
    assert f"{stage}: its manifest does not name" in done.stderr


def test_a_release_whose_chain_lacks_the_base_is_refused(line: FinishedLine) -> None:
    release = line.released()

    def without_base(text: str) -> str:
        values = json.loads(text)
        chain = (values.get("predicate") or values)["chain"]
        (link,) = (one for one in chain if one["stage"] == "loadtest")
        link["inputs"] = [one for one in link["inputs"] if one["role"] != "base"]
        return json.dumps(values)

    rewrite(release, "release.json", without_base)
    rewrite(release, "statement.json", without_base)
    done = verify(release)
    assert done.returncode == 3
    assert "loadtest was not measured on the released adapter and its base model" in done.stderr


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("pytorch_model.bin", "text", "base model/pytorch_model.bin has the name of a pickle"),
        ("modeling_own.py", "text", "base model/modeling_own.py is code"),
        ("more/notes.txt", "I1\n.", "base model/more/notes.txt is a pickle"),
    ],
)
def test_a_base_that_may_run_code_is_refused(
    line: FinishedLine, name: str, content: str, words: str
) -> None:
    path = base_of(line) / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    gate = line.judged().gate("safe-files")
    assert gate is not None and gate.outcome is Outcome.FAILED
    assert words in gate.words
    assert gate.hint.startswith("Name a copy of the base model without these files")
