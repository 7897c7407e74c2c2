"""The sections of `run.yaml` that this room reads; no machine-learning library is imported.

Option names are those of peft, TRL and transformers.
"""

from training.config.data import DataConfig
from training.config.evaluation import (
    EvaluationConfig,
    JudgeConfig,
    MetricName,
    ReferenceConfig,
)
from training.config.training import TrainingConfig

__all__ = [
    "DataConfig",
    "EvaluationConfig",
    "JudgeConfig",
    "MetricName",
    "ReferenceConfig",
    "TrainingConfig",
]
