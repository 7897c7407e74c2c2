"""The time of a training in words, and the hints that shorten it."""

from __future__ import annotations

import math
from typing import Any

from training.config import TrainingConfig

LONG_HELDOUT = 0.3
"""Share of the time that held-out measurements may take without a hint."""
LONG_UNSAVED_S = 1800.0
"""Seconds of work that a kill may cost without a hint."""
FEW_STEPS = 20


def num_measurements(num_steps: int, every: int) -> int:
    """Return how often the held-out rows are measured: before, every so many steps, at the end."""
    return 1 + math.ceil(num_steps / every)


def time_lines(found: dict[str, Any]) -> list[str]:
    """Return the time of a training as lines for people."""
    return [
        f"training takes about {_duration(found['total_s'])}: {found['num_steps']:,} steps of "
        f"{found['step_s']:.2f} s and {found['num_heldout_measurements']} held-out measurements of "
        f"{_duration(found['heldout_s'])}, by {found['num_probed_steps']} steps on this machine",
        *(f"hint: {hint}" for hint in found["hints"]),
    ]


def time_hints(config: TrainingConfig, found: dict[str, Any]) -> list[str]:
    """Return what of run.yaml costs time, or more work than it must if the run is killed."""
    hints = []
    heldout_s = found["num_heldout_measurements"] * found["heldout_s"]
    if heldout_s > LONG_HELDOUT * found["total_s"]:
        share = heldout_s / found["total_s"]
        steps = 2 * (config.eval_steps or found["num_steps"])
        hints.append(
            f"held-out measurements take {share:.0%} of the time; try training.eval_steps: "
            f"{steps}, or fewer held-out rows"
        )
    unsaved_s = min(config.save_steps, found["num_steps"]) * found["step_s"]
    if unsaved_s > LONG_UNSAVED_S and config.save_minutes is None:
        hints.append(
            f"a kill costs up to {_duration(unsaved_s)} of work; try training.save_minutes: 15"
        )
    few = config.max_steps is None and found["num_steps"] < FEW_STEPS
    if few and config.gradient_accumulation_steps > 1:
        hints.append(
            f"there are {found['num_steps']} optimizer steps only; try "
            "training.gradient_accumulation_steps: 1"
        )
    return hints


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
