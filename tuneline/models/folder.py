"""The files of a transformers model folder: their names, and their JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tuneline.core.errors import ArtifactError
from tuneline.models.schemas import JsonForm, ShardIndex, check_form

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
CHAT_TEMPLATE = "chat_template.jinja"
TOKENIZER_CONFIG = "tokenizer_config.json"


def read_json(path: Path, form: type[JsonForm] | None = None) -> dict[str, Any]:
    """Return the JSON object of a file.

    Raises:
        ArtifactError: The file is missing, is not a JSON object, or does not fit the schema.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        raise ArtifactError(f"{path}: no such file") from None
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, too deep, too many digits
        raise ArtifactError(f"{path}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ArtifactError(f"{path}: expected a JSON object")
    if form is not None:
        check_form(path, value, form)
    return value


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a model's weights, as transformers finds them.

    A folder may hold the same weights once more in another format, such as Mistral's
    `consolidated.safetensors`, or an adapter.

    Raises:
        ArtifactError: The index cannot be read.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if (folder / INDEX).is_file():
        names = read_json(folder / INDEX, ShardIndex)["weight_map"].values()
        return [folder / name for name in sorted({Path(name).name for name in names})]
    return sorted(folder.glob("*.safetensors"))


def served_weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files that vLLM 0.32 reads (`DefaultModelLoader._prepare_weights`).

    They are Mistral's own files if the folder has any, else all files; of these, the ones that the
    index names if there is an index.

    Raises:
        ArtifactError: The index cannot be read.
    """
    found = sorted(folder.glob("consolidated*.safetensors"))
    index = folder / ("consolidated.safetensors.index.json" if found else INDEX)
    found = found or sorted(folder.glob("*.safetensors"))
    if index.is_file():
        named = set(read_json(index, ShardIndex)["weight_map"].values())
        found = [path for path in found if path.name in named]
    return found


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON object, indented, with characters beyond ASCII as they are."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
