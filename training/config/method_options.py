"""The base of a training method's options: what the line knows about it without its trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import ConfigDict, model_validator

from training.config.adapter import AdapterConfig
from training.config.checkpoints import CheckpointConfig
from training.config.tracking import TrackingConfig
from training.config.trainer import TrainerConfig
from training.data.row import Kind
from tuneline.core.config import StrictModel
from tuneline.models.source import ModelSource

OWNED = {
    "bf16": "set training.dtype",
    "fp16": "set training.dtype",
    "per_device_eval_batch_size": "set training.per_device_train_batch_size",
    "eos_token": "set training.eos_token",
    "router_aux_loss_coef": "set training.router_aux_loss_coef",
    "chat_template_path": "the model folder's chat_template.jinja is trained and served",
    "chat_template_kwargs": "set data.chat_template_kwargs",
    "dataset_num_proc": "Tuneline renders the rows",
    "truncation_mode": "no row is cut; set training.max_length",
    "max_completion_length": "only decoder models are trained",
    "is_encoder_decoder": "only decoder models are trained",
    "padding_free": "TRL 1.16 ignores it here",
    "pad_token": "the tokenizer's own padding token is used",
    "padding_value": "the tokenizer's own padding token is used",
    "model_init_kwargs": "Tuneline loads the base model; set training.dtype",
    "teacher_model_init_kwargs": "Tuneline loads the teacher as it loads the base",
    "max_tool_calling_iterations": "no tool is called in training",
    "generate_during_eval": "set evaluation for answers of the trained model",
    "log_completions": "standard output is for results",
    "log_completions_hub_repo": "a training run uploads nothing; try: tuneline push",
    "log_unique_prompts": "standard output is for results",
    "log_multimodal": "models of text are trained",
    "num_completions_to_print": "standard output is for results",
    "trust_remote_code": "no code of a model folder is run",
    "assistant_only_loss": "the loss is on answers only; set training.train_on",
    "completion_only_loss": "the loss is on answers only; set training.train_on",
    "dataset_kwargs": "Tuneline renders the rows",
    "dataset_text_field": "set data.columns",
    "eval_packing": "set training.packing",
    "packing_strategy": "whole rows are packed; none is cut",
    "shuffle_dataset": "set training.train_sampling_strategy",
}
"""Options of TRL that the frame decides, each with what to do instead."""


Makes = Literal["text", "scores", "vectors", "relevance"]
"""Text; a score of a conversation; a vector of a text; a score of a query with a passage."""


class MethodOptions(StrictModel):
    """The options of a method, and what the line knows about it without its trainer."""

    trained_by: ClassVar[str]
    """`module:attribute` of its `Method`."""
    adapter_learning_rate: ClassVar[float | None] = None
    """The learning rate of a LoRA adapter if `training.learning_rate` is not given: ten times TRL's
    own for the whole model. None for the section's default."""
    kinds: ClassVar[tuple[Kind, ...]] = ("answer",)
    """The kinds of rows that it trains on."""
    num_sequences: ClassVar[int] = 1
    """Sequences that a step computes for each row."""
    has_reference: ClassVar[bool] = False
    """Whether a step compares with the base if `beta` is above 0: with the whole model trained, a
    second model is then in memory."""
    computes_tiles: ClassVar[bool] = False
    """Whether TRL computes the logits in tiles on every machine."""
    not_shared: ClassVar[str | None] = None
    """Why several processes cannot share a step; None if they can."""
    has_expected_answers: ClassVar[bool] = True
    """Whether held-out rows have one right answer each, which exact match compares with."""
    has_token_loss: ClassVar[bool] = False
    """Whether the loss is in nats, per token of the answers."""
    compares: ClassVar[bool] = False
    """Whether the trained model is compared with its base by preference or reward."""
    makes: ClassVar[Makes] = "text"
    """The answers of the trained model to a request."""

    @property
    def answers_prompts(self) -> bool:
        """Return whether the result is a chat model; the line of another model ends with its
        evaluation, or with its served scores or vectors."""
        return self.makes == "text"

    @property
    def renders_chats(self) -> bool:
        """Return whether rows are conversations, which the chat template renders."""
        return self.makes in ("text", "scores")

    @property
    def num_sampled_tokens(self) -> int:
        """Tokens that the model itself may add to a row in training."""
        return 0

    def files(self) -> list[str]:
        """Return the files that the method reads, relative to the run.yaml."""
        return []

    def prompts(self, base: Path) -> dict[str, str]:  # noqa: ARG002 (embedding models have prompts)
        """Return the texts before a `query` and a `document`; empty for a model of text."""
        return {}

    def models(
        self,
        relative_to: Path = Path(),  # noqa: ARG002 (a distillation has models)
        *,
        download: bool = False,  # noqa: ARG002
    ) -> list[ModelSource]:
        """Return the models that the method reads besides the base.

        Raises:
            MissingError: One is not here, and `download` is false or does not find it.
        """
        return []

    def resolved(self, relative_to: Path) -> Self:  # noqa: ARG002 (GRPO has files)
        """Return the options with the paths of files as this process sees them."""
        return self


class TrlOptions(MethodOptions):
    """Options that TRL's configuration class takes, by their own names."""

    type: str

    model_config = ConfigDict(extra="allow")

    not_for_trl: ClassVar[frozenset[str]] = frozenset({"type"})

    @model_validator(mode="after")
    def _refuse_owned(self) -> Self:
        sections = (TrainerConfig, CheckpointConfig, TrackingConfig, AdapterConfig)
        keys = {name for section in sections for name in section.model_fields}
        declared = type(self).model_fields
        for name in self.model_extra or {}:
            if name in OWNED:
                raise ValueError(f"{name} is not an option of a method: {OWNED[name]}")
            if name in keys and name not in declared:
                raise ValueError(f"{name} is not an option of a method: set training.{name}")
        return self

    def for_trl(self) -> dict[str, Any]:
        """Return the options that were given, and the declared ones with their defaults."""
        values = self.model_dump(exclude=set(self.not_for_trl))
        return {name: value for name, value in values.items() if value is not None}
