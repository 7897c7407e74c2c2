from __future__ import annotations

import json
from pathlib import Path

import pytest

from training.loop.loss_curve import loss_limits, loss_points, write_curve

HISTORY = [
    {"step": 0, "epoch": 0, "eval_loss": 3.0, "eval_runtime": 1.0},
    {"step": 2, "epoch": 1.0, "loss": 2.0, "learning_rate": 1e-3, "grad_norm": 1.0, "entropy": 5},
    {"step": 2, "epoch": 1.0, "eval_loss": 2.5},
    {"step": 2, "epoch": 1.0, "train_runtime": 3.0},
]


def test_a_step_is_one_point_with_what_was_measured() -> None:
    assert loss_points(HISTORY) == [
        {"step": 0, "epoch": 0, "eval_loss": 3.0},
        {
            "step": 2, "epoch": 1.0, "loss": 2.0, "learning_rate": 1e-3, "grad_norm": 1.0,
            "eval_loss": 2.5,
        },
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("losses", "low", "high"),
    [([2.0, 1.0], 0, 2.16), ([0.5, -1.0], -1.08, 0.54), ([-1.0, -2.0], -2.16, 0), ([0.0], 0, 1)],
)
def test_the_axis_of_losses_has_zero_and_every_loss(
    losses: list[float], low: float, high: float
) -> None:
    assert loss_limits(losses) == pytest.approx((low, high))


def test_the_curve_is_written_as_lines_and_as_the_same_picture(tmp_path: Path) -> None:
    points = loss_points(HISTORY)
    pictures = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_curve(points, tmp_path / name)
        pictures.append((tmp_path / name / "loss.png").read_bytes())
    lines = (tmp_path / "a" / "loss.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == points
    assert pictures[0].startswith(b"\x89PNG\r\n") and pictures[0] == pictures[1]
