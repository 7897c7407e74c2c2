"""The `training` section."""

from __future__ import annotations

from training.config.adapter import AdapterConfig
from training.config.method import MethodConfig, SftConfig
from training.config.trainer import TrainerConfig


class TrainingConfig(TrainerConfig, AdapterConfig):
    """Fine-tuning of an adapter on the answers only."""

    method: MethodConfig = SftConfig()
    """The training method and its options."""
    eos_token: str | None = None
    """A token of the vocabulary that ends an answer besides the model's own stop tokens, for base
    models whose chat template ends turns with a token they do not stop at."""
