"""The recorded answers of the forgetting suite, and the report that follows from them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from training.evaluation.answerer import Reply
from training.evaluation.forgetting.items import Item, suite_items
from training.evaluation.forgetting.judging import (
    ForgettingReport,
    differing,
    judge_forgetting,
)
from tuneline.core.errors import ArtifactError

ANSWERS_FILE = "answers.jsonl"
MODELS = ("base", "tuned")


def answers_text(
    items: Sequence[Item],
    replies: Mapping[str, Sequence[Reply]],
    again: Mapping[str, Mapping[int, Reply]] = MappingProxyType({}),
) -> str:
    """Return the file of answers: for each item, the answer of each model and whether it passes.

    An item that was asked again has the second answers under `again`.
    """
    rows = []
    for index, item in enumerate(items):
        row: dict[str, Any] = {"id": item.id, "skill": item.skill}
        row |= {who: _as_json(item, found[index]) for who, found in replies.items()}
        if repeated := {
            who: _as_json(item, found[index]) for who, found in again.items() if index in found
        }:
            row["again"] = repeated
        rows.append(row)
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _as_json(item: Item, reply: Reply) -> dict[str, Any]:
    return {
        "answer": reply.text,
        "tool_calls": reply.tool_calls,
        "passed": item.passes(reply),
        "finish_reason": reply.finish_reason,
    }


def _passes(item: Item, answer: Mapping[str, Any]) -> bool:
    return item.passes(Reply(answer["answer"], "stop", tuple(answer["tool_calls"])))


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
            who: [_passes(item, row[who]) for item, row in zip(items, rows, strict=True)]
            for who in MODELS
        }
        asked_again = [index for index, row in enumerate(rows) if "again" in row]
        again = {
            who: {index: _passes(items[index], rows[index]["again"][who]) for index in asked_again}
            for who in MODELS
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(
            f"{path}: does not hold the answers to the forgetting suite ({error!r})"
        ) from None
    if asked != [item.id for item in items]:
        raise ArtifactError(f"{path}: its answers are not to the items of the forgetting suite")
    if asked_again != differing(passed["base"], passed["tuned"]):
        raise ArtifactError(
            f"{path}: does not hold second answers to the items on which the models differ"
        )
    return judge_forgetting(items, passed["base"], passed["tuned"], again)
