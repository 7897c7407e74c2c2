"""A run that SIGKILL and SIGTERM end ends, continued, with the bits of a run that was not."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.integration.training.loop.killed_runs import CASES, COMMON, ENDS
from tests.template import start_python

TIMINGS = (
    "wall_s", "trained_tokens_per_s", "peak_memory_bytes", "training_memory_bytes",
    "num_steps_resumed",
)  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("killed")
    module = "tests.integration.training.loop.killed_runs"
    program = f"from pathlib import Path; from {module} import main; main(Path({str(folder)!r}))"
    process = start_python(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    stdout, stderr = process.communicate()
    assert process.returncode == 0, stdout[-2000:] + stderr[-6000:]
    return folder


def _manifest(artifact: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((artifact / "manifest.json").read_text())
    return found


def _newest(kill: dict[str, Any]) -> int:
    """Return the step of the newest whole checkpoint that a process left."""
    marked = [file.partition("/")[0] for file in kill["files"] if file.endswith("complete.json")]
    return max(int(folder.removeprefix("checkpoint-")) for folder in marked)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", CASES)
def test_a_killed_run_ends_with_the_bits_of_a_straight_one(runs: Path, name: str) -> None:
    kills = json.loads((runs / name / "kills.json").read_text())
    assert [kill["status"] for kill in kills] == [-number for number in ENDS]
    straight, killed = _manifest(runs / name / "straight"), _manifest(runs / name / "killed")
    # Equal digests are equal bytes of weights, losses and proof.
    assert killed["digest"] == straight["digest"]
    assert killed["metrics"]["num_steps_resumed"] == _newest(kills[-1]) >= kills[-1]["step"]
    for figure in straight["metrics"]:
        if figure not in TIMINGS:
            assert killed["metrics"][figure] == straight["metrics"][figure], figure
    weights = [
        load_file(path)
        for path in (runs / name / "killed").glob("*.safetensors")
        if path.name != "proof.safetensors"
    ]
    assert weights
    assert any(bool(tensor.any()) for tensors in weights for tensor in tensors.values())
    assert not (runs / name / ".killed.work").exists()


@pytest.mark.parametrize("name", ["dpo", "orpo", "grpo"])
def test_a_killed_run_computed_shared_prompts_once(runs: Path, name: str) -> None:
    found = _manifest(runs / name / "killed")["metrics"]["saved_token_share"]
    assert found > 0.2


def test_kills_hit_steps_saves_and_half_written_files(runs: Path) -> None:
    kills = [
        kill for name in CASES for kill in json.loads((runs / name / "kills.json").read_text())
    ]
    assert len({kill["moment"] for kill in kills}) >= 3
    kills = [kill for kill in kills if kill["status"] == -signal.SIGKILL]
    torn = [kill for kill in kills if kill["moment"] in ("save", "write")]
    assert torn
    for kill in torn:  # the directory was there, without the mark of a whole checkpoint
        folders = {file.partition("/")[0] for file in kill["files"]}
        marked = {file.partition("/")[0] for file in kill["files"] if "complete.json" in file}
        assert folders - marked


def test_sigterm_writes_a_checkpoint_of_its_own_step(runs: Path) -> None:
    steps = [
        _newest(json.loads((runs / name / "kills.json").read_text())[-1])
        for name in CASES
        if CASES[name][1].get("save_minutes") is None
    ]
    # Of a run that writes one at each second step only.
    assert any(step % COMMON["save_steps"] for step in steps)


def test_max_steps_ends_a_training_before_its_epochs(runs: Path) -> None:
    metrics = _manifest(runs / "full" / "straight")["metrics"]
    whole = _manifest(runs / "dora" / "straight")["metrics"]  # the same rows, two epochs of 4 steps
    assert metrics["num_steps"] == CASES["full"][1]["max_steps"] < whole["num_steps"] == 8
    assert metrics["num_trained_tokens"] < whole["num_trained_tokens"]
