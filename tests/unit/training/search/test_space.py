from __future__ import annotations

from typing import Any

import pytest

from training.config.search import ChoicesConfig, RangeConfig, SearchConfig
from training.search.space import distributions, grid_points, is_within, require_grid, values_of
from tuneline.core.config import validate_config
from tuneline.core.errors import ConfigError


def _space(**entries: dict[str, Any]) -> dict[str, RangeConfig | ChoicesConfig]:
    return SearchConfig.model_validate({"space": entries}).space


def test_a_grid_has_every_point_once() -> None:
    space = _space(
        r={"low": 4, "high": 10, "step": 3},
        lr={"low": 0.1, "high": 0.3, "step": 0.1},
        names={"choices": ["all-linear", ["q_proj", "v_proj"]]},
    )
    points = [values_of(space, point) for point in require_grid(space)]
    assert len(points) == 3 * 3 * 2
    assert sorted({point["r"] for point in points}) == [4, 7, 10]
    assert [point["lr"] for point in points[:6:2]] == pytest.approx([0.1, 0.2, 0.3])
    assert points[1]["names"] == ["q_proj", "v_proj"]


def test_every_grid_point_lies_in_its_distribution() -> None:
    space = _space(r={"low": 4, "high": 11, "step": 3}, lr={"low": 0.1, "high": 0.75, "step": 0.2})
    found = distributions(space)
    points = require_grid(space)
    assert len(points) == 3 * 4
    for point in points:
        for name, value in point.items():
            assert found[name]._contains(found[name].to_internal_repr(value))


@pytest.mark.parametrize(("written", "value"), [("1e-5", 1e-5), ("2.E+3", 2000.0), ("16", "16")])
def test_a_choice_with_an_exponent_is_a_number(written: str, value: Any) -> None:
    (entry,) = _space(x={"choices": [written]}).values()
    assert isinstance(entry, ChoicesConfig)
    assert entry.choices == [value] and type(entry.choices[0]) is type(value)
    assert is_within(entry, value)


def test_a_metric_that_is_not_a_loss_needs_a_direction() -> None:
    values = {"metric": "evaluation-tuned.exact_match"}
    with pytest.raises(ConfigError, match="add the line `direction: maximize`") as caught:
        validate_config(SearchConfig, values, "run.yaml")
    assert "evaluation-tuned.exact_match" in str(caught.value) and caught.value.exit_code == 2
    loss = validate_config(SearchConfig, {"metric": "evaluation-tuned.loss"}, "run.yaml")
    assert loss.direction == "minimize"


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_the_direction_of_a_metric_is_taken(direction: str) -> None:
    values = {"metric": "evaluation-tuned.exact_match", "direction": direction}
    assert validate_config(SearchConfig, values, "run.yaml").direction == direction


def test_a_range_without_a_step_has_no_grid() -> None:
    space = _space(lr={"low": 1e-5, "high": 1e-3, "log": True}, r={"choices": [4]})
    assert grid_points(space) is None
    with pytest.raises(ConfigError, match=r"search\.space\.lr: has endless points"):
        require_grid(space)


def test_a_grid_of_too_many_points_is_refused() -> None:
    with pytest.raises(ConfigError, match="more than 10,000 points"):
        require_grid(_space(a={"low": 1, "high": 200}, b={"low": 1, "high": 200}))


@pytest.mark.parametrize(
    ("entry", "value", "expected"),
    [
        ({"low": 1, "high": 8}, 4, True),
        ({"low": 1, "high": 8}, 4.0, True),
        ({"low": 1, "high": 8}, 4.5, False),
        ({"low": 1, "high": 8}, 9, False),
        ({"low": 1, "high": 8}, None, False),
        ({"low": 0.5, "high": 8}, 4.5, True),
        ({"choices": [8, "auto"]}, "auto", True),
        ({"choices": [8, "auto"]}, 4, False),
    ],
)
def test_values_of_a_run_are_told_to_be_within(
    entry: dict[str, Any], value: Any, expected: bool
) -> None:
    assert is_within(_space(key=entry)["key"], value) is expected


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"low": 3, "high": 1}, "low 3 is above high 1"),
        ({"low": 0, "high": 1, "log": True}, "log: low is 0; expected a number above 0"),
        ({"low": 1, "high": 9, "log": True, "step": 2}, "log and step do not go together"),
        ({"choices": []}, "at least 1 item"),
        ({"low": True, "high": 2}, "expected a number"),
    ],
)
def test_a_range_that_cannot_be_drawn_is_refused(entry: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        validate_config(SearchConfig, {"space": {"training.r": entry}}, "run.yaml")
    assert "space.training.r" in str(caught.value) and caught.value.exit_code == 2


def test_a_number_that_yaml_reads_as_text_is_a_number() -> None:
    (entry,) = _space(lr={"low": "1e-5", "high": "1e-3", "log": True}).values()
    assert isinstance(entry, RangeConfig) and (entry.low, entry.high) == (1e-5, 1e-3)


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({"space": {"training.r": [4, 8]}}, "write training.r: {low: 4, high: 8} or "
         "training.r: {choices: [4, 8]}"),
        ({"space": {"training.r": {"min": 4, "max": 8}}}, "training.r: expected a range or"),
        ({"space": {"training.r": {"low": 4}}}, "training.r: expected a range or choices"),
        ({"space": {"training.r": 8}}, "training.r: expected a range or choices, found 8"),
        ({"space": {"training.r": {"low": "a", "high": 8}}}, "low: expected a number, found 'a'"),
        ({"metric": "eval_loss"}, "metric: expected a stage and its figure, such as "
         "adapter.eval_loss; found 'eval_loss'"),
    ],
)  # fmt: skip
def test_an_entry_of_another_form_is_shown_the_right_one(
    search: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        validate_config(SearchConfig, search, "search")
    assert message in str(caught.value) and len(caught.value.problems) == 1
