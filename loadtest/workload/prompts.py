"""`source: prompts`: chat messages from a file, from a run's held-out rows, or built in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from loadtest.workload.content import (
    MAX_PROBLEMS,
    Content,
    Prompt,
    Wanted,
    is_text,
    json_lines,
    read_text,
)
from loadtest.workload.conversations import conversations
from loadtest.workload.images import content_problem, plain_content
from tuneline.core.errors import DataError
from tuneline.core.messages import Messages


def read(wanted: Wanted) -> Content:
    """Return the given prompts, or their turns."""
    found = conversations(wanted.given, wanted.workload.multi_turn)
    return Content([Prompt(messages) for messages in found])


DEFAULT_PROMPTS: tuple[str, ...] = (
    "Write a short greeting.",
    "What should I check when a printer does not answer?",
    "Explain in two sentences what a load test is for.",
    "List three colours.",
    "Why does a cache make a program faster?",
    "Give a polite answer to a customer whose parcel is late.",
    "Summarise the water cycle.",
    "Name a river and the country it flows through.",
)


def read_prompts(path: Path | None) -> list[Messages]:
    """Read prompts from JSON Lines, or return a few built-in questions without a file.

    A line is a list of chat messages, or an object with such a list as `prompt` or `messages`.

    Raises:
        DataError: A line holds no prompt; up to MAX_PROBLEMS such lines are named.
    """
    if path is None:
        return [[{"role": "user", "content": text}] for text in DEFAULT_PROMPTS]
    prompts: list[Messages] = []
    problems: list[str] = []
    for number, value in json_lines(path, read_text(path), problems):
        if isinstance(value, dict):
            value = value.get("prompt", value.get("messages"))
        if isinstance(value, str):
            value = [{"role": "user", "content": value}]
        if (problem := _list_problem(value)) is not None:
            problems.append(f"{path}: line {number}: {problem}")
            continue
        prompts.append([{"role": m["role"], "content": plain_content(m["content"])} for m in value])
    if not prompts and not problems:
        problems = [f"{path}: holds no prompt"]
    if problems:
        raise DataError(problems[:MAX_PROBLEMS])
    return prompts


def _list_problem(value: Any) -> str | None:
    """Return why a value is not a list of messages; None for such a list."""
    if not isinstance(value, list) or not value:
        return "expected a list of messages with role and content"
    for place, message in enumerate(value, start=1):
        if not isinstance(message, dict) or not is_text(message.get("role")):
            return f"message {place}: expected an object with role and content"
        if (problem := content_problem(message.get("content"))) is not None:
            return f"message {place}: {problem}"
    return None
