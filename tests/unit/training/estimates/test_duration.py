"""The number of held-out measurements, and the hints of the probe."""

from __future__ import annotations

from typing import Any

import pytest

from training.config import TrainingConfig
from training.estimates.duration import num_measurements, time_hints


@pytest.mark.parametrize(
    ("num_steps", "every", "expected"),
    [(10, 4, 4), (8, 4, 3), (3, 4, 2), (1, 1, 2)],  # before; after 4 and 8; at the end
)
def test_the_last_measurement_is_at_the_end(num_steps: int, every: int, expected: int) -> None:
    assert num_measurements(num_steps, every) == expected


@pytest.mark.parametrize(("max_steps", "is_hinted"), [(None, True), (10, False)])
def test_few_steps_are_named_only_if_the_data_decide_them(
    max_steps: int | None, is_hinted: bool
) -> None:
    found: dict[str, Any] = {
        "num_heldout_measurements": 2, "heldout_s": 0.1, "total_s": 100.0, "num_steps": 10,
        "step_s": 10.0,
    }  # fmt: skip
    hints = time_hints(TrainingConfig(max_steps=max_steps), found)
    assert any("10 optimizer steps only" in hint for hint in hints) == is_hinted
