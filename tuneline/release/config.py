"""The `release` section: the limits of the gates, and the facts that no artifact holds."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from training.config.evaluation import MetricName
from tuneline.core.config import StrictModel


class ReleaseConfig(StrictModel):
    """The gates of `tuneline release`. No stage reads this section, so a change of it leaves every
    artifact current."""

    metric: MetricName | None = None
    """The metric that the evaluation gates read, `exact_match` by default. For a method that
    compares two answers (DPO, ORPO) the default is `rouge_l`, if it is measured, and the gate
    `evaluation` reads the held-out preferences: few good answers are word for word the expected
    one."""
    threshold: float | None = None
    """The limit for the tuned model's `metric`: the smallest value, or the largest one if lower is
    better. Without a limit, only the comparison with the base counts."""
    max_regression: Annotated[float, Field(ge=0)] = 0.05
    """The drop of `metric` below an earlier release, and of the served below the tuned model, that
    the paired interval at 95 % must rule out. It is also the largest share of the earlier release's
    held-out rows that this run may lack: a row that is gone could hide a wrong answer."""
    max_slowdown: Annotated[float, Field(ge=0)] = 0.05
    """The largest `--margin` of the load comparison with an earlier release: the share of its mean
    latencies by which this release may be slower."""
    previous: str | None = None
    """The directory of an earlier release that this one is compared with, relative to this file."""
    load_comparison: str | None = None
    """The artifact of `tuneline loadtest compare` that measured the earlier release (A) and this
    one (B) in turns, relative to this file. Needed with `previous`."""
    base_license: str | None = None
    """Licence of the base model, such as Apache-2.0. If not given, it is read from the model card
    or the LICENSE file in the base model's folder."""
    teacher_license: str | None = None
    """Licence of the teacher of a distillation, found in the same way."""
    data_license: str | None = None
    """Licence of the data. If not given, it is read from the card or the LICENSE file next to the
    data."""

    @model_validator(mode="after")
    def _can_fail(self) -> Self:
        if self.threshold is not None and self.threshold <= 0 and self.metric != "python":
            raise ValueError(
                f"threshold is {self.threshold:g}, which no model can miss; expected a number "
                "above 0, or no threshold"
            )
        return self
