from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.training.evaluation.metrics.rows import made
from training.config import EvaluationConfig
from training.evaluation.metrics.python_function import score_python
from tuneline.core.errors import ConfigError

CODE = """
from __future__ import annotations
from dataclasses import dataclass
import numpy as np

def words(row):
    return len(row["answer"].split()) if row["expected"] else None

def question(row):
    return row["prompt"][0]["content"] == "?"

def text(row):
    return "good"

def infinite(row):
    return float("inf")

def huge(row):
    return 10**400

def ends(row):
    raise SystemExit(0)

@dataclass
class Score:
    value: float

def numpy(row):
    return np.float32(Score(0.5).value)

def broken(row):
    return row["no such key"]

number = 3
"""


@pytest.fixture
def code(tmp_path: Path) -> str:
    (tmp_path / "metric.py").write_text(CODE)
    (tmp_path / "raises.py").write_text("raise RuntimeError('at import')")
    return f"{tmp_path}/metric.py"


def test_the_function_sees_the_row_and_gives_its_value(code: str) -> None:
    rows = made([("x", "one two"), ("", "three"), ("x", "")])
    assert score_python(rows, EvaluationConfig(python=f"{code}:words")).values == [2.0, None, 0.0]
    assert score_python(rows, EvaluationConfig(python=f"{code}:question")).values == [1.0] * 3
    assert score_python(rows, EvaluationConfig(python=f"{code}:numpy")).values == [0.5] * 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("text", "row 1: returned 'good'; expected a finite number"),
        ("infinite", "row 1: returned 'inf'; expected a finite number"),
        ("huge", "row 1: returned '1000.*expected a finite number"),
        ("ends", "row 1: SystemExit: 0"),
        ("broken", "row 1: KeyError: 'no such key'"),
        ("number", "has no function number"),
        ("missing", "has no function missing"),
        ("no-name", "expected file.py:function"),
    ],
)
def test_a_function_that_cannot_be_used_is_refused(code: str, name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        score_python(made([("x", "y")]), EvaluationConfig(python=f"{code}:{name}"))
    assert code in caught.value.message
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("raises.py", "raises RuntimeError: at import"),
        ("ends.py", "raises SystemExit: 0"),
        ("no.py", "not a file"),
    ],
)
def test_a_file_that_cannot_be_loaded_is_refused(code: str, file: str, message: str) -> None:
    folder = Path(code).parent
    (folder / "ends.py").write_text("import sys\nsys.exit(0)")
    with pytest.raises(ConfigError, match=message):
        score_python(made([("x", "y")]), EvaluationConfig(python=f"{folder}/{file}:f"))
