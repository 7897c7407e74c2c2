"""The schemas of a model folder's JSON files, as far as Tuneline reads them.

The files come from anywhere. A value of another type is refused here, with its name, so that later
code need not check.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import pydantic
from pydantic import AfterValidator, Field, FiniteFloat, PositiveInt

from tuneline.core.config import first_problem
from tuneline.core.errors import ArtifactError


class JsonForm(pydantic.BaseModel):
    """The part of a file that is read. Other keys are ignored."""

    model_config = pydantic.ConfigDict(strict=True, extra="ignore", protected_namespaces=())


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"not a pattern: {error}") from None
    return pattern


Pattern = Annotated[str, AfterValidator(_compiles)]
Names = list[Annotated[str, Field(min_length=1)]]
TokenIds = list[int]


class TextConfig(JsonForm):
    """The part of config.json on text layers; a model of text and pictures has it in a section."""

    num_hidden_layers: PositiveInt | None = None
    vocab_size: int | None = None
    tie_word_embeddings: bool | None = None


class ModelConfig(TextConfig):
    """config.json of a model."""

    model_type: str
    architectures: list[str] | None = None
    text_config: TextConfig | None = None
    quantization_config: dict[str, Any] | None = None


class ShardIndex(JsonForm):
    """model.safetensors.index.json."""

    weight_map: dict[str, str] = Field(min_length=1)
    metadata: dict[str, Any] | None = None


class Vocabulary(JsonForm):
    """The model in tokenizer.json; a unigram model lists its pieces in the order of their ids."""

    vocab: dict[str, int] | list[Any] = Field(default={})


class AddedToken(JsonForm):
    id: int


class TokenizerFile(JsonForm):
    """tokenizer.json."""

    model: Vocabulary
    added_tokens: list[AddedToken] | None = None


class TokenizerConfig(JsonForm):
    """tokenizer_config.json."""

    tokenizer_class: str | None = None
    chat_template: str | list[dict[str, Any]] | None = None


class GenerationConfig(JsonForm):
    """generation_config.json."""

    eos_token_id: int | TokenIds | None = None
    temperature: FiniteFloat | None = None
    top_p: FiniteFloat | None = None
    top_k: int | None = None
    min_p: FiniteFloat | None = None
    repetition_penalty: FiniteFloat | None = None
    presence_penalty: FiniteFloat | None = None
    frequency_penalty: FiniteFloat | None = None
    max_new_tokens: int | None = None


def check_form(path: Path, value: dict[str, Any], form: type[JsonForm]) -> None:
    """Check the values of a file against its schema.

    Raises:
        ArtifactError: A value is missing or of another type; the first is named.
    """
    try:
        form.model_validate(value)
    except pydantic.ValidationError as error:
        found = repr(error.errors(include_url=False)[0]["input"])
        found = f", found {found}" if len(found) <= 80 else ""
        raise ArtifactError(f"{path}: {first_problem(error)}{found}") from None
