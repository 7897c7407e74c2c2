"""The tokens of a query with a passage, which a cross-encoder scores together.

vLLM's routes for scores and sentence-transformers' CrossEncoder read the two texts as a pair of the
tokenizer, with the separators of its own template. Both read the texts joined into one if
config.json has `use_sep_token: false`, as vLLM does. No chat template is applied: vLLM takes one
from its command line only, and sentence-transformers takes one that it finds in the folder, so a
folder of a cross-encoder has none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneline.models.folder import (
    CHAT_TEMPLATE,
    CONFIG,
    TOKENIZER_CONFIG,
    read_json,
    write_json,
)
from tuneline.models.prompts import PROMPTS_FILE
from tuneline.models.schemas import ModelConfig

SIGMOID = "torch.nn.modules.activation.Sigmoid"
"""The function that makes the score of a client from a logit."""
CROSS_ENCODER = "CrossEncoder"


@dataclass(frozen=True)
class Pair:
    """A query with a passage as token ids."""

    input_ids: list[int]
    token_types: list[int] | None = None
    """0 for each token of the query and 1 for each of the passage, for models with token types."""


def pair_reader(folder: Path, tokenizer: Any) -> Callable[[str, str], Pair]:
    """Return a function of a query and a passage that gives their tokens.

    Args:
        folder: The model folder, whose config.json may turn the separators off.

    Raises:
        ArtifactError: config.json cannot be read.
    """
    config = read_json(folder / CONFIG, ModelConfig)
    is_pair = config.get("use_pad_token", config.get("use_sep_token", True))
    has_types = (config.get("type_vocab_size") or 0) > 1

    def read(query: str, passage: str) -> Pair:
        found = tokenizer(query, passage) if is_pair else tokenizer(query + passage)
        types = found.get("token_type_ids") if has_types else None
        return Pair(list(found["input_ids"]), types if types is None else list(types))

    return read


def write_cross_encoder(folder: Path) -> None:
    """Write the file by which sentence-transformers and a merge know a cross-encoder, and remove
    the chat template, with which sentence-transformers would render the pairs.

    Raises:
        ArtifactError: The tokenizer's configuration cannot be read.
    """
    (folder / CHAT_TEMPLATE).unlink(missing_ok=True)
    path = folder / TOKENIZER_CONFIG
    if path.is_file():
        known = read_json(path)
        if known.pop("chat_template", None) is not None:
            write_json(path, known)
    values: dict[str, Any] = {
        "model_type": CROSS_ENCODER, "activation_fn": SIGMOID, "prompts": {},
        "default_prompt_name": None,
    }  # fmt: skip
    write_json(folder / PROMPTS_FILE, values)


def cross_encoder_settings(base: Mapping[str, Any]) -> dict[str, Any]:
    """Return what config.json says of a cross-encoder: a client gets the sigmoid of the score.

    Args:
        base: The base's config.json. A problem type in it would choose another function in vLLM.
    """
    named = {"sentence_transformers": {"activation_fn": SIGMOID}}
    return {**named, "problem_type": None} if base.get("problem_type") else named


def is_cross_encoder(folder: Path) -> bool:
    """Return whether the files of a folder say that it scores pairs of texts."""
    path = folder / PROMPTS_FILE
    return path.is_file() and read_json(path).get("model_type") == CROSS_ENCODER
