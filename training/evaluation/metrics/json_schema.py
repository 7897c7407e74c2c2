"""JSON validity: the answer parses, and fits a schema if there is one."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NoReturn

from training.config import EvaluationConfig
from training.evaluation.metrics.metric import Scored
from training.evaluation.prediction import Prediction
from tuneline.core.environment import require
from tuneline.core.errors import ConfigError
from tuneline.core.messages import bare_answer

OUTSIDE = "is outside this schema; expected references within it"


def score_json_schema(predictions: Sequence[Prediction], config: EvaluationConfig) -> Scored:
    """Return 1 for each answer that is JSON and fits `evaluation.json_schema`.

    The details count the answers that are not JSON, and the schema keywords that others break.

    Raises:
        ConfigError: The schema cannot be used.
        MissingError: jsonschema is not installed.
    """
    validator = schema_validator(config.json_schema)
    faults = [json_fault(bare_answer(p.answer), validator) for p in predictions]
    counts = Counter(fault for fault in faults if fault)
    return Scored([float(not fault) for fault in faults], {"faults": dict(counts.most_common())})


def json_fault(text: str, validator: Any | None) -> str:
    """Return why text is not JSON that fits a schema; empty if it fits."""
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return "not JSON"
    if validator is None:
        return ""
    try:
        error = next(validator.iter_errors(value), None)
    except RecursionError:
        return "nested too deeply"
    except OverflowError:
        return "number too large"  # 1e400 is JSON, and infinite as a float
    except require("referencing", "train").exceptions.Unresolvable as error:
        raise ConfigError(f"evaluation.json_schema: {error.ref!r} {OUTSIDE}") from None
    return "" if error is None else str(error.validator)


def schema_validator(path: str | None) -> Any | None:
    """Return the validator of a schema file; None without a file. Nothing is downloaded.

    Raises:
        ConfigError: The file cannot be read or is not a JSON schema.
    """
    if path is None:
        return None
    try:
        schema = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"evaluation.json_schema: {path}: cannot be read: {error.strerror}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"evaluation.json_schema: {path}: is not JSON: {error}") from None
    return validator_of(schema, f"evaluation.json_schema: {path}")


def validator_of(schema: Any, where: str) -> Any:
    """Return the validator of a schema.

    Raises:
        ConfigError: It is not a JSON schema, or refers to another document.
    """
    jsonschema = require("jsonschema", "train")
    referencing = require("referencing", "train")
    kind = jsonschema.validators.validator_for(
        schema, default=jsonschema.validators.Draft202012Validator
    )
    try:
        kind.check_schema(schema)
        # Without a registry, jsonschema would download what `$ref` names.
        exact = jsonschema.validators.extend(kind, {"multipleOf": _multiple_of})
        validator = exact(schema, registry=referencing.Registry())
        next(validator.iter_errors({}), None)
    except jsonschema.exceptions.SchemaError as error:
        raise ConfigError(f"{where}: is not a JSON schema: {error.message}") from None
    except referencing.exceptions.Unresolvable as error:
        raise ConfigError(f"{where}: {error.ref!r} {OUTSIDE}") from None
    except RecursionError:
        raise ConfigError(f"{where}: refers to itself without end") from None
    return validator


def _multiple_of(validator: Any, divisor: Any, value: Any, _schema: Any) -> Iterator[Exception]:
    """Yield a fault if a number is not a multiple, by the digits that it is written with.

    jsonschema divides floats: 0.07 / 0.01 is 7.000000000000001, and a right price would be a fault.

    Raises:
        OverflowError: The number is infinite as a float.
    """
    if not validator.is_type(value, "number"):
        return
    if value in (float("inf"), float("-inf")):
        raise OverflowError
    if Fraction(str(value)) % Fraction(str(divisor)):
        error = require("jsonschema", "train").exceptions.ValidationError
        yield error(f"{value!r} is not a multiple of {divisor}")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
