"""The texts that an embedding model wants before a query and before a document."""

from __future__ import annotations

from pathlib import Path

from tuneline.models.folder import read_json

PROMPTS_FILE = "config_sentence_transformers.json"


def read_prompts(folder: Path) -> dict[str, str]:
    """Return the texts that a folder puts before a query and before a document.

    Raises:
        ArtifactError: The file of the prompts cannot be read.
    """
    path = folder / PROMPTS_FILE
    known = (read_json(path).get("prompts") if path.is_file() else None) or {}
    names = {"query": ("query",), "document": ("document", "passage")}
    found = {ours: [known[one] for one in theirs if one in known] for ours, theirs in names.items()}
    return {name: str(values[0]) if values else "" for name, values in found.items()}
