"""The recorded answers of the forgetting suite, and the report that follows from them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from training.evaluation.answerer import Reply
from training.evaluation.forgetting.items import Item, suite_items
from training.evaluation.forgetting.judging import ForgettingReport, judge_forgetting
from tuneline.core.errors import ArtifactError

ANSWERS_FILE = "answers.jsonl"
MODELS = ("base", "tuned")


def answers_text(items: Sequence[Item], replies: Mapping[str, Sequence[Reply]]) -> str:
    """Return the file of answers: for each item, the answer of each model and whether it passes."""
    rows = []
    for index, item in enumerate(items):
        answers = {
            who: {
                "answer": found[index].text,
                "tool_calls": found[index].tool_calls,
                "passed": item.passes(found[index]),
            }
            for who, found in replies.items()
        }
        rows.append({"id": item.id, "skill": item.skill, **answers})
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def rejudge_forgetting(folder: Path) -> ForgettingReport:
    """Return the report that follows from the answers of a forgetting artifact.

    Every answer is checked again: the recorded results of the checks do not count.

    Raises:
        ArtifactError: The file does not hold an answer of both models to each item of the suite.
    """
    path, items = folder / ANSWERS_FILE, suite_items()
    try:
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        rows = [json.loads(line) for line in lines]
        asked = [row["id"] for row in rows]
        passed = {
            who: [
                item.passes(Reply(row[who]["answer"], "stop", tuple(row[who]["tool_calls"])))
                for item, row in zip(items, rows, strict=True)
            ]
            for who in MODELS
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(
            f"{path}: does not hold the answers to the forgetting suite ({error!r})"
        ) from None
    if asked != [item.id for item in items]:
        raise ArtifactError(f"{path}: its answers are not to the items of the forgetting suite")
    return judge_forgetting(items, passed["base"], passed["tuned"])
