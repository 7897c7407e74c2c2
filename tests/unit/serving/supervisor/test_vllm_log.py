"""Which line says why; the lines are as vLLM 0.32 writes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving.middleware.first_answer import FAILS
from serving.supervisor import vllm_log
from serving.supervisor.vllm_log import (
    cause,
    engine_parts_s,
    is_disk_full,
    keep_log_small,
    last_lines,
    with_engine_parts,
)

ENGINE = "(EngineCore pid=77) ERROR 11-21 09:36:17 [core.py:1234] "
FRONT_END = (
    "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}"
)


@pytest.mark.parametrize(
    ("lines", "expected", "last"),
    [
        (
            [f"{ENGINE}Traceback (most recent call last):",
             f"{ENGINE}safetensors._safetensors_rust.SafetensorError: incomplete metadata",
             "(APIServer pid=7) Traceback (most recent call last):", FRONT_END],
            "SafetensorError: incomplete metadata", 1,
        ),
        (
            ["                  [model_tag]",
             "vllm serve: error: unrecognized arguments: --swap-space=4"],
            "unrecognized arguments: --swap-space=4", 1,
        ),
        (
            ["(APIServer pid=7) pydantic_core._pydantic_core.ValidationError: 1 validation error "
             "for ModelConfig",
             "(APIServer pid=7)   Value error, unknown type `nope` [type=value_error]",
             "(APIServer pid=7)     For further information visit https://errors.pydantic.dev",
             "nanobind: leaked 514 functions!"],
            "ValidationError: 1 validation error for ModelConfig Value error, unknown type `nope` "
            "[type=value_error] For further information visit https://errors.pydantic.dev", 2,
        ),
        (
            ["(Worker pid=8) ERROR 11-30 04:44:27 [multiproc_executor.py:1063] AttributeError: "
             "'_OpNamespace' '_C' object has no attribute 'selective_scan_fwd'",
             f"{ENGINE}RuntimeError: Worker failed with error ''_OpNamespace' ...', please check",
             "(APIServer pid=7) ERROR 11-30 04:44:27 [async_llm.py:906] vllm.v1.engine.exceptions."
             "EngineDeadError: EngineCore encountered an issue. See stack trace (above)",
             f"ERROR:    {FAILS}: status 500: EngineCore encountered an issue.",
             "SystemExit: 3", "asyncio.exceptions.CancelledError"],
            "AttributeError: '_OpNamespace' '_C' object has no attribute 'selective_scan_fwd'", 0,
        ),
        (["INFO 11-21 09:36:17 [api.py:1] loading", "Killed"], None, 1),
        (["ZMQError"], "ZMQError", 0),
    ],
)  # fmt: skip
def test_the_line_that_says_why(lines: list[str], expected: str | None, last: int) -> None:
    found, shown = cause(lines)
    assert found == expected
    assert shown == lines[: last + 1]


def test_fifteen_lines_are_shown_and_they_end_with_the_cause() -> None:
    lines = [f"line {number}" for number in range(30)]
    assert cause([*lines, "ValueError: no", *lines])[1] == [*lines[-14:], "ValueError: no"]
    assert cause(lines) == (None, lines[-15:])
    assert cause([]) == (None, [])


def test_only_the_end_of_the_log_is_read(tmp_path: Path) -> None:
    log = tmp_path / "vllm.log"
    log.write_bytes(b"old\n" + b"x" * 70_000 + b"\n\nnew \xff\n")
    assert last_lines(log)[1:] == ["new \N{REPLACEMENT CHARACTER}"]
    assert last_lines(log, start=log.stat().st_size - 2) == ["\N{REPLACEMENT CHARACTER}"]


START = """\
(Worker_TP0 pid=5) INFO 11-29 02:30:39 [base_loader.py:82] Initializing model took 0.231629 seconds
(Worker_TP0 pid=5) INFO 11-29 02:30:39 [default_loader.py:501] Loading weights took 1.02 seconds
(Worker_TP1 pid=6) INFO 11-29 02:30:39 [base_loader.py:82] Initializing model took 0.30 seconds
(Worker_TP1 pid=6) INFO 11-29 02:30:39 [default_loader.py:501] Loading weights took 1.10 seconds
(EngineCore pid=4) INFO 11-29 02:30:40 [core.py:402] init engine (profile, create kv cache, \
warmup model) took 0.82 s
"""


def test_the_parts_of_the_engines_start_are_those_of_the_slowest_worker(tmp_path: Path) -> None:
    log = tmp_path / "vllm.log"
    log.write_text("an earlier start: Loading weights took 99 seconds\n" + START)
    parts = engine_parts_s(log, start=len("an earlier start: Loading weights took 99 seconds\n"))
    assert parts == {"weights": 1.4, "compile and warm-up": 0.82}
    phases = {"imports": 6.0, "engine": 3.0, "routes": 0.5}
    assert with_engine_parts(phases, parts) == {
        "imports": 6.0, "engine": 0.78, "weights": 1.4, "compile and warm-up": 0.82, "routes": 0.5,
    }  # fmt: skip
    assert with_engine_parts(phases, {}) == phases


def test_a_full_disk_is_found_in_the_log() -> None:
    assert is_disk_full(["OSError: [Errno 28] No space left on device: '/cache/a.so'"])
    assert not is_disk_full(["OSError: [Errno 2] No such file or directory: '/cache/a.so'"])


def test_a_log_that_logrotate_has_cut_off_is_read(tmp_path: Path) -> None:
    log = tmp_path / "serve.log"
    log.write_text("ValueError: no\n")
    assert last_lines(log, start=5000) == ["ValueError: no"]


def test_two_logs_are_kept_next_to_one_that_grows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_log, "MOST_BYTES", 3)
    log = tmp_path / "serve.log"
    for text in ("one one", "two two", "three", "4"):
        with log.open("a") as file:
            file.write(text)
        keep_log_small(log)
    kept = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert kept == {"serve.log": "4", "serve.log.1": "three", "serve.log.2": "two two"}


def test_a_disk_without_room_for_a_copy_leaves_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_log, "MOST_BYTES", 3)
    log = tmp_path / "serve.log"
    log.write_text("whole")
    (tmp_path / "serve.log.part").symlink_to("/dev/full")
    keep_log_small(log)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"serve.log": "whole"}
