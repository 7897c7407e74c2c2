"""The content that a source of requests returns, and the reading of its file."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from loadtest.workload_config import WorkloadConfig
from tuneline.core.errors import DataError
from tuneline.core.messages import ChatPrompt, Messages, messages_of, tools_of

FIRST_TOKEN_ID = 100
MAX_PROBLEMS = 20
"""The most problems of a file that an error names."""


@dataclass(frozen=True)
class Prompt:
    """The content of a request: chat messages, or token ids for `/v1/completions`."""

    content: Messages | list[int]
    max_tokens: int | None = None
    """The answer length that a trace says; None for the common length."""
    tools: Sequence[dict[str, Any]] = ()
    """The tools of this prompt."""


def prompts_of(found: Sequence[ChatPrompt]) -> list[Prompt]:
    """Return the prompts of requests."""
    return [Prompt(messages_of(one), tools=tools_of(one)) for one in found]


@dataclass(frozen=True)
class Content:
    """The prompts of a workload."""

    prompts: list[Prompt]
    trace_s: list[float] | None = None
    """The arrival time of each prompt in seconds, if the source has them."""


@dataclass(frozen=True)
class Wanted:
    """The content that a load test wants from a source."""

    workload: WorkloadConfig
    given: Sequence[ChatPrompt]
    """The prompts given to the load test."""
    rng: np.random.Generator
    num_requests: int | None
    """How many requests the scenario sends, if that is known."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Filled by a reader: why entries of the file are not sent, and how many of each reason."""


Source = Callable[[Wanted], Content]


def file_of(workload: WorkloadConfig) -> Path:
    """Return the workload's file."""
    assert workload.path is not None  # noqa: S101 (the configuration requires it)
    return workload.path


def token_ids(rng: np.random.Generator, count: int, workload: WorkloadConfig) -> list[int]:
    """Return random token ids of the workload's range."""
    return [int(one) for one in rng.integers(FIRST_TOKEN_ID, workload.max_token_id, count)]


def read_text(path: Path) -> str:
    """Read a file of UTF-8 text, without the mark of a byte order that some editors put first.

    Raises:
        DataError: The file cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start}: not UTF-8 text") from None


def numbered_lines(text: str) -> list[tuple[int, str]]:
    """Return the lines that are not blank, each with its number from 1.

    Only a line feed ends a line: text may hold the other line ends of Unicode.
    """
    return [(n, line) for n, line in enumerate(text.split("\n"), start=1) if line.strip()]


def json_lines(path: Path, text: str, problems: list[str]) -> Iterator[tuple[int, Any]]:
    """Yield the number and the value of each line of JSON; add each other line to `problems`."""
    for number, line in numbered_lines(text):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            problems.append(f"{path}: line {number}: not valid JSON: {error}")
            continue
        yield number, value


def is_text(value: Any) -> bool:
    """Return whether a value is text that can be sent.

    JSON can name half of a surrogate pair, which UTF-8 cannot hold.
    """
    return isinstance(value, str) and not any("\ud800" <= one <= "\udfff" for one in value)
