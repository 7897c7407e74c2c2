"""The training methods: the options of each, and the module that implements it.

A new method is a class and a row here, and one file in `training/methods/`. A method that TRL
trains takes every option of TRL's configuration class by its own name: those that are declared
here have a description, and `training.methods.options` checks the others against the installed TRL.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from training.config.method_options import Makes, MethodOptions, TrlOptions
from training.config.types import AsList, PositiveFloat, PositiveInt
from training.data.row import Kind
from tuneline.models.prompts import read_prompts
from tuneline.models.source import ModelSource, find_model

DpoLoss = Literal[
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot",
    "aot_unpaired", "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
]  # fmt: skip


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
    """Of the answers that are sampled. The loss reads probabilities at this temperature too."""

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
        return self.taught_by(folder.resolve()) if folder.is_dir() else self

    def taught_by(self, folder: Path) -> Self:
        """Return the options with the teacher of a folder."""
        return self.model_copy(update={"teacher_model_name_or_path": str(folder)})


class RewardConfig(TrlOptions):
    """A reward model: a score for an answer, learned from preference pairs."""

    trained_by: ClassVar[str] = "training.methods.reward:REWARD"
    adapter_learning_rate: ClassVar[float | None] = 1e-4
    kinds: ClassVar[tuple[Kind, ...]] = ("preference",)
    num_sequences: ClassVar[int] = 2
    compares: ClassVar[bool] = True
    makes: ClassVar[Makes] = "scores"

    type: Literal["reward"]
    center_rewards_coefficient: PositiveFloat | None = None
    """Draws the mean of the scores to zero; 0.01 is usual."""


class EmbeddingConfig(MethodOptions):
    """An embedding model: a query's vector comes near those of the passages that answer it."""

    trained_by: ClassVar[str] = "training.methods.embedding:EMBEDDING"
    adapter_learning_rate: ClassVar[float | None] = 1e-4
    kinds: ClassVar[tuple[Kind, ...]] = ("retrieval",)
    num_sequences: ClassVar[int] = 2
    not_shared: ClassVar[str | None] = "each process would compare its own rows only"
    has_expected_answers: ClassVar[bool] = False
    makes: ClassVar[Makes] = "vectors"

    type: Literal["embedding"]
    scale: PositiveFloat = 20.0
    """The cosines are multiplied by it: 1 / temperature. Larger numbers look at the nearest wrong
    passages only."""
    pooling: Literal["cls", "lasttoken", "mean"] | None = None
    """How the states of a text's tokens become its vector; the base's own if not given."""
    query_prompt: str | None = None
    """Text before every query; the base's own prompt `query` if not given, else none. Clients send
    it with their queries: a server adds none."""
    document_prompt: str | None = None
    """Text before every passage; the base's own prompt `document` or `passage` if not given."""

    def prompts(self, base: Path) -> dict[str, str]:
        """Return the text before each `query` and each `document`.

        Raises:
            ArtifactError: The base's file of prompts cannot be read.
        """
        own = {"query": self.query_prompt, "document": self.document_prompt}
        return read_prompts(base) | {name: text for name, text in own.items() if text is not None}


class RerankerConfig(MethodOptions):
    """A reranker: a score for a query and a passage that are read together (a cross-encoder)."""

    trained_by: ClassVar[str] = "training.methods.reranker:RERANKER"
    adapter_learning_rate: ClassVar[float | None] = 1e-4
    kinds: ClassVar[tuple[Kind, ...]] = ("retrieval",)
    num_sequences: ClassVar[int] = 2
    not_shared: ClassVar[str | None] = "it is not measured with several processes"
    has_expected_answers: ClassVar[bool] = False
    makes: ClassVar[Makes] = "relevance"

    type: Literal["reranker"]
    loss: Literal["softmax", "bce"] = "softmax"
    """`softmax` compares each passage that answers the query with the negatives of its row; `bce`
    judges each passage for itself, and takes rows without negatives too."""


MethodConfig = Annotated[
    SftConfig
    | DpoConfig
    | OrpoConfig
    | KtoConfig
    | GrpoConfig
    | DistillationConfig
    | RewardConfig
    | EmbeddingConfig
    | RerankerConfig,
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
    "embedding": EmbeddingConfig,
    "reranker": RerankerConfig,
}
"""For each `type`, its options. Of several methods for a kind of rows, the usual one is first."""
