"""The items of the suite, from the data files of this folder."""

from __future__ import annotations

import functools
import hashlib
import json
from importlib import resources
from typing import Any, Literal

from training.evaluation.answerer import Question, Reply
from training.evaluation.forgetting.checkers import CHECKERS
from training.evaluation.tool_calls import parse_tool_calls
from tuneline.core.artifact import Input
from tuneline.core.config import StrictModel

Skill = Literal[
    "instructions", "json", "tools", "arithmetic", "refusals", "over_refusals", "language"
]
ITEMS_FILE = "items.jsonl"
TOOLS_FILE = "tools.json"


class Item(StrictModel):
    """One question with the checks that a right answer passes."""

    id: str
    skill: Skill
    language: Literal["en", "ko", "ja", "de", "es"]
    prompt: str
    tools: tuple[str, ...] = ()
    """Names of the tools that the model may call."""
    checks: tuple[dict[str, Any], ...]
    """For each check, its name under `check`, and its arguments."""
    right: str
    """An answer that every check accepts."""
    wrong: str
    """An answer that is nearly right and that a check rejects."""

    def question(self) -> Question:
        tools = tuple(tool_definitions()[name] for name in self.tools)
        return Question(({"role": "user", "content": self.prompt},), tools)

    def passes(self, reply: Reply) -> bool:
        """Return whether a reply passes every check."""
        return all(_check(reply, **check) for check in self.checks)

    def reply(self, text: str) -> Reply:
        """Return a text as a reply, with the tool calls in it."""
        return Reply(text, "stop", parse_tool_calls(text, self.question().tools))


@functools.cache
def suite_items() -> tuple[Item, ...]:
    """Return every item of the suite, in order."""
    lines = _text(ITEMS_FILE).removesuffix("\n").split("\n")
    return tuple(Item.model_validate_json(line) for line in lines)


@functools.cache
def tool_definitions() -> dict[str, dict[str, Any]]:
    """Return the tools of the suite by name, as OpenAI's JSON."""
    return {tool["function"]["name"]: tool for tool in json.loads(_text(TOOLS_FILE))}


def suite_input() -> Input:
    """Return the suite's data files as an input of a manifest."""
    digest = hashlib.sha256((_text(ITEMS_FILE) + _text(TOOLS_FILE)).encode()).hexdigest()
    return Input(role="suite", kind="forgetting-suite", digest=f"sha256:{digest}")


def _check(reply: Reply, *, check: str, **arguments: Any) -> bool:
    return CHECKERS[check](reply, **arguments)


def _text(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
