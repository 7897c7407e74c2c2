"""Two processes train as one does: by DDP and FSDP2, an adapter and a whole model."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.integration.training.launch.ranked_runs import INTERRUPTED_AT, STRATEGIES
from tests.template import start_python

TOLERANCE = 1e-5
ONE = [(case, strategy) for case, names in STRATEGIES.items() for strategy in names]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranked")
    module = "tests.integration.training.launch.ranked_runs"
    program = f"from pathlib import Path; from {module} import main; main(Path({str(folder)!r}))"
    process = start_python(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    stdout, stderr = process.communicate()
    assert process.returncode == 0, stdout[-2000:] + stderr[-6000:]
    statuses = json.loads((folder / "status.json").read_text())
    failed = {name: codes for name, codes in statuses.items() if any(code > 0 for code in codes)}
    assert not failed, f"{failed}\n{stderr[-6000:]}"
    return folder


def _points(artifact: Path) -> list[dict[str, Any]]:
    lines = (artifact / "loss.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def _metrics(artifact: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((artifact / "manifest.json").read_text())["metrics"]
    return found


def _same_curve(artifact: Path, one: Path) -> None:
    """Check losses and gradient norms of each step, and the held-out losses."""
    points, expected = _points(artifact), _points(one)
    assert [point["step"] for point in points] == [point["step"] for point in expected]
    names = {"loss", "grad_norm", "learning_rate"}
    names |= {name for point in expected for name in point if name.startswith("eval_")}
    compared = 0
    for point, other in zip(points, expected, strict=True):
        for name in names:
            assert (name in point) == (name in other)
            if name in point:
                assert point[name] == pytest.approx(other[name], abs=TOLERANCE, rel=TOLERANCE), (
                    name, point["step"],
                )  # fmt: skip
                compared += 1
    num_steps = expected[-1]["step"]
    assert num_steps >= 6
    # Three figures of each step, and a held-out loss before training and after both epochs.
    assert compared >= 3 * num_steps + 3


@pytest.mark.parametrize(("case", "strategy"), ONE)
def test_two_processes_have_the_loss_curve_of_one(runs: Path, case: str, strategy: str) -> None:
    one, two = runs / case / "one", runs / case / strategy
    _same_curve(two, one)
    assert {path.name for path in two.iterdir()} == {path.name for path in one.iterdir()}
    assert not (runs / case / f".{strategy}.work").exists()


@pytest.mark.parametrize(("case", "strategy"), ONE)
def test_two_processes_write_the_weights_of_one(runs: Path, case: str, strategy: str) -> None:
    (name,) = [path.name for path in (runs / case / "one").glob("*model.safetensors")]
    ours, theirs = (load_file(runs / case / which / name) for which in (strategy, "one"))
    assert ours.keys() == theirs.keys()
    assert any(bool(tensor.any()) for tensor in ours.values())
    for key, tensor in ours.items():
        assert (tensor - theirs[key]).abs().max() < 1e-4, key


def test_processes_end_early_together_with_the_best_checkpoint(runs: Path) -> None:
    for name in ("one", *STRATEGIES["best"]):
        metrics = _metrics(runs / "best" / name)
        assert (metrics["best_step"], metrics["num_steps"]) == (2, 6)


@pytest.mark.parametrize("name", ["one", "ddp"])
def test_processes_compute_the_prompt_of_a_pair_once_as_one_process_does(
    runs: Path, name: str
) -> None:
    assert _metrics(runs / "dpo" / name)["saved_token_share"] > 0.2


@pytest.mark.parametrize("case", ["lora", "full"])
def test_fsdp2_spreads_every_tensor(runs: Path, case: str) -> None:
    launch = _metrics(runs / case / "fsdp2")["launch"]
    assert launch["num_processes"] == 2
    assert launch["num_tensors_spread"] == launch["num_tensors"] >= 20


@pytest.mark.parametrize(("case", "strategy"), ONE)
def test_the_proof_of_two_processes_is_that_of_one(runs: Path, case: str, strategy: str) -> None:
    proofs = [
        json.loads((runs / case / name / "proof.json").read_text()) for name in (strategy, "one")
    ]
    assert len(proofs[0]) == len(proofs[1]) > 0
    for ours, theirs in zip(*proofs, strict=True):
        assert ours["name"] == theirs["name"]
        assert ours["num_steps_with_gradient"] == theirs["num_steps_with_gradient"]
        assert ours["max_gradient_norm"] == pytest.approx(theirs["max_gradient_norm"], rel=1e-3)
        assert ours["change"] == pytest.approx(theirs["change"], rel=1e-3, abs=1e-7)


def test_a_signal_to_one_rank_stops_all_with_a_checkpoint(runs: Path) -> None:
    statuses = json.loads((runs / "status.json").read_text())
    assert statuses["lora/stopped"] == [-signal.SIGTERM, -signal.SIGTERM]
    # One process continues what two began.
    assert statuses["lora/stopped again"] == [0]
    assert _metrics(runs / "lora" / "stopped")["num_steps_resumed"] == INTERRUPTED_AT
    _same_curve(runs / "lora" / "stopped", runs / "lora" / "one")


def test_killed_processes_continue_with_the_same_bits(runs: Path) -> None:
    statuses = json.loads((runs / "status.json").read_text())
    assert statuses["full/killed"] == [-signal.SIGKILL, -signal.SIGKILL]
    assert _metrics(runs / "full" / "killed")["num_steps_resumed"] == 2
    digests = [
        json.loads((runs / "full" / name / "manifest.json").read_text())["digest"]
        for name in ("killed", "fsdp2")
    ]
    assert digests[0] == digests[1]


def test_two_processes_continue_the_run_of_one(runs: Path) -> None:
    statuses = json.loads((runs / "status.json").read_text())
    assert statuses["lora/moved"] == [-signal.SIGKILL]
    assert _metrics(runs / "lora" / "moved")["num_steps_resumed"] == 2
    _same_curve(runs / "lora" / "moved", runs / "lora" / "one")


def test_ddp_spreads_no_tensor(runs: Path) -> None:
    assert _metrics(runs / "lora" / "ddp")["launch"]["num_tensors_spread"] == 0
