"""The keys of the `training` section about checkpoints, the best of them, and an early end."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from training.config.types import PositiveFloat, PositiveInt
from tuneline.core.config import StrictModel

EXACT_MATCH = "eval_exact_match"
"""The metric that needs answers, not a loss."""


class CheckpointConfig(StrictModel):
    """When checkpoints are written, which are kept, and which one becomes the result."""

    save_steps: PositiveInt = Field(default=100, json_schema_extra={"keyed": False})
    """Optimizer steps between checkpoints that an interrupted run continues from."""
    save_minutes: PositiveFloat | None = Field(default=None, json_schema_extra={"keyed": False})
    """Also write a checkpoint after the first step that ends this many minutes after the last one,
    for steps whose duration is not known."""
    save_total_limit: PositiveInt = Field(default=2, json_schema_extra={"keyed": False})
    """Checkpoints that are kept: the newest ones, and the best one besides. An older one is removed
    after a newer one is complete, so that one more is on the disk for a moment."""
    eval_steps: PositiveInt | None = None
    """Optimizer steps between held-out losses; at the end of each epoch if not given."""
    load_best_model_at_end: bool = False
    """The result is the checkpoint with the best `metric_for_best_model`, not the last step. Each
    better held-out figure then writes a checkpoint."""
    metric_for_best_model: str = "eval_loss"
    """`eval_loss`; `eval_exact_match`, the share of held-out prompts whose greedy answer is right;
    or a held-out figure of the method, such as `eval_rewards/accuracies` of dpo."""
    num_eval_prompts: PositiveInt = 50
    """Held-out prompts, from the first, that are answered for `eval_exact_match`."""
    early_stopping_patience: PositiveInt | None = None
    """End training after this many held-out figures in a row that are not better than the best one;
    needs `load_best_model_at_end`."""
    early_stopping_threshold: Annotated[float, Field(ge=0)] = 0.0
    """A figure is better if it differs from the best one by more than this."""

    @model_validator(mode="after")
    def _check_patience(self) -> Self:
        if self.early_stopping_patience is not None and not self.load_best_model_at_end:
            raise ValueError(
                "early_stopping_patience counts from the best checkpoint; set "
                "load_best_model_at_end: true, or remove it"
            )
        return self
