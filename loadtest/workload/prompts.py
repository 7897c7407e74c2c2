"""`source: prompts`: chat messages from a file, from a run's held-out rows, or built in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from loadtest.workload.content import (
    MAX_PROBLEMS,
    Content,
    Wanted,
    json_lines,
    prompts_of,
    read_text,
)
from loadtest.workload.conversations import conversations
from loadtest.workload.sessions.messages import list_problem, plain, tools_problem
from tuneline.core.errors import DataError
from tuneline.core.messages import ChatPrompt, with_tools


def read(wanted: Wanted) -> Content:
    """Return the given prompts, or their turns."""
    found = conversations(wanted.given, wanted.workload.multi_turn)
    return Content(prompts_of(found))


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


def read_prompts(path: Path | None) -> list[ChatPrompt]:
    """Read prompts from JSON Lines, or return a few built-in questions without a file.

    A line is a list of chat messages, or an object with such a list as `prompt` or `messages`,
    and `tools` in the form of OpenAI's chat route if it has some. For scores, it has a `query` and
    its `documents`, which become a message each.

    Raises:
        DataError: A line holds no prompt; up to MAX_PROBLEMS such lines are named.
    """
    if path is None:
        return [[{"role": "user", "content": text}] for text in DEFAULT_PROMPTS]
    prompts: list[ChatPrompt] = []
    problems: list[str] = []
    for number, value in json_lines(path, read_text(path), problems):
        tools: Any = []
        if isinstance(value, dict):
            tools = value.get("tools") or []
            documents = value.get("documents")
            if "query" in value and isinstance(documents, list):
                texts = [value["query"], *documents]
                value = [{"role": "user", "content": text} for text in texts]
            else:
                value = value.get("prompt", value.get("messages"))
        if isinstance(value, str):
            value = [{"role": "user", "content": value}]
        if (problem := list_problem(value) or tools_problem(tools)) is not None:
            problems.append(f"{path}: line {number}: {problem}")
            continue
        prompts.append(with_tools([plain(message) for message in value], tools))
    if not prompts and not problems:
        problems = [f"{path}: holds no prompt"]
    if problems:
        raise DataError(problems[:MAX_PROBLEMS], hint=_hint(path))
    return prompts


def _hint(path: Path) -> str | None:
    """Return a hint for a JSON document over many lines."""
    text = read_text(path).lstrip()
    is_list = text.startswith("[") and not text.partition("\n")[0].rstrip().endswith("]")
    return f"Write a prompt per line: jq -c '.[]' {path}" if is_list else None
