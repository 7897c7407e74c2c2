"""Which line says why; the lines are as vLLM 0.32 writes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving.supervisor.vllm_log import cause, last_lines

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
