"""The teacher of a distillation: what it must have in common with the base model."""

from __future__ import annotations

from typing import Any

from training.config import TrainingConfig
from training.config.method import DistillationConfig
from training.model import load_base, resolve_dtype
from training.rendering.turns import render_turn
from tuneline.core.errors import ArtifactError, ConfigError, DataError
from tuneline.core.progress import logger
from tuneline.models.context import require_context
from tuneline.models.load import check_model
from tuneline.models.network import read_network
from tuneline.models.source import ModelSource
from tuneline.models.stop_tokens import served_stop_ids
from tuneline.models.tokenizer import load_tokenizer
from tuneline.models.vectors import writes_text

KEY = "training.method.teacher_model_name_or_path"
EXCHANGE = ({"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hello"})


def check_teacher(config: TrainingConfig, base: ModelSource, tokenizer: Any) -> None:
    """Check that the teacher gives probabilities to the tokens that the base model gives them to.

    Raises:
        ConfigError: It has other tokens, ends its answers otherwise, or is the base model itself.
        ArtifactError: It cannot be loaded, or writes no text.
        DataError: It takes fewer tokens than `max_length`.
    """
    teacher = teacher_of(config)
    if teacher.digest == base.digest and not config.load_in_4bit:
        raise ConfigError(
            f"{KEY}: {teacher.name} is the base model itself, so there is nothing to learn",
            hint="Give a larger or a tuned model. With training.load_in_4bit: true the base model "
            "can teach its own 4-bit form.",
        )
    if not writes_text(teacher.path):
        raise ArtifactError(
            f"teacher {teacher.name}: is a model of vectors or scores; expected a model that "
            "writes text",
            hint=f"Set {KEY} to a causal language model.",
        )
    check_model(teacher.path, f"teacher {teacher.name}")
    own = load_tokenizer(teacher.path)
    ours, theirs = tokenizer.get_vocab(), own.get_vocab()
    if ours != theirs:
        token = min(ours.items() ^ theirs.items(), key=lambda entry: entry[::-1])[0]
        raise ConfigError(
            f"{KEY}: {teacher.name} has other tokens than "
            f"the base model {base.name}, the first {token!r} (id {theirs.get(token)}, in the base "
            f"model {ours.get(token)}); a distillation compares probabilities token by token",
            hint="Choose a teacher of the base model's family, or train on the teacher's answers: "
            "training.method: {type: sft}.",
        )
    _require_sizes(base, teacher, len(tokenizer))
    _require_same_end(config, base, tokenizer, teacher, own)
    if tokenizer.chat_template != own.chat_template:
        logger.warning(
            "  the chat template of teacher %s is another one: it reads prompts in a form that it "
            "was not trained on", teacher.name,
        )  # fmt: skip
    require_context(teacher, config.max_length)


def load_teacher(config: TrainingConfig, num_rows: int) -> Any:
    """Return the teacher, whose output head has at most `num_rows` rows.

    Raises:
        ArtifactError: It cannot be loaded.
    """
    teacher = teacher_of(config)
    network = load_base(teacher, resolve_dtype(config.dtype), what=f"teacher {teacher.name}")
    if network.get_output_embeddings().weight.shape[0] > num_rows:
        network.resize_token_embeddings(num_rows)
    return network.requires_grad_(False)


def teacher_of(config: TrainingConfig) -> ModelSource:
    """Return the teacher that a configuration names."""
    options = config.method
    assert isinstance(options, DistillationConfig)  # noqa: S101 (for the type checker)
    return options.models()[0]


def _require_sizes(base: ModelSource, teacher: ModelSource, num_tokens: int) -> None:
    """Check the rows of the output heads; families pad them to different multiples.

    Raises:
        ConfigError: The teacher's head cannot be cut to the rows of the base model's.
    """
    try:
        ours, theirs = (read_network(model.path).vocab_size for model in (base, teacher))
    except ArtifactError:
        return  # files that name no sizes; the trainer compares
    if theirs < ours or (theirs > ours and ours < num_tokens):
        raise ConfigError(
            f"{KEY}: the output head of {teacher.name} has "
            f"{theirs:,} rows, and that of the base model {base.name} has {ours:,}; a larger head "
            f"of a teacher is cut, if the rows after the {num_tokens:,} tokens are padding, and a "
            "smaller one is not filled up",
            hint="Choose another teacher of the base model's family.",
        )


def _require_same_end(
    config: TrainingConfig, base: ModelSource, tokenizer: Any, teacher: ModelSource, own: Any
) -> None:
    """Check that the base model stops where the teacher ends an answer.

    An instruct model often ends answers with a token at which its own base model does not stop. The
    student would learn to write that token, and go on after it.

    Raises:
        ConfigError: It does not.
    """
    theirs = frozenset(served_stop_ids(teacher.path, own))
    try:
        end = render_turn(own, EXCHANGE, (), theirs, "").input_ids[-1]
    except (ConfigError, DataError):
        return  # a teacher without a chat template, or whose template ends no answer
    if end in served_stop_ids(base.path, tokenizer, config.eos_token):
        return
    token = own.convert_ids_to_tokens(end)
    raise ConfigError(
        f"{KEY}: {teacher.name} ends its answers with {token!r}, at which the base model "
        f"{base.name} does not stop: it would learn to write this token, and go on after it",
        hint=f"Set training.eos_token: {token!r}. Training and serving then use it as a stop "
        "token too.",
    )
