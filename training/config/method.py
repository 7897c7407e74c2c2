"""The training methods: the options of each, and the module that implements it.

A new method is a class and a row here, and one file in `training/methods/`. A method that TRL
trains takes every option of TRL's configuration class by its own name: those that are declared
here have a description, and `training.methods.options` checks the others against the installed TRL.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from training.config.adapter import AdapterConfig
from training.config.checkpoints import CheckpointConfig
from training.config.tracking import TrackingConfig
from training.config.trainer import TrainerConfig
from training.config.types import AsList, PositiveFloat, PositiveInt
from tuneline.core.config import StrictModel

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

DpoLoss = Literal[
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot",
    "aot_unpaired", "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
]  # fmt: skip


class MethodOptions(StrictModel):
    """The options of a method, and how a line goes on after it."""

    has_expected_answers: ClassVar[bool] = True
    """Whether held-out rows have one right answer each, which exact match compares with."""
    compares: ClassVar[bool] = False
    """Whether the trained model is compared with its base by preference or reward."""
    answers_prompts: ClassVar[bool] = True
    """Whether the result is a chat model; the line of another model ends with its evaluation."""

    @property
    def num_sampled_tokens(self) -> int:
        """Tokens that the model itself may add to a row in training."""
        return 0

    def files(self) -> list[str]:
        """Return the files that the method reads, relative to the run.yaml."""
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


class SftConfig(TrlOptions):
    """Supervised fine-tuning: the loss is on the answers only."""

    type: Literal["sft"] = "sft"


class DpoConfig(TrlOptions):
    """Preference pairs: the chosen answer becomes likelier than the rejected one (DPO)."""

    compares: ClassVar[bool] = True

    type: Literal["dpo"]
    beta: PositiveFloat = 0.1
    """How closely the model stays to the base: larger is closer."""
    loss_type: Annotated[list[DpoLoss], AsList, Field(min_length=1)] = Field(default=["sigmoid"])
    """The loss, or several losses with `loss_weights`; `sigmoid` is DPO itself."""


class OrpoConfig(TrlOptions):
    """Preference pairs without a reference model: answers and preference in one loss (ORPO)."""

    compares: ClassVar[bool] = True

    type: Literal["orpo"]
    beta: PositiveFloat = 0.1
    """Weight of the preference in the loss."""


class KtoConfig(TrlOptions):
    """Single answers, each labelled good or bad (KTO)."""

    compares: ClassVar[bool] = True
    has_expected_answers: ClassVar[bool] = False

    type: Literal["kto"]
    beta: PositiveFloat = 0.1
    """How closely the model stays to the base: larger is closer."""
    loss_type: Literal["kto", "apo_zero_unpaired"] = "kto"
    """`apo_zero_unpaired` compares with the base only, not with other answers of the batch."""
    desirable_weight: PositiveFloat = 1.0
    """Weight of the good answers; balance it against their number."""
    undesirable_weight: PositiveFloat = 1.0
    """Weight of the bad answers."""


class GrpoConfig(TrlOptions):
    """Prompts and a reward: the model's own answers are compared with one another (GRPO)."""

    not_for_trl: ClassVar[frozenset[str]] = frozenset({"type", "reward_funcs"})
    compares: ClassVar[bool] = True
    has_expected_answers: ClassVar[bool] = False

    type: Literal["grpo"]
    reward_funcs: Annotated[list[str], AsList, Field(min_length=1)]
    """Python functions as `file.py:function`, relative to the run.yaml, with TRL's signature:
    `function(prompts, completions, completion_ids, **columns)` returns one number per answer."""
    num_generations: Annotated[int, Field(ge=2)] = 8
    """Answers per prompt; the number of rows of an optimizer step is a multiple of it."""
    max_completion_length: PositiveInt = 256
    """Longest answer, in tokens."""
    beta: Annotated[float, Field(ge=0)] = 0.0
    """How closely the model stays to the base; 0 computes no reference."""
    temperature: PositiveFloat = 1.0
    """Of the answers that are compared."""

    @model_validator(mode="after")
    def _check_reward_funcs(self) -> Self:
        for name in self.reward_funcs:
            path, colon, function = name.rpartition(":")
            if not (colon and path.endswith(".py") and function.isidentifier()):
                raise ValueError(f"reward_funcs: {name!r} is not file.py:function")
        return self

    @property
    def num_sampled_tokens(self) -> int:
        return self.max_completion_length

    def files(self) -> list[str]:
        return list(dict.fromkeys(name.rpartition(":")[0] for name in self.reward_funcs))

    def resolved(self, relative_to: Path) -> Self:
        names = [str(relative_to / name) for name in self.reward_funcs]
        return self.model_copy(update={"reward_funcs": names})


class RewardConfig(TrlOptions):
    """A reward model: a score for an answer, learned from preference pairs."""

    compares: ClassVar[bool] = True
    answers_prompts: ClassVar[bool] = False

    type: Literal["reward"]
    center_rewards_coefficient: PositiveFloat | None = None
    """Draws the mean of the scores to zero; 0.01 is usual."""


MethodConfig = Annotated[
    SftConfig | DpoConfig | OrpoConfig | KtoConfig | GrpoConfig | RewardConfig,
    Field(discriminator="type"),
]
"""The options of one method, told apart by `type`."""

METHODS = {
    "sft": "training.methods.sft:SFT",
    "dpo": "training.methods.dpo:DPO",
    "orpo": "training.methods.orpo:ORPO",
    "kto": "training.methods.kto:KTO",
    "grpo": "training.methods.grpo:GRPO",
    "reward": "training.methods.reward:REWARD",
}
"""For each `type`, the `module:attribute` of its `Method`."""

LEARNING_RATES = {"dpo": 2e-5, "orpo": 5e-5, "kto": 2e-5, "grpo": 1e-5, "reward": 1e-4}
"""For each `type`, the learning rate of a LoRA adapter if `training.learning_rate` is not given;
ten times TRL's own for the whole model."""
