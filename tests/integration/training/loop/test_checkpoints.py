from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.training.conftest import SETTINGS, Line
from training.config import TrainingConfig
from training.train import train_adapter
from tuneline.core.artifact import Artifact
from tuneline.core.errors import DiskFullError

SCRIPT = """
import json, signal, sys, torch
from pathlib import Path
from training.config import TrainingConfig
from training.train import train_adapter
from tuneline.core.artifact import open_artifact
from tuneline.models.source import resolve_model
torch.set_num_threads(1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
line, out = Path(sys.argv[1]), Path(sys.argv[2])
try:
    train_adapter(TrainingConfig(**json.loads(sys.argv[3])), open_artifact(line / "dataset"),
          resolve_model("base", relative_to=line), out)
except KeyboardInterrupt:
    # Python does so too, unless a library imports a module while the interpreter ends.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.raise_signal(signal.SIGINT)
"""


def _interrupt(line: Line, out: Path, number: signal.Signals) -> int:
    """Train in a child process, send it a signal after its first whole checkpoint, and give its
    exit status."""
    root = Path(__file__).parents[4]
    with (out.parent / "log").open("w") as log:
        child = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(line.folder), str(out), json.dumps(SETTINGS)],
            cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, stdout=log, stderr=log,
        )  # fmt: skip
        try:
            deadline_s = time.monotonic() + 900
            while not any(out.parent.glob(f".{out.name}.work/checkpoint-*/complete.json")):
                assert child.poll() is None, (out.parent / "log").read_text()
                assert time.monotonic() < deadline_s, "no checkpoint within the deadline"
                time.sleep(0.02)  # polls for the file; nothing is timed by it
            child.send_signal(number)
            return child.wait(120)
        finally:
            child.kill()
            child.wait()


def _losses(adapter: Artifact) -> list[float]:
    lines = (adapter.path / "loss.jsonl").read_text().splitlines()
    points = [json.loads(line) for line in lines]
    return [point["loss"] for point in points if "loss" in point]


@pytest.mark.timeout(1200)  # minutes on a machine that has other work, seconds on a free one
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_run_continues_and_ends_as_a_straight_one(
    line: Line, tmp_path: Path, number: signal.Signals
) -> None:
    from safetensors.torch import load_file

    out = tmp_path / "adapter"
    status = _interrupt(line, out, number)
    # SIGINT reaches the caller as KeyboardInterrupt.
    assert status == -number, (tmp_path / "log").read_text()
    assert not out.exists()

    adapter = train_adapter(line.config, line.dataset, line.base, out)
    metrics = adapter.manifest.metrics
    resumed = metrics["num_steps_resumed"]
    assert 6 <= resumed < metrics["num_steps"] == line.adapter.manifest.metrics["num_steps"]
    if number == signal.SIGKILL:
        assert resumed % SETTINGS["save_steps"] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "log"]

    # Equal bits: the order of rows, dropout, the optimizer and the schedule all continue.
    straight = load_file(line.adapter.path / "adapter_model.safetensors")
    found = load_file(out / "adapter_model.safetensors")
    assert len(straight) > 0 and straight.keys() == found.keys()
    assert all(straight[name].equal(found[name]) for name in straight)
    losses = _losses(line.adapter)
    assert len(losses) == metrics["num_steps"]
    assert _losses(adapter) == pytest.approx(losses, abs=1e-6)
    names = [entry.path for entry in adapter.manifest.files]
    assert names == [entry.path for entry in line.adapter.manifest.files]


def test_a_run_that_was_stopped_ends_even_where_the_handler_returns() -> None:
    from training.loop.signals import StopOnSignal

    handled: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: handled.append(number))
    try:
        stop = StopOnSignal()
        with pytest.raises(KeyboardInterrupt), stop.listening():
            signal.raise_signal(signal.SIGTERM)
            assert stop.received == signal.SIGTERM and handled == []
        assert handled == [signal.SIGTERM]

        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        stop = StopOnSignal()
        with stop.listening():
            signal.raise_signal(signal.SIGTERM)
        assert stop.received is None
    finally:
        signal.signal(signal.SIGTERM, before)


def test_checkpoints_of_another_configuration_or_half_written_are_not_used(
    line: Line, tmp_path: Path
) -> None:
    from training.loop.checkpoints import newest_checkpoint, open_work_dir

    out = tmp_path / "adapter"
    work = open_work_dir(out, "one")
    for step, complete in ((5, True), (10, True), (9, True), (15, False)):
        checkpoint = work / f"checkpoint-{step}"
        checkpoint.mkdir()
        if complete:
            (checkpoint / "complete.json").write_text('{"wall_s": 1.5}')
    assert newest_checkpoint(open_work_dir(out, "one")) == work / "checkpoint-10"
    assert not (work / "checkpoint-15").exists()
    assert newest_checkpoint(open_work_dir(out, "two")) is None
    assert not (work / "checkpoint-5").exists()


def test_the_same_run_twice_gives_the_same_artifact(line: Line, tmp_path: Path) -> None:
    settings = TrainingConfig.model_validate({**SETTINGS, "num_train_epochs": 1})
    first = train_adapter(settings, line.dataset, line.base, tmp_path / "a")
    again = train_adapter(settings, line.dataset, line.base, tmp_path / "b")
    assert first.digest == again.digest


def test_a_disk_that_fills_up_is_said_and_room_makes_it_go_on(
    line: Line, small_disk: Callable[[str], Path]
) -> None:
    disk = small_disk("256k")
    out = disk / "adapter"
    with pytest.raises(DiskFullError, match="the disk is full"):
        train_adapter(line.config, line.dataset, line.base, out)
    assert not out.exists()
    subprocess.run(["mount", "-o", "remount,size=256m", str(disk)], check=True)
    resumed = train_adapter(line.config, line.dataset, line.base, out)
    assert resumed.digest == line.adapter.digest
    assert [path.name for path in disk.iterdir()] == ["adapter"]
