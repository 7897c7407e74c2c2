"""A process that helps rank 0 waits for the data, and does not touch the line of rank 0."""

from __future__ import annotations

import json
import socket
import threading
import time
from pathlib import Path

import pytest

from tests.integration.training.tiny import color_rows
from tuneline.core.errors import ConfigError, MissingError
from tuneline.pipeline.run_config import Run, load_run
from tuneline.pipeline.stage import ADAPTER, DATASET
from tuneline.pipeline.up import lock_run, up


def _run(folder: Path, processes: int) -> Run:
    rows = "".join(json.dumps(row) + "\n" for row in color_rows(20))
    (folder / "rows.jsonl").write_text(rows)
    (folder / "run.yaml").write_text(
        "name: followed\nbase_model: tiny-base\ndata: {path: rows.jsonl}\n"
        f"training: {{launch: {{processes: {processes}, timeout_s: 1}}}}\n"
    )
    return load_run(folder / "run.yaml", runs_dir=folder / "runs")


def _placed(monkeypatch: pytest.MonkeyPatch, rank: int, size: int) -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = int(server.getsockname()[1])
    for name, value in {
        "RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
    }.items():  # fmt: skip
        monkeypatch.setenv(name, str(value))
    return port


def test_a_follower_waits_for_the_data_and_names_a_rank_0_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _run(tmp_path, 2)
    with lock_run(run):  # rank 0 has the lock of the line
        made_s: list[float] = []

        def make_later() -> None:
            time.sleep(1.5)
            from tuneline.pipeline.plan import plan_stage, select_stages
            from tuneline.pipeline.run_config import resolve_base
            from tuneline.pipeline.stage import Line

            base = resolve_base(run, download=False)
            (stage,) = select_stages(run, (DATASET,))
            entry = plan_stage(run, stage, base, {})
            assert entry.path is not None
            made_s.append(time.monotonic())
            stage.step(Line(run, base, lambda _made: pytest.fail("no server")), {}, entry.path)

        port = _placed(monkeypatch, 1, 2)
        rank_0 = threading.Thread(target=make_later)
        rank_0.start()
        with pytest.raises(MissingError, match=rf"rank 0 at 127\.0\.0\.1:{port} in 1 s"):
            up(run, (ADAPTER,))
        rank_0.join()
    assert made_s
    assert not list(run.dir.glob("adapter-*"))


def test_an_environment_for_another_number_of_processes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _run(tmp_path, 2)
    _placed(monkeypatch, 0, 3)
    with pytest.raises(ConfigError, match=r"WORLD_SIZE is 3 .* training.launch has 2 processes"):
        up(run, (ADAPTER,))
