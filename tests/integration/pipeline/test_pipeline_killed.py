"""A line that is killed goes on where it stopped."""

import os
import signal
import time
from pathlib import Path

import pytest

from tests.commands import tuneline_forked
from tests.integration.pipeline.small_line import NUM_ROWS, stages, tuneline, words, write_run


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_killed_while_training_it_continues(tmp_path: Path, number: signal.Signals) -> None:
    run = write_run(tmp_path)
    log = tmp_path / "log"
    process = tuneline_forked(log, *words(run, "train"))
    work = tmp_path / "runs" / "small"
    try:
        deadline_s = time.monotonic() + 200
        while not list(work.glob(".adapter-*.work/checkpoint-4")):
            assert process.is_alive(), log.read_text()
            assert time.monotonic() < deadline_s
            time.sleep(0.02)
    finally:
        if process.is_alive():
            os.kill(process.pid or 0, number)
    process.join(60)
    assert process.exitcode == (-number if number == signal.SIGKILL else 128 + number)
    # The document of an unfinished line does not look like that of a finished one.
    said = '"message": "SIGINT ended the command"'
    assert (said in log.read_text()) == (number == signal.SIGINT)
    assert [p.name for p in work.glob("adapter-*")] == []
    done = stages(tuneline(run, "train"))
    assert not done["dataset"]["ran"]
    assert done["adapter"]["metrics"]["num_steps_resumed"] >= 2
    assert done["adapter"]["metrics"]["num_steps"] == NUM_ROWS // 16
    assert list(work.glob(".*.work")) == []
