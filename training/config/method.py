"""The training methods: the options of each, and the module that implements it.

A new method is a class and a row here, and one file in `training/methods/`.
"""

from __future__ import annotations

from typing import Literal

from tuneline.core.config import StrictModel


class SftConfig(StrictModel):
    """Supervised fine-tuning: the loss is on the answers only."""

    type: Literal["sft"] = "sft"


MethodConfig = SftConfig
"""The options of one method, told apart by `type`."""

METHODS = {"sft": "training.methods.sft:SFT"}
"""For each `type`, the `module:attribute` of its `Method`."""
