"""The `search` section: which settings are tried, and how the best ones are found."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, JsonValue, field_validator, model_validator

from training.config.types import PositiveInt
from tuneline.core.config import StrictModel
from tuneline.core.config_problems import NAME


def _number(value: Any) -> Any:
    """Return a number; YAML reads 1e-5, which has no point, as text."""
    if isinstance(value, bool):
        raise ValueError("expected a number")
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            raise ValueError(f"expected a number, found {value!r}") from None
    return value


_WITH_EXPONENT = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+")


def _choice(value: Any) -> Any:
    """Return a choice; text such as 1e-5 becomes the number that run.yaml means elsewhere."""
    if isinstance(value, str) and _WITH_EXPONENT.fullmatch(value):
        return float(value)
    return value


Number = Annotated[int | float, BeforeValidator(_number)]


class RangeConfig(StrictModel):
    """Numbers from `low` to `high`; whole numbers if both are whole and `log` is not set."""

    low: Number
    high: Number
    step: Annotated[Number, Field(gt=0)] | None = None
    """Distance between the numbers that are tried; 1 for whole numbers."""
    log: bool = False
    """Draw as many numbers between 0.001 and 0.01 as between 0.01 and 0.1."""

    @property
    def is_whole(self) -> bool:
        """Return whether the numbers are whole."""
        return all(isinstance(value, int) for value in (self.low, self.high, self.step or 1))

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low {self.low:g} is above high {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"log: low is {self.low:g}; expected a number above 0")
        if self.log and self.step is not None:
            raise ValueError("log and step do not go together; remove one of them")
        return self


class ChoicesConfig(StrictModel):
    """Single values."""

    choices: Annotated[list[Annotated[JsonValue, BeforeValidator(_choice)]], Field(min_length=1)]


class SearchConfig(StrictModel):
    """A search for better settings: many trainings, each with other values of some keys."""

    space: dict[str, RangeConfig | ChoicesConfig] = Field(default={})
    """For each key of run.yaml, by its path, the values that are tried:
    `training.learning_rate: {low: 1e-5, high: 1e-3, log: true}` or
    `training.r: {choices: [8, 16, 32]}`."""
    metric: str = Field(default="adapter.eval_loss")
    """A figure of a stage's artifact, as `stage.figure`: `adapter.eval_loss` is the held-out loss,
    `evaluation-tuned.exact_match` the share of right answers."""
    direction: Literal["minimize", "maximize"] = "minimize"
    """Required unless the metric's name ends in `loss`: a loss is minimized."""
    sampler: Literal["tpe", "random", "grid"] = "tpe"
    """`tpe` draws values near good ones, `random` draws them blindly, `grid` tries every point."""
    pruner: Literal["median", "none"] = "median"
    """`median` ends a training that is worse than the median of the trainings before it at the same
    held-out measurement, by the metric if the training measures it, else by the held-out loss (of
    `grpo`, by the reward). `training.eval_steps` sets the measurements."""
    num_trials: PositiveInt | None = None
    """Points that are tried, by all processes together; 20, and the whole grid under `grid`."""
    seed: Annotated[int, Field(ge=0)] = 0
    study: str = Field(default="search", pattern=NAME)
    """Names the directory in `runs/<name>/` that holds the study."""

    @field_validator("space", mode="before")
    @classmethod
    def _check_space(cls, space: Any) -> Any:
        for name, entry in space.items() if isinstance(space, dict) else ():
            is_entry = isinstance(entry, RangeConfig | ChoicesConfig) or (
                isinstance(entry, dict) and ("choices" in entry or {"low", "high"} <= {*entry})
            )
            if not is_entry:
                choices = entry if isinstance(entry, list) and entry else [4, 8]
                raise ValueError(
                    f"{name}: expected a range or choices, found {entry!r}; write "
                    f"{name}: {{low: 4, high: 8}} or {name}: {{choices: {choices}}}"
                )
        return space

    @field_validator("metric")
    @classmethod
    def _check_metric(cls, metric: str) -> str:
        stage, point, figure = metric.partition(".")
        if not (stage and point and figure):
            named = metric if not point else "eval_loss"
            raise ValueError(
                f"expected a stage and its figure, such as adapter.{named}; found {metric!r}"
            )
        return metric

    @model_validator(mode="after")
    def _check(self) -> Self:
        if "direction" not in self.model_fields_set and not self.metric.endswith("loss"):
            raise ValueError(
                f"direction is not set, and the metric {self.metric} is not a loss; "
                "add the line `direction: maximize` or `direction: minimize`"
            )
        return self
