"""The files next to an adapter: tokenizer, chat template, stop tokens, the base's licence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tuneline.models.companion_files import copy_licenses, copy_tokenizer
from tuneline.models.folder import CHAT_TEMPLATE, GENERATION_CONFIG, read_json, write_json
from tuneline.models.schemas import GenerationConfig


def write_companion_files(
    base: Path, folder: Path, chat_template: str | None, stop_ids: Sequence[int]
) -> None:
    """Copy the base's tokenizer and its licence, and write the template and all stop tokens.

    Args:
        chat_template: None for a model that writes no text; it has no stop tokens either.

    Raises:
        ArtifactError: A file of the base cannot be read.
    """
    copy_tokenizer(base, folder)
    copy_licenses(base, folder)
    if chat_template is None:
        return
    (folder / CHAT_TEMPLATE).write_text(chat_template, encoding="utf-8")
    generation = {}
    if (base / GENERATION_CONFIG).is_file():
        generation = read_json(base / GENERATION_CONFIG, GenerationConfig)
    write_json(folder / GENERATION_CONFIG, {**generation, "eos_token_id": list(stop_ids)})
