"""The keys of the `data` section that say how conversations are rendered."""

from __future__ import annotations

import datetime
import re
from typing import Any, Literal

from pydantic import Field, JsonValue, field_validator

from tuneline.core.config import StrictModel
from tuneline.models.template import TemplateSettings

RENDERING_ARGUMENTS = frozenset({
    "add_generation_prompt", "chat_template", "continue_final_message", "conversation", "documents",
    "max_length", "messages", "padding", "return_assistant_tokens_mask", "return_dict",
    "return_tensors", "strftime_now", "tokenize", "tokenizer_kwargs", "tools", "truncation",
})  # fmt: skip
"""Arguments that every rendering sets itself; a run cannot set them."""


class TemplateConfig(StrictModel):
    """The chat template with its variables and its date, for every stage and the trained model."""

    chat_template: Literal["alpaca"] | None = None
    """The chat template of a base model whose tokenizer has none. It is trained, and written into
    the trained model's folder, so that it is served too. `alpaca` is the prompt of Stanford Alpaca,
    `### Instruction:` and `### Response:`."""
    chat_template_kwargs: dict[str, JsonValue] = Field(default={})
    """Variables of the chat template, such as `{enable_thinking: false}`, in training, evaluation
    and every proof. The trained model's own template has them as defaults, so that every server
    renders the same; a request may still set them."""
    chat_template_date: datetime.date | None = None
    """The day that a chat template which writes today's date writes, also in the trained model. If
    not given, training, evaluation and proofs use the day on which the dataset was made, and the
    trained model writes the day of each request."""

    @field_validator("chat_template_kwargs")
    @classmethod
    def _check_names(cls, kwargs: dict[str, Any]) -> dict[str, Any]:
        for name in kwargs:
            if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
                raise ValueError(f"{name!r} is not the name of a variable")
            if name in RENDERING_ARGUMENTS:
                raise ValueError(f"{name} is not a variable that a run can set")
        return kwargs

    def template_settings(self, today: datetime.date) -> TemplateSettings:
        """Return how the run's conversations are rendered if its dataset is made today."""
        return TemplateSettings(
            kwargs=self.chat_template_kwargs,
            date=self.chat_template_date or today,
            serves_date=self.chat_template_date is not None,
            named=self.chat_template,
        )
