"""Can the metrics be computed? Asked before a model answers, which takes longest."""

from __future__ import annotations

from training.config import EvaluationConfig
from training.evaluation.metrics.json_schema import schema_validator
from training.evaluation.metrics.judge import chosen_judge
from training.evaluation.metrics.python_function import chosen_function


def require_metrics(config: EvaluationConfig) -> None:
    """Check the files and the judge that metrics read.

    Raises:
        ConfigError: One of them cannot be used.
        MissingError: jsonschema is not installed.
    """
    named = config.metrics or ()
    if config.python is not None or "python" in named:
        chosen_function(config)
    if config.judge is not None or "judge" in named:
        chosen_judge(config)
    schema_validator(config.json_schema)
