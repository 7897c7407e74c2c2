"""The best checkpoint by a held-out figure, and an early end if the figure stays worse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from training.config import TrainingConfig
from training.config.checkpoints import EXACT_MATCH
from training.loop.ranks import of_first
from training.methods import Method
from tuneline.core.errors import ConfigError
from tuneline.core.progress import logger

LOSS = "eval_loss"


def require_metric(config: TrainingConfig, method: Method) -> None:
    """Check that the metric can choose the best checkpoint of the method.

    Raises:
        ConfigError: It cannot; the message names the metrics that can.
    """
    known = [LOSS, *(f"eval_{name}" for name in method.choosable)]
    known += [EXACT_MATCH] if method.is_answered else []
    if config.metric_for_best_model not in known:
        raise ConfigError(
            f"training.metric_for_best_model: {config.metric_for_best_model} is not a held-out "
            f"figure that chooses a checkpoint of {config.method.type}; "
            f"expected {' or '.join(known)}"
        )


def is_better(config: TrainingConfig, value: float, best: float | None) -> bool:
    """Return whether a figure is better than the best one by more than the threshold.

    A lower loss is better, and a higher figure of every other metric that `require_metric` allows.
    """
    if best is None:
        return True
    gain = best - value if config.metric_for_best_model == LOSS else value - best
    return gain > config.early_stopping_threshold


class KeepBest(TrainerCallback):  # type: ignore[misc]
    """Notes the best held-out figure after the first step, and saves each better checkpoint.

    The Trainer's state has both, so a run that continues knows them. Nothing else is remembered:
    the figures since the best one are counted in the log.
    """

    def __init__(self, config: TrainingConfig) -> None:
        self.config = config

    def on_evaluate(self, _args: Any, state: Any, control: Any, *, metrics: Any, **_: Any) -> None:
        """Compare the figure, and end training if the patience is over."""
        name = self.config.metric_for_best_model
        if not self.config.load_best_model_at_end or state.global_step == 0:
            return
        value = of_first(metrics[name])
        if is_better(self.config, value, state.best_metric):
            state.best_metric, state.best_global_step = value, state.global_step
            control.should_save = True
            return
        patience = self.config.early_stopping_patience
        worse = [
            entry
            for entry in state.log_history
            if name in entry and entry["step"] > state.best_global_step
        ]
        if patience is not None and len(worse) >= patience:
            logger.info(
                "  training ends at step %d: %s was best at step %d (%.4g)",
                state.global_step, name, state.best_global_step, state.best_metric,
            )  # fmt: skip
            control.should_training_stop = True
            # A checkpoint of this step would go on training where this run ends.
            control.should_save = False


def load_best(trainer: Any) -> int | None:
    """Put the weights of the best checkpoint into the model, and return its step.

    The last step stays if it is the best one, or if nothing was measured.
    """
    state = trainer.state
    if not state.best_global_step or state.best_global_step == state.global_step:
        return state.best_global_step or None
    checkpoint = Path(trainer.args.output_dir) / f"checkpoint-{state.best_global_step}"
    state.best_model_checkpoint = str(checkpoint)
    trainer._load_best_model()
    return int(state.best_global_step)
