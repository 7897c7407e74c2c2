"""The `merge` and `parity` sections of a run."""

from __future__ import annotations

from typing import Literal

from tuneline.core.config import StrictModel
from tuneline.core.parity import Tolerances

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


class MergeConfig(StrictModel):
    """How an adapter is merged into its base."""

    dtype: Dtype = "auto"
    """Number format of the merged weights; `auto` keeps each tensor in its base's format."""


class ParityConfig(StrictModel):
    """What a form of the model may differ by from the reference."""

    tolerances: Tolerances | None = None
    """None takes the default of the number format that the weights are stored in; see
    docs/parity.md."""
