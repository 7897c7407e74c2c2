"""The tokenizer of a model or adapter folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def load_tokenizer(folder: Path) -> Any:
    """Return the tokenizer of a folder; no code of the folder is run, and nothing is downloaded.

    Raises:
        ArtifactError: The folder has no tokenizer, or transformers cannot load it.
    """
    from transformers import AutoTokenizer

    from tuneline.models.load import damage_named

    with damage_named(
        f"{folder}: transformers cannot load its tokenizer",
        "Expected tokenizer.json and tokenizer_config.json next to the weights.",
    ):
        # With mistral-common installed, which vLLM needs, `auto` takes Mistral's `tekken.json` and
        # leaves the chat template out. vLLM serves the folder with the files of transformers.
        return AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True, mistral_format=False
        )
