"""Code of its own that a model folder names (`auto_map`). Tuneline runs none and copies none."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tuneline.core.environment import require
from tuneline.core.progress import logger
from tuneline.models.folder import CONFIG, read_json, write_json
from tuneline.models.schemas import ModelConfig

CODE_KEYS = ("auto_map", "custom_pipelines")
"""Keys of a folder's JSON files that name code for a loader to run."""


def code_keys(value: Any) -> Iterator[str]:
    """Yield the keys that name code, also those of nested configurations such as `text_config`."""
    if isinstance(value, dict):
        yield from (key for key in CODE_KEYS if value.get(key))
        for inner in value.values():
            yield from code_keys(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from code_keys(inner)


def leave_code_out(value: dict[str, Any], path: Path, model: Path) -> dict[str, Any]:
    """Return a file's content for a copy of a model: without the keys that name code.

    transformers and vLLM read such keys only with `trust_remote_code`, and then look for files that
    the copy does not have. A model that transformers does not know without its code keeps the keys.

    Args:
        path: The file that messages name.
        model: The folder whose config.json says which model the file belongs to.

    Raises:
        ArtifactError: config.json cannot be read.
    """
    keys = ", ".join(dict.fromkeys(code_keys(value)))
    if not keys:
        return value
    if _is_built_in(model):
        logger.info("  %s: %s names code of the folder; left out", path, keys)
        return {key: _without_code(one) for key, one in value.items() if key not in CODE_KEYS}
    logger.warning(
        "  %s: %s names code of the folder, which is not copied, and transformers does not know "
        "the model without it. Try: copy the folder's Python files into the result",
        path, keys,
    )  # fmt: skip
    return value


def copy_without_code(source: Path, out: Path, model: Path) -> None:
    """Copy a file of a model; a configuration without the keys that name code.

    A file without such keys is copied byte for byte.

    Raises:
        ArtifactError: A configuration cannot be read.
    """
    if source.name.endswith(CONFIG):
        value = read_json(source)
        kept = leave_code_out(value, source, model)
        if kept != value:
            write_json(out / source.name, kept)
            return
    shutil.copyfile(source, out / source.name)


def _is_built_in(model: Path) -> bool:
    """Return whether transformers has a class for a model.

    Only a file that names code pays for the import.
    """
    known = require("transformers", "export").CONFIG_MAPPING
    return read_json(model / CONFIG, ModelConfig)["model_type"] in known


def _without_code(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_code(one) for key, one in value.items() if key not in CODE_KEYS}
    return [_without_code(one) for one in value] if isinstance(value, list) else value
