"""LoRA's rank and scale."""

from __future__ import annotations

import math
from typing import Any

import pytest

from export.merge.methods.lora import rank_and_scale

Q = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("options", "rank", "scale"),
    [
        ({}, 8, 1.0),
        ({"r": 4, "lora_alpha": 16}, 4, 4.0),
        ({"r": 16, "lora_alpha": 8}, 16, 0.5),
        ({"r": 16, "lora_alpha": 8, "use_rslora": True}, 16, 2.0),
        ({"r": 6, "lora_alpha": 16, "use_rslora": True}, 6, 16 / math.sqrt(6)),
        ({"r": 4, "lora_alpha": 16, "rank_pattern": {"q_proj": 2}}, 2, 8.0),
        ({"r": 4, "lora_alpha": 16, "alpha_pattern": {"q_proj": 2}}, 4, 0.5),
        ({"r": 4, "rank_pattern": {"k_proj": 2}, "alpha_pattern": {"k_proj": 1}}, 4, 2.0),
        (
            {"r": 4, "lora_alpha": 16, "rank_pattern": {"q_proj": 9}, "use_rslora": True},
            9, 16 / 3,
        ),
    ],
)  # fmt: skip
def test_patterns_and_rslora_decide_rank_and_scale(
    options: dict[str, Any], rank: int, scale: float
) -> None:
    found_rank, found_scale = rank_and_scale(options, Q)
    assert found_rank == rank
    assert found_scale == pytest.approx(scale, rel=1e-15)
