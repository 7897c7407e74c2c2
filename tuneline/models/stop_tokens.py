"""The tokens that end an answer.

Two readers of one folder differ. transformers stops at the tokens of generation_config.json. vLLM
stops at those and at the tokenizer's own end token.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tuneline.core.errors import ConfigError
from tuneline.models.folder import CONFIG, GENERATION_CONFIG, read_json
from tuneline.models.schemas import GenerationConfig


def folder_stop_ids(folder: Path) -> frozenset[int]:
    """Return the stop tokens of generation_config.json, or of config.json without that file.

    Raises:
        ArtifactError: A file cannot be read.
    """
    for name in (GENERATION_CONFIG, CONFIG):
        if (folder / name).is_file():
            return as_stop_ids(read_json(folder / name, GenerationConfig).get("eos_token_id"))
    return frozenset()


def served_stop_ids(folder: Path, tokenizer: Any, eos_token: str | None = None) -> list[int]:
    """Return every token at which a server stops, sorted, with `eos_token` if it is given.

    Raises:
        ArtifactError: A file cannot be read.
        ConfigError: `eos_token` is not in the vocabulary.
    """
    found = set(folder_stop_ids(folder))
    if tokenizer.eos_token_id is not None:
        found.add(tokenizer.eos_token_id)
    if eos_token is not None:
        if eos_token not in tokenizer.get_vocab():
            raise ConfigError(f"training.eos_token: {eos_token!r} is not a token of the vocabulary")
        found.add(tokenizer.convert_tokens_to_ids(eos_token))
    return sorted(found)


def as_stop_ids(eos_token_id: int | list[int] | None) -> frozenset[int]:
    """Return `eos_token_id` as a set; configurations hold one id, several, or none."""
    if eos_token_id is None:
        return frozenset()
    return frozenset([eos_token_id] if isinstance(eos_token_id, int) else eos_token_id)
