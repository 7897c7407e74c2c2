"""Processes that Tuneline starts: a killed rank ends the run by name; the next run continues."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.integration.training.methods.datasets import write_dataset
from tests.integration.training.tiny import make_base
from training.config import TrainingConfig
from training.train import train_adapter
from tuneline.core.artifact import Artifact
from tuneline.core.errors import MissingError
from tuneline.models.source import resolve_model

SETTINGS = {
    "num_train_epochs": 4, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2,
    "learning_rate": 3e-3, "logging_steps": 1, "save_steps": 4, "max_length": 128, "report_to": [],
    "launch": {"processes": 2},
}  # fmt: skip
BOUND_S = 15.0


def _children() -> dict[int, int]:
    """Return the process id of each rank that this process has started."""
    found: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        try:
            parent = int((folder / "stat").read_text().rpartition(") ")[2].split()[1])
            if parent == os.getpid():
                variables = (folder / "environ").read_bytes().split(b"\0")
                ranks = [int(v.removeprefix(b"RANK=")) for v in variables if v[:5] == b"RANK="]
                found |= {rank: int(folder.name) for rank in ranks}
        except (OSError, ValueError):
            continue
    return found


def test_a_killed_rank_ends_the_run_and_the_next_run_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The user's folder has the name of a package here, and bitsandbytes would ask for code.
    asked = tmp_path / "asked"
    for name, code in (("training", "raise OSError"), ("kernels", f"open({str(asked)!r}, 'w')")):
        (tmp_path / name / name).mkdir(parents=True)
        (tmp_path / name / name / "__init__.py").write_text(code + "\n")
    monkeypatch.chdir(tmp_path / "training")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "kernels"))
    make_base(tmp_path / "base")
    dataset = write_dataset(tmp_path / "data", "uneven", 13, 5)
    config = TrainingConfig.model_validate(SETTINGS)
    base, out = resolve_model("base", relative_to=tmp_path), tmp_path / "adapter"
    killed_s: list[float] = []
    started: dict[int, int] = {}

    def kill_rank_1(step: int, figures: Mapping[str, float]) -> None:
        assert figures["eval_loss"] > 0
        if step < 8 or killed_s:  # a checkpoint is there from step 4 on
            return
        started.update(_children())
        os.kill(started[1], signal.SIGKILL)
        killed_s.append(time.monotonic())

    with pytest.raises(MissingError, match="rank 1 of the training was ended by SIGKILL"):
        train_adapter(config, dataset, base, out, on_heldout=kill_rank_1)
    assert time.monotonic() - killed_s[0] < BOUND_S
    assert sorted(started) == [0, 1]
    assert not _children()
    assert not out.exists()

    measured: list[int] = []
    found: Artifact = train_adapter(
        config, dataset, base, out, on_heldout=lambda step, _figures: measured.append(step)
    )
    assert found.manifest.metrics["num_steps_resumed"] >= 4
    assert found.manifest.metrics["launch"]["num_processes"] == 2
    assert measured[-1] == 16
    assert not _children() and not asked.exists()
