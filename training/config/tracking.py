"""The keys of the `training` section about what others see while a model trains."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from training.config.types import AsList
from tuneline.core.config import StrictModel

TrackerName = Literal["tensorboard", "mlflow", "wandb"]


class TrackingConfig(StrictModel):
    """Trackers and metrics of a training in progress; none of them changes or ends it."""

    report_to: Annotated[list[TrackerName], AsList] = Field(
        default=["tensorboard"], json_schema_extra={"keyed": False}
    )
    """Trackers that get every figure; with `[]` nothing is written but the artifact. `tensorboard`
    writes into `tracking/` next to the adapter, and `curves.png` is drawn there at the end.
    `mlflow` and `wandb` need their packages and read their own environment variables, such as
    `MLFLOW_TRACKING_URI` and `WANDB_PROJECT`."""
    prometheus_port: Annotated[int, Field(ge=1, le=65535)] | None = Field(
        default=None, json_schema_extra={"keyed": False}
    )
    """Serve the figures of the newest step at `http://127.0.0.1:PORT/metrics` while it trains."""

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        repeated = sorted({name for name in self.report_to if self.report_to.count(name) > 1})
        if repeated:
            raise ValueError(f"report_to: {repeated[0]} appears twice")
        return self
