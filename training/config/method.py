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
from training.data.row import Kind
from tuneline.core.config import StrictModel
from tuneline.models.source import ModelSource, find_model

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

DpoLoss = Literal[
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot",
    "aot_unpaired", "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
]  # fmt: skip


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
    answers_prompts: ClassVar[bool] = True
    """Whether the result is a chat model; the line of another model ends with its evaluation."""

    @property
    def num_sampled_tokens(self) -> int:
        """Tokens that the model itself may add to a row in training."""
        return 0

    def files(self) -> list[str]:
        """Return the files that the method reads, relative to the run.yaml."""
        return []

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


class SftConfig(TrlOptions):
    """Supervised fine-tuning: the loss is on the answers only."""

    trained_by: ClassVar[str] = "training.methods.sft:SFT"
    kinds: ClassVar[tuple[Kind, ...]] = ("answer", "text")
    has_token_loss: ClassVar[bool] = True

    type: Literal["sft"] = "sft"


class DpoConfig(TrlOptions):
    """Preference pairs: the chosen answer becomes likelier than the rejected one (DPO)."""

    trained_by: ClassVar[str] = "training.methods.dpo:DPO"
    adapter_learning_rate: ClassVar[float | None] = 2e-5
    kinds: ClassVar[tuple[Kind, ...]] = ("preference",)
    num_sequences: ClassVar[int] = 2
    has_reference: ClassVar[bool] = True
    computes_tiles: ClassVar[bool] = True
    compares: ClassVar[bool] = True

    type: Literal["dpo"]
    beta: PositiveFloat = 0.1
    """How closely the model stays to the base: larger is closer."""
    loss_type: Annotated[list[DpoLoss], AsList, Field(min_length=1)] = Field(default=["sigmoid"])
    """The loss, or several losses with `loss_weights`; `sigmoid` is DPO itself."""


class OrpoConfig(TrlOptions):
    """Preference pairs without a reference model: answers and preference in one loss (ORPO)."""

    trained_by: ClassVar[str] = "training.methods.orpo:ORPO"
    adapter_learning_rate: ClassVar[float | None] = 5e-5
    kinds: ClassVar[tuple[Kind, ...]] = ("preference",)
    num_sequences: ClassVar[int] = 2
    compares: ClassVar[bool] = True

    type: Literal["orpo"]
    beta: PositiveFloat = 0.1
    """Weight of the preference in the loss."""


class KtoConfig(TrlOptions):
    """Single answers, each labelled good or bad (KTO)."""

    trained_by: ClassVar[str] = "training.methods.kto:KTO"
    adapter_learning_rate: ClassVar[float | None] = 2e-5
    kinds: ClassVar[tuple[Kind, ...]] = ("label",)
    has_reference: ClassVar[bool] = True
    computes_tiles: ClassVar[bool] = True
    not_shared: ClassVar[str | None] = (
        "its KL term compares the answers of one batch, and would be another with each number of "
        "processes"
    )
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


class SampledOptions(TrlOptions):
    """Options of a method that trains on answers which the model itself gives."""

    kinds: ClassVar[tuple[Kind, ...]] = ("prompt", "answer")
    computes_tiles: ClassVar[bool] = True

    max_completion_length: PositiveInt = 256
    """Longest answer, in tokens."""
    temperature: PositiveFloat = 1.0
    """Of the answers that are sampled."""

    @property
    def answers_per_prompt(self) -> int:
        """Return how often a prompt is answered in a step."""
        return 1

    @property
    def num_sampled_tokens(self) -> int:
        return self.max_completion_length

    def rows_at_once(self, batch_size: int, num_batches: int) -> int:
        """Return how many answers are generated at once, as TRL counts them."""
        return batch_size * num_batches


class GrpoConfig(SampledOptions):
    """Prompts and a reward: the model's own answers are compared with one another (GRPO)."""

    not_for_trl: ClassVar[frozenset[str]] = frozenset({"type", "reward_funcs"})
    trained_by: ClassVar[str] = "training.methods.grpo:GRPO"
    adapter_learning_rate: ClassVar[float | None] = 1e-5
    has_reference: ClassVar[bool] = True
    not_shared: ClassVar[str | None] = (
        "each process would sample its own answers, and the rewards of a group would be spread "
        "over processes"
    )
    compares: ClassVar[bool] = True
    has_expected_answers: ClassVar[bool] = False

    type: Literal["grpo"]
    reward_funcs: Annotated[list[str], AsList, Field(min_length=1)]
    """Python functions as `file.py:function`, relative to the run.yaml, with TRL's signature:
    `function(prompts, completions, completion_ids, **columns)` returns one number per answer."""
    num_generations: Annotated[int, Field(ge=2)] = 8
    """Answers per prompt; the number of rows of an optimizer step is a multiple of it."""
    beta: Annotated[float, Field(ge=0)] = 0.0
    """How closely the model stays to the base; 0 computes no reference."""

    @model_validator(mode="after")
    def _check_reward_funcs(self) -> Self:
        for name in self.reward_funcs:
            path, colon, function = name.rpartition(":")
            if not (colon and path.endswith(".py") and function.isidentifier()):
                raise ValueError(f"reward_funcs: {name!r} is not file.py:function")
        return self

    @property
    def answers_per_prompt(self) -> int:
        return self.num_generations

    def rows_at_once(self, batch_size: int, num_batches: int) -> int:
        given = self.for_trl()
        if "generation_batch_size" in given:
            return int(given["generation_batch_size"])
        return batch_size * int(given.get("steps_per_generation", num_batches))

    def files(self) -> list[str]:
        return list(dict.fromkeys(name.rpartition(":")[0] for name in self.reward_funcs))

    def resolved(self, relative_to: Path) -> Self:
        names = [str(relative_to / name) for name in self.reward_funcs]
        return self.model_copy(update={"reward_funcs": names})


class DistillationConfig(SampledOptions):
    """Prompts and a teacher: on the model's own answers, its next tokens become as likely as the
    teacher's (on-policy distillation)."""

    not_for_trl: ClassVar[frozenset[str]] = frozenset(
        {"type", "teacher_model_name_or_path", "teacher_model_revision"}
    )
    trained_by: ClassVar[str] = "training.methods.distillation:DISTILLATION"
    adapter_learning_rate: ClassVar[float | None] = 1e-5
    has_token_loss: ClassVar[bool] = True
    not_shared: ClassVar[str | None] = "each process would sample its own answers"

    type: Literal["distillation"]
    teacher_model_name_or_path: str
    """A model with the tokens of the base model: a folder, relative to the run.yaml, or a Hugging
    Face id."""
    teacher_model_revision: str | None = None
    """Branch, tag or commit of a Hugging Face id."""
    beta: Annotated[float, Field(ge=0, le=1)] = 1.0
    """The divergence: 1 is the reverse KL, which takes what the teacher is sure of; 0 is the
    forward KL, which covers all that the teacher may say; between them, Jensen-Shannon."""

    def models(self, relative_to: Path = Path(), *, download: bool = False) -> list[ModelSource]:
        name, revision = self.teacher_model_name_or_path, self.teacher_model_revision
        found = find_model(name, relative_to=relative_to, revision=revision, download=download)
        return [found]

    def resolved(self, relative_to: Path) -> Self:
        folder = relative_to / self.teacher_model_name_or_path
        if not folder.is_dir():
            return self
        return self.model_copy(update={"teacher_model_name_or_path": str(folder.resolve())})


class RewardConfig(TrlOptions):
    """A reward model: a score for an answer, learned from preference pairs."""

    trained_by: ClassVar[str] = "training.methods.reward:REWARD"
    adapter_learning_rate: ClassVar[float | None] = 1e-4
    kinds: ClassVar[tuple[Kind, ...]] = ("preference",)
    num_sequences: ClassVar[int] = 2
    compares: ClassVar[bool] = True
    answers_prompts: ClassVar[bool] = False

    type: Literal["reward"]
    center_rewards_coefficient: PositiveFloat | None = None
    """Draws the mean of the scores to zero; 0.01 is usual."""


MethodConfig = Annotated[
    SftConfig | DpoConfig | OrpoConfig | KtoConfig | GrpoConfig | DistillationConfig | RewardConfig,
    Field(discriminator="type"),
]
"""The options of one method, told apart by `type`."""

METHODS: dict[str, type[MethodOptions]] = {
    "sft": SftConfig,
    "dpo": DpoConfig,
    "orpo": OrpoConfig,
    "kto": KtoConfig,
    "grpo": GrpoConfig,
    "distillation": DistillationConfig,
    "reward": RewardConfig,
}
"""For each `type`, its options. Of several methods for a kind of rows, the usual one is first."""
