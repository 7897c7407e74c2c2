"""Steps and loss on the progress display."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

from transformers import TrainerCallback

from training.methods import Method
from tuneline.core.errors import ConfigError
from tuneline.core.progress import progress


class ShowProgress(TrainerCallback):  # type: ignore[misc]
    """Shows steps and loss; ends a run whose loss is no longer a number."""

    def __init__(self, stack: ExitStack) -> None:
        self.stack = stack
        self.note = ""

    def on_train_begin(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        """Open the display."""
        self.advance = self.stack.enter_context(progress("training", state.max_steps, "steps"))

    def on_log(self, args: Any, state: Any, _control: Any, *, logs: Any, **_: Any) -> None:
        """Check the logged losses.

        Raises:
            ConfigError: A loss is not a finite number.
        """
        for name in ("loss", "eval_loss"):
            if name in logs and not math.isfinite(logs[name]):
                raise ConfigError(
                    f"training: {name} is {logs[name]} at step {state.global_step}",
                    hint=f"Lower training.learning_rate (now {args.learning_rate:g}), or check the "
                    "base model's weights.",
                )
        if "loss" in logs:
            self.note = f"loss {logs['loss']:.3f}"

    def on_step_end(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        """Show the step."""
        self.advance(state.global_step, self.note)


OnHeldout = Callable[[int, Mapping[str, float]], None]
"""Is called with a step and the figures of held-out rows after it."""


class ReportHeldout(TrainerCallback):  # type: ignore[misc]
    """Hands step and figures of each held-out measurement to a function.

    The figures have the names of the Trainer's log and those of the manifest.
    """

    def __init__(self, on_heldout: OnHeldout, method: Method) -> None:
        self.on_heldout, self.method = on_heldout, method

    def on_train_begin(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        """Hand over what a continued run has measured already."""
        for entry in state.log_history:
            if "eval_loss" in entry and entry["step"]:
                self._report(entry["step"], entry)

    def on_evaluate(self, _args: Any, state: Any, _control: Any, *, metrics: Any, **_: Any) -> None:
        """Hand over a new measurement; the one before the first step says nothing."""
        if state.global_step:
            self._report(state.global_step, metrics)

    def _report(self, step: int, measured: Mapping[str, Any]) -> None:
        heldout = {name: value for name, value in measured.items() if name.startswith("eval_")}
        figures = {**heldout, **self.method.metrics([heldout])}
        self.on_heldout(step, {n: v for n, v in figures.items() if isinstance(v, int | float)})
