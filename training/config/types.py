"""Number types that the sections share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

TrainOn = Literal["all_turns", "last_turn"]
PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
AsList = BeforeValidator(lambda value: [value] if isinstance(value, str) else value)
"""Takes one name for a list of names."""
