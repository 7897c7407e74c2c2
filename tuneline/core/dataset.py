"""The part of a dataset artifact that several rooms read."""

from __future__ import annotations

import json

from tuneline.core.artifact import Artifact
from tuneline.core.errors import NotAnArtifactError
from tuneline.core.messages import Messages

HELDOUT_FILE = "heldout.jsonl"


def heldout_prompts(dataset: Artifact) -> list[Messages]:
    """Return the messages of a dataset's held-out rows, in order, without their answers.

    Raises:
        NotAnArtifactError: A line is not a row.
    """
    path = dataset.path / HELDOUT_FILE
    text = path.read_text(encoding="utf-8")
    prompts: list[Messages] = []
    # Only a line feed ends a line; text may hold the other line ends that `splitlines` knows.
    for number, line in enumerate(text.removesuffix("\n").split("\n"), start=1):
        try:
            prompts.append(json.loads(line)["prompt"])
        except (ValueError, KeyError, TypeError):
            raise NotAnArtifactError(
                f"{path}: line {number}: expected a row with a prompt"
            ) from None
    return prompts
