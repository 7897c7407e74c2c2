"""The part of a dataset artifact that several rooms read."""

from __future__ import annotations

import json

from tuneline.core.artifact import Artifact
from tuneline.core.errors import DataError, NotAnArtifactError
from tuneline.core.messages import ChatPrompt, as_request, with_tools

TRAIN_FILE = "train.jsonl"
HELDOUT_FILE = "heldout.jsonl"


def heldout_prompts(dataset: Artifact) -> list[ChatPrompt]:
    """Return the prompts of a dataset's held-out rows as requests, in order, without answers.

    Rows of plain text have no messages and are left out.

    Raises:
        NotAnArtifactError: A line is not a row.
        DataError: No row has a prompt.
    """
    path = dataset.path / HELDOUT_FILE
    text = path.read_text(encoding="utf-8")
    prompts: list[ChatPrompt] = []
    # Only a line feed ends a line; text may hold the other line ends that `splitlines` knows.
    for number, line in enumerate(text.removesuffix("\n").split("\n"), start=1):
        try:
            row = json.loads(line)
            if not (isinstance(row, dict) and "text" in row):
                prompts.append(with_tools(as_request(row["prompt"]), row.get("tools", ())))
        except (ValueError, KeyError, TypeError):
            raise NotAnArtifactError(
                f"{path}: line {number}: expected a row with a prompt"
            ) from None
    if not prompts:
        raise DataError(
            f"{path}: no row has a prompt; expected rows with a prompt",
            hint="Try: data.heldout_path with rows that have a prompt.",
        )
    return prompts
