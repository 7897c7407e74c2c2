"""The figures of a training in progress: the Trainer's log, and speed and memory next to it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from numbers import Real
from typing import Any

import torch
from transformers import TrainerCallback

from training.loop.memory import memory_bytes
from training.loop.ranks import total
from training.tracking.reporting import Reporting

LEFT_OUT = ("total_flos", "step")


class FiguresOfTraining(TrainerCallback):  # type: ignore[misc]
    """Adds `tokens_per_s` and `memory_bytes` to each logged loss, and reports every log.

    Tokens are those of the batches without padding. The time of held-out measurements and of
    checkpoints is not counted.
    """

    def __init__(self, reporting: Reporting) -> None:
        self.reporting = reporting
        self.num_tokens: list[torch.Tensor | int] = []
        self.seconds = 0.0
        self.began_s = 0.0

    def watch(self, trainer: Any) -> None:
        """Count the tokens of every batch of a trainer."""
        step = trainer.training_step

        def training_step(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            if isinstance(inputs, Mapping):
                self.num_tokens.append(_num_tokens(inputs))
            return step(model, inputs, *args, **kwargs)

        trainer.training_step = training_step

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.began_s = time.monotonic()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds += time.monotonic() - self.began_s

    def on_log(self, _args: Any, state: Any, _control: Any, *, logs: Any, **_: Any) -> None:
        """Add the two figures to a logged loss, and report it."""
        if "loss" not in logs:
            return
        added: dict[str, float] = {"memory_bytes": memory_bytes()}
        num_tokens = total(sum(int(number) for number in self.num_tokens))
        if num_tokens and self.seconds:
            added["tokens_per_s"] = num_tokens / self.seconds
        self.num_tokens, self.seconds = [], 0.0
        state.log_history[-1].update(added)
        self._report(state, state.log_history[-1])

    def on_evaluate(self, _args: Any, state: Any, _control: Any, *, metrics: Any, **_: Any) -> None:
        """Report the figures of held-out rows."""
        self._report(state, metrics)

    def _report(self, state: Any, figures: Mapping[str, Any]) -> None:
        numbers = {
            name: float(value)
            for name, value in figures.items()
            if isinstance(value, Real) and name not in LEFT_OUT
        }
        self.reporting.report(state.global_step, numbers)


def _num_tokens(inputs: Mapping[str, Any]) -> torch.Tensor | int:
    """Return the tokens of a batch that are not padding; a tensor does not wait for the GPU."""
    masks = [
        value
        for name, value in inputs.items()
        if name.endswith("attention_mask") and isinstance(value, torch.Tensor) and value.ndim == 2
    ]
    if masks:
        return torch.stack([mask.sum() for mask in masks]).sum()
    ids = [
        value.numel()
        for name, value in inputs.items()
        if name.endswith("input_ids") and isinstance(value, torch.Tensor)
    ]
    return sum(ids)
