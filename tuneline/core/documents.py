"""JSON: a reader that takes each key once, and documents with a version such as `release.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from tuneline.core.config import first_problem
from tuneline.core.errors import ArtifactError

Document = TypeVar("Document", bound=BaseModel)


def parse_json(text: str | bytes) -> Any:
    """Return a JSON value whose objects have each key once.

    Of two equal keys, some readers take the first and others the last. A document with both says
    one thing to the program that verifies it and another to the program that shows it.

    Raises:
        ValueError: It is not JSON, or a key appears twice in an object.
        RecursionError: It is nested too deeply.
    """
    return json.loads(text, object_pairs_hook=_each_once)


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} appears twice")
    return found


def write_document(document: BaseModel, path: Path) -> None:
    """Write a document, and read it back: a file that cannot be read must not leave the run."""
    text = document.model_dump_json(indent=2)
    type(document).model_validate_json(text)
    path.write_text(text + "\n", encoding="utf-8")


def read_versioned(
    path: Path, schema: type[Document], *, key: str, version: int, what: str, hint: str
) -> Document:
    """Read a JSON document into its schema.

    Args:
        path: The file.
        schema: The model of the document.
        key: The document's key that holds the version.
        version: The version that the schema reads.
        what: The document in words, such as "a release".
        hint: The next command to type for a file that is not such a document.

    Raises:
        ArtifactError: The file is unreadable, is not such a document, or has another version.
    """
    try:
        text = path.read_text(encoding="utf-8")
        value = parse_json(text)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror}", hint=hint) from None
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: is not JSON ({error}); expected {what}", hint=hint) from None
    found = value.get(key) if isinstance(value, dict) else None
    if found != version:
        raise ArtifactError(
            f"{path}: {key} is {found!r}; expected {version}",
            hint=f"{hint} Or read it with the version of Tuneline that wrote it.",
        )
    try:
        return schema.model_validate_json(text)
    except ValidationError as error:
        problem = first_problem(error, "the document")
        raise ArtifactError(
            f"{path}: {problem}; expected {what} of version {version}", hint=hint
        ) from None
