from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.training.evaluation.metrics.rows import made
from training.config import EvaluationConfig
from training.evaluation.metrics.json_schema import schema_validator, score_json_schema
from tuneline.core.errors import ConfigError

SCHEMA = {
    "type": "object",
    "properties": {"age": {"type": "integer", "minimum": 0}},
    "required": ["age"],
    "additionalProperties": False,
}
ANSWERS = {
    '{"age": 3}': 1.0,
    ' {"age": 3}\n': 1.0,
    '{"age": -3}': 0.0,
    '{"age": "3"}': 0.0,
    "{}": 0.0,
    '{"age": 3, "b": 1}': 0.0,
    '```json\n{"age": 3}\n```': 0.0,
    "{'age': 3}": 0.0,
    '{"age": NaN}': 0.0,
    "": 0.0,
    "[" * 20000: 0.0,
}


def _schema(folder: Path, schema: Any) -> str:
    path = folder / "schema.json"
    path.write_text(schema if isinstance(schema, str) else json.dumps(schema))
    return str(path)


def test_answers_fit_the_schema_or_not(tmp_path: Path) -> None:
    config = EvaluationConfig(json_schema=_schema(tmp_path, SCHEMA))
    scored = score_json_schema(made([("", answer) for answer in ANSWERS]), config)
    assert dict(zip(ANSWERS, scored.values, strict=True)) == ANSWERS
    assert scored.details["faults"] == {
        "not JSON": 5, "minimum": 1, "type": 1, "required": 1, "additionalProperties": 1,
    }  # fmt: skip


def test_a_number_beyond_a_float_is_a_fault(tmp_path: Path) -> None:
    schema = {"properties": {"price": {"multipleOf": 0.01}}}
    config = EvaluationConfig(json_schema=_schema(tmp_path, schema))
    scored = score_json_schema(made([("", '{"price": 1e400}'), ("", '{"price": 0.5}')]), config)
    assert scored.values == [0.0, 1.0]
    assert scored.details["faults"] == {"number too large": 1}


@pytest.mark.parametrize(
    ("step", "right", "wrong"),
    [(0.01, "0.07", "0.075"), (0.1, "92.6", "92.65"), (0.01, "3", "1e-3"), (3, "9.0", "7"),
     (0.5, "1e22", "0.7")],
)  # fmt: skip
def test_a_multiple_is_judged_by_its_digits(
    tmp_path: Path, step: float, right: str, wrong: str
) -> None:
    config = EvaluationConfig(json_schema=_schema(tmp_path, {"items": {"multipleOf": step}}))
    scored = score_json_schema(made([("", f"[{right}]"), ("", f"[{wrong}]")]), config)
    assert scored.values == [1.0, 0.0]
    assert scored.details["faults"] == {"multipleOf": 1}


def test_without_a_schema_any_json_is_valid() -> None:
    scored = score_json_schema(made([("", "3"), ("", "{}"), ("", "x")]), EvaluationConfig())
    assert scored.values == [1.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "whole number"}, "is not a JSON schema"),
        ("{", "is not JSON"),
        ({"$ref": "https://example.com/schema.json"}, "is outside this schema"),
        ({"$ref": "#"}, "refers to itself without end"),
    ],
)
def test_a_schema_that_cannot_be_used_is_refused(tmp_path: Path, schema: Any, message: str) -> None:
    path = _schema(tmp_path, schema)
    with pytest.raises(ConfigError, match=message) as caught:
        schema_validator(path)
    assert path in caught.value.message
    assert caught.value.exit_code == 2


def test_a_reference_that_only_some_answers_reach_is_refused(tmp_path: Path) -> None:
    schema = {"properties": {"a": {"$ref": "https://example.com/schema.json"}}}
    config = EvaluationConfig(json_schema=_schema(tmp_path, schema))
    with pytest.raises(ConfigError, match="is outside this schema"):
        score_json_schema(made([("", '{"a": 1}')]), config)


def test_a_missing_schema_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        schema_validator(str(tmp_path / "none.json"))
