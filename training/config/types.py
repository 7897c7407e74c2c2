"""Number types that the sections share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

TrainOn = Literal["all_turns", "last_turn"]
PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
