"""Which modules the options of an adapter name."""

from __future__ import annotations

from typing import Any

import pytest

from export.merge.methods.targets import for_module, is_targeted, matches, without_wrappers

Q0, Q1 = "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"


@pytest.mark.parametrize(
    ("options", "module", "expected"),
    [
        ({"target_modules": ["q_proj"]}, Q0, True),
        ({"target_modules": ["proj"]}, Q0, False),
        ({"target_modules": ["self_attn.q_proj"]}, Q0, True),
        ({"target_modules": [Q0]}, Q0, True),
        ({"target_modules": [Q0]}, Q1, False),
        ({"target_modules": r".*\.q_proj"}, Q0, True),
        ({"target_modules": r"q_proj"}, Q0, False),
        ({"target_modules": []}, Q0, False),
        ({"target_modules": None}, Q0, False),
        ({}, Q0, False),
        ({"target_modules": ["q_proj"], "exclude_modules": ["q_proj"]}, Q0, False),
        ({"target_modules": ["q_proj"], "exclude_modules": r".*\.0\..*"}, Q0, False),
        ({"target_modules": ["q_proj"], "exclude_modules": r".*\.0\..*"}, Q1, True),
        ({"target_modules": ["q_proj"], "exclude_modules": ""}, Q0, True),
        ({"target_modules": ["q_proj"], "layers_to_transform": [1]}, Q0, False),
        ({"target_modules": ["q_proj"], "layers_to_transform": [1]}, Q1, True),
        ({"target_modules": ["q_proj"], "layers_to_transform": 1}, Q1, True),
        ({"target_modules": ["q_proj"], "layers_to_transform": []}, Q0, True),
        ({"target_modules": [Q0], "layers_to_transform": [1]}, Q0, True),
        (
            {"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": "layers"},
            Q1, True,
        ),
        (
            {"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": ["h"]},
            Q1, False,
        ),
        ({"target_modules": ["lm_head"], "layers_to_transform": [1]}, "model.lm_head", False),
    ],
)  # fmt: skip
def test_options_name_a_module(options: dict[str, Any], module: str, expected: bool) -> None:
    assert is_targeted(options, module) is expected


@pytest.mark.parametrize(
    ("targets", "name", "expected"),
    [
        (["q_proj"], "q_proj", True),
        (["q_proj"], "a.q_proj", True),
        (["q_proj"], "a.xq_proj", False),
        ([], "q_proj", False),
        ("q_proj", "q_proj", False),
        (None, "q_proj", False),
    ],
)
def test_a_target_is_the_end_of_a_name(targets: Any, name: str, expected: bool) -> None:
    assert matches(targets, name) is expected


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ({}, 8),
        (None, 8),
        ({"q_proj": 4}, 4),
        ({"k_proj": 4}, 8),
        ({"proj": 4}, 8),
        ({"self_attn.q_proj": 2, "q_proj": 4}, 2),
        ({"q_proj": 4, "self_attn.q_proj": 2}, 4),
        ({r"layers\.[01]\..*": 3}, 3),
        ({r"layers\.1\..*": 3}, 8),
    ],
)
def test_the_first_pattern_that_matches_decides(patterns: Any, expected: int) -> None:
    assert for_module({"rank_pattern": patterns}, "rank_pattern", Q0, 8) == expected


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        ("mlp.experts", "mlp.experts"),
        ("mlp.experts.base_layer", "mlp.experts"),
        ("mlp.experts.base_layer.base_layer", "mlp.experts"),
        ("mlp.base_layer.experts", "mlp.base_layer.experts"),
    ],
)
def test_wrappers_are_removed_from_the_end(module: str, expected: str) -> None:
    assert without_wrappers(module) == expected
