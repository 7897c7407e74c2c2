from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.integration.training.conftest import SETTINGS, Line
from tests.template import start_python
from training.adapters.trainable import load_trainable
from training.config import TrainingConfig
from training.loop.checkpoints import (
    CheckpointMarks,
    checkpoint_bytes,
    newest_checkpoint,
    open_work_dir,
    require_room,
)
from training.loop.signals import StopOnSignal
from training.train import train_adapter
from tuneline.core.artifact import Artifact
from tuneline.core.environment import library_versions
from tuneline.core.errors import DiskFullError

FORKING = """
import gc, json, os, signal, sys, torch, traceback
from pathlib import Path
from transformers.models.llama import modeling_llama
from training.config import TrainingConfig
from training.methods import sft
from training.train import train_adapter
from tuneline.core.artifact import open_artifact
from tuneline.core.environment import environment_facts
from tuneline.models.source import resolve_model
torch.set_num_threads(1)
environment_facts()
gc.freeze()

def train(line, out, settings):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        train_adapter(TrainingConfig(**settings), open_artifact(line / "dataset"),
              resolve_model("base", relative_to=line), out)
    except KeyboardInterrupt:
        # Python does so too, unless a library imports a module while the interpreter ends.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.raise_signal(signal.SIGINT)

for order in sys.stdin:
    line, out, log, settings = json.loads(order)
    child = os.fork()
    if child == 0:
        file = os.open(log, os.O_WRONLY | os.O_CREAT)
        os.dup2(file, 1)
        os.dup2(file, 2)
        try:
            train(Path(line), Path(out), settings)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def forking() -> Iterator[subprocess.Popen[str]]:
    """A process that has imported the libraries, and trains in a forked process for each order."""
    with start_python(FORKING, stdout=subprocess.PIPE) as process:
        yield process
        process.kill()


def _interrupt(
    forking: subprocess.Popen[str], line: Line, out: Path, number: signal.Signals
) -> int:
    """Train in a process of its own, send it a signal after its first whole checkpoint, and give
    its exit status."""
    log = out.parent / "log"
    assert forking.stdin is not None and forking.stdout is not None
    print(
        json.dumps([str(line.folder), str(out), str(log), SETTINGS]), file=forking.stdin, flush=True
    )
    child = int(forking.stdout.readline())
    try:
        deadline_s = time.monotonic() + 900
        while not any(out.parent.glob(f".{out.name}.work/checkpoint-*/complete.json")):
            assert Path(f"/proc/{child}").exists(), log.read_text()
            assert time.monotonic() < deadline_s, "no checkpoint within the deadline"
            time.sleep(0.02)  # polls for the file; nothing is timed by it
        os.kill(child, number)
        return int(forking.stdout.readline())
    except AssertionError:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        forking.stdout.readline()  # the next order's answers follow
        raise


def _losses(adapter: Artifact) -> list[float]:
    lines = (adapter.path / "loss.jsonl").read_text().splitlines()
    points = [json.loads(line) for line in lines]
    return [point["loss"] for point in points if "loss" in point]


@pytest.mark.timeout(1200)  # minutes on a machine that has other work, seconds on a free one
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_run_continues_and_ends_as_a_straight_one(
    forking: subprocess.Popen[str], line: Line, tmp_path: Path, number: signal.Signals
) -> None:
    from safetensors.torch import load_file

    out = tmp_path / "adapter"
    status = _interrupt(forking, line, out, number)
    # SIGINT reaches the caller as KeyboardInterrupt.
    assert status == -number, (tmp_path / "log").read_text()
    assert not out.exists()
    log = (tmp_path / "log").read_text()
    if number != signal.SIGKILL:
        assert f"{number.name}: stopping after this step" in log
        newest = max(int(path.name[11:]) for path in tmp_path.glob(".adapter.work/checkpoint-*"))
        assert f"the checkpoint of step {newest} is " in log
        assert "the same command continues from there" in log

    adapter = train_adapter(line.config, line.dataset, line.base, out)
    metrics = adapter.manifest.metrics
    resumed = metrics["num_steps_resumed"]
    assert metrics["setup_changes"] == []
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


def test_a_measurement_that_takes_too_long_is_left_after_a_signal() -> None:
    handled: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: handled.append(number))
    try:
        stop = StopOnSignal(measurement_s=0)
        stop.on_prediction_step()
        reached: list[str] = []
        with pytest.raises(KeyboardInterrupt), stop.listening():
            signal.raise_signal(signal.SIGTERM)
            stop.on_prediction_step()
            reached.append("the next batch")
        assert handled == [signal.SIGTERM] and reached == []
        stop = StopOnSignal(measurement_s=60)
        with pytest.raises(KeyboardInterrupt), stop.listening():
            signal.raise_signal(signal.SIGTERM)
            stop.on_prediction_step()
            reached.append("the next batch")
        assert reached == ["the next batch"]
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGHUP])
def test_a_run_that_was_stopped_ends_even_where_the_handler_returns(sent: signal.Signals) -> None:
    handled: list[int] = []
    before = signal.signal(sent, lambda number, _: handled.append(number))
    try:
        stop = StopOnSignal()
        with pytest.raises(KeyboardInterrupt), stop.listening():
            signal.raise_signal(sent)
            assert stop.received == sent and handled == []
        assert handled == [sent]

        signal.signal(sent, signal.SIG_IGN)
        stop = StopOnSignal()
        with stop.listening():
            signal.raise_signal(sent)
        assert stop.received is None
    finally:
        signal.signal(sent, before)


def test_a_run_that_continues_under_another_setup_says_so_and_records_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("tuneline"), "propagate", True)
    config = TrainingConfig()

    def saved(step: int, marks: CheckpointMarks) -> Path:
        checkpoint = _checkpoint(tmp_path, step, complete=False)
        marks.on_save(
            SimpleNamespace(output_dir=str(tmp_path)),
            SimpleNamespace(global_step=step, best_global_step=0),
            None,
        )
        return checkpoint

    first = saved(4, CheckpointMarks(config, None))
    same = CheckpointMarks(config, first)
    assert same.setup_changes == [] and caplog.records == []

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        other = CheckpointMarks(config, first)
        change = f"threads was {threads}, now {threads + 1}"
        assert other.setup_changes == [f"step 4: {change}"]
        (said,) = [record.message for record in caplog.records]
        assert said.endswith(f"from an uninterrupted run: {change}")
        # The record stays when the run continues once more under the same setup.
        again = CheckpointMarks(config, saved(8, other))
        assert again.setup_changes == [f"step 4: {change}"] and len(caplog.records) == 1
    finally:
        torch.set_num_threads(threads)


def test_a_checkpoint_without_a_recorded_setup_counts_as_another_setup(tmp_path: Path) -> None:
    marks = CheckpointMarks(TrainingConfig(), _checkpoint(tmp_path, 6))
    assert f"step 6: torch was unknown, now {library_versions()['torch']}" in marks.setup_changes


FACTS = {"training.r": 8, "dataset 0": "sha256:1"}


def _checkpoint(work: Path, step: int, *, complete: bool = True) -> Path:
    checkpoint = work / f"checkpoint-{step}"
    checkpoint.mkdir()
    (checkpoint / "model").write_bytes(b"weights")
    if complete:
        mark = {"wall_s": 1.5, "files": {"model": 7}}
        (checkpoint / "complete.json").write_text(json.dumps(mark))
    return checkpoint


def test_the_furthest_complete_checkpoint_is_continued(tmp_path: Path) -> None:
    work = open_work_dir(tmp_path / "adapter", FACTS)
    for step in (5, 10, 9):
        _checkpoint(work, step)
    _checkpoint(work, 15, complete=False)
    shorter = _checkpoint(work, 20)
    (shorter / "model").write_bytes(b"weigh")
    gone = _checkpoint(work, 25)
    (gone / "model").unlink()
    damaged = _checkpoint(work, 30)
    (damaged / "complete.json").write_text('{"wall_s": 1.5, "fi')
    assert newest_checkpoint(open_work_dir(tmp_path / "adapter", FACTS)) == work / "checkpoint-10"
    assert sorted(path.name for path in work.glob("checkpoint-*")) == [
        "checkpoint-10", "checkpoint-5", "checkpoint-9",
    ]  # fmt: skip


def test_checkpoints_of_other_settings_are_named_and_removed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("tuneline"), "propagate", True)
    work = open_work_dir(tmp_path / "adapter", FACTS)
    _checkpoint(work, 5)
    assert newest_checkpoint(open_work_dir(tmp_path / "adapter", dict(FACTS))) is not None
    assert caplog.records == []
    other = open_work_dir(tmp_path / "adapter", {**FACTS, "training.r": 16})
    assert newest_checkpoint(other) is None
    (said,) = [record.message for record in caplog.records]
    assert str(work) in said and said.endswith("removed: training.r was 8, now 16")


@pytest.mark.parametrize(
    ("limit", "best", "kept"), [(2, 0, [6, 8]), (1, 2, [2, 8]), (3, 8, [2, 4, 6, 8]), (1, 0, [8])]
)
def test_the_newest_checkpoints_and_the_best_one_are_kept(
    tmp_path: Path, limit: int, best: int, kept: list[int]
) -> None:
    config = TrainingConfig.model_validate({"save_total_limit": limit})
    marks = CheckpointMarks(config, None)
    for step in (2, 4, 6, 8):
        _checkpoint(tmp_path, step, complete=False)
        marks.on_save(
            SimpleNamespace(output_dir=str(tmp_path)),
            SimpleNamespace(global_step=step, best_global_step=best),
            None,
        )
        assert newest_checkpoint(tmp_path) == tmp_path / f"checkpoint-{step}"
    found = sorted(int(path.name.partition("-")[2]) for path in tmp_path.iterdir())
    assert found == kept


def test_a_disk_without_room_for_the_checkpoints_is_refused_before_the_first_step(
    line: Line, small_disk: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk_usage = shutil.disk_usage
    disk = small_disk("1m")
    monkeypatch.setattr(shutil, "disk_usage", disk_usage)  # the fixture claims to have room
    with pytest.raises(DiskFullError, match=r"3 checkpoints of [\d,]+ bytes") as caught:
        train_adapter(line.config, line.dataset, line.base, disk / "adapter")
    assert str(disk) in str(caught.value) and caught.value.exit_code == 4
    assert list(disk.iterdir()) == []


def test_checkpoints_on_the_disk_count_as_room_when_a_run_continues(
    line: Line, small_disk: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk_usage = shutil.disk_usage
    model = load_trainable(line.config, line.base)[0]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    size = checkpoint_bytes(line.config, model, line.base.path)
    needed = 3 * size + 4 * sum(parameter.numel() for parameter in trained)
    disk = small_disk(f"{int(1.3 * needed) // 1024}k")
    monkeypatch.setattr(shutil, "disk_usage", disk_usage)  # the fixture claims to have room
    checkpoint = disk / ".adapter.work" / "checkpoint-5"
    checkpoint.mkdir(parents=True)
    (checkpoint / "model").write_bytes(bytes(int(0.8 * needed)))
    assert disk_usage(disk).free < needed
    require_room(line.config, model, line.base.path, disk / "adapter")
    checkpoint.parent.rename(disk / "another folder")
    with pytest.raises(DiskFullError, match="3 checkpoints"):
        require_room(line.config, model, line.base.path, disk / "adapter")


def test_the_estimate_of_a_checkpoint_is_its_size(line: Line, tmp_path: Path) -> None:
    sizes = []

    def measure(_step: int, _figures: Mapping[str, float]) -> None:
        for checkpoint in tmp_path.glob(".adapter.work/checkpoint-*"):
            sizes.append(sum(path.stat().st_size for path in checkpoint.iterdir()))

    settings = TrainingConfig.model_validate({**SETTINGS, "num_train_epochs": 2})
    train_adapter(settings, line.dataset, line.base, tmp_path / "adapter", on_heldout=measure)
    model = load_trainable(settings, line.base)[0]
    estimate = checkpoint_bytes(settings, model, line.base.path)
    assert sizes and all(0.75 * estimate <= size <= estimate for size in sizes), (sizes, estimate)


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
