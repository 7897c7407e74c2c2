"""A line that is killed goes on where it stopped."""

import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.integration.pipeline.small_line import NUM_ROWS, command, stages, tuneline, write_run


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_killed_while_training_it_continues(tmp_path: Path, number: signal.Signals) -> None:
    run = write_run(tmp_path)
    process = subprocess.Popen(
        command(run, "train"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    work = tmp_path / "runs" / "small"
    try:
        deadline_s = time.monotonic() + 200
        while not list(work.glob(".adapter-*.work/checkpoint-4")):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline_s
            time.sleep(0.02)
    finally:
        process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number)
    assert [p.name for p in work.glob("adapter-*")] == []
    done = stages(tuneline(run, "train"))
    assert not done["dataset"]["ran"]
    assert done["adapter"]["metrics"]["num_steps_resumed"] >= 2
    assert done["adapter"]["metrics"]["num_steps"] == NUM_ROWS // 16
    assert list(work.glob(".*.work")) == []
