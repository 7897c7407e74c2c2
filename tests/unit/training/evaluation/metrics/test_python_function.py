from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.training.evaluation.metrics.rows import made
from training.config import EvaluationConfig
from training.evaluation.metrics.python_function import score_python
from tuneline.core.errors import ConfigError

CODE = """
def words(row):
    return len(row["answer"].split()) if row["expected"] else None

def question(row):
    return row["prompt"][0]["content"] == "?"

def text(row):
    return "good"

def infinite(row):
    return float("inf")

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


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("text", "row 1: returned 'good'; expected a finite number"),
        ("infinite", "row 1: returned inf; expected a finite number"),
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


def test_a_file_that_cannot_be_loaded_is_refused(code: str) -> None:
    folder = Path(code).parent
    for file, message in (("raises.py", "raises RuntimeError: at import"), ("no.py", "not a file")):
        with pytest.raises(ConfigError, match=message):
            score_python(made([("x", "y")]), EvaluationConfig(python=f"{folder}/{file}:f"))
