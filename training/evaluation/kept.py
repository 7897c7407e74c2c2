"""Answers that an evaluation keeps while it asks.

An evaluation takes hours, and a judge costs money. As soon as an answer has come, it is a line of
`.<out>.answers`, next to the artifact. A killed evaluation, or one whose server went away, then
asks only for the rest.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from training.evaluation.answerer import Answerer, Question, Reply
from tuneline.core.artifact import canonical_digest, remove_command
from tuneline.core.errors import ServerError
from tuneline.core.progress import logger


@dataclass(frozen=True)
class Kept:
    """The answers of one artifact that is not complete yet.

    Attributes:
        path: The file of the answers.
        found: The answers of an earlier process, by their keys. A key covers all that an answer
            depends on, so that an answer of another model, question or judge is not found.
    """

    path: Path
    found: dict[str, Any]
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def keep(self, key: str, answer: Any) -> None:
        """Write an answer; several threads may do so."""
        with self._lock, self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps([key, answer]) + "\n")


@contextmanager
def kept_answers(out: Path) -> Iterator[Kept]:
    """Return the answers that are kept for an artifact; they are removed if the block succeeds.

    Raises:
        ServerError: The block's, with a hint about the answers that are kept.
    """
    path = out.with_name(f".{out.name}.answers")
    kept = Kept(path, dict(_read(path)))
    try:
        yield kept
    except ServerError as error:
        if not path.exists():
            raise
        rest = "The answers so far are kept; the same command asks only for the rest."
        hint = f"{error.hint.removesuffix('.')}. {rest}" if error.hint else rest
        raise ServerError(error.message, hint=hint) from None
    path.unlink(missing_ok=True)


def _read(path: Path) -> Iterator[tuple[str, Any]]:
    """Return keys and answers; a line that a kill cut in two is none."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return
    if not text.endswith("\n"):
        with path.open("a", encoding="utf-8") as file:
            file.write("\n")
    for line in text.split("\n"):
        try:
            key, answer = json.loads(line)
        except (ValueError, TypeError):
            continue
        yield key, answer


def ask_rest(
    kept: Kept,
    keys: Sequence[str],
    ask: Callable[[Sequence[int], Callable[[int, Any], None]], None],
    what: str,
) -> list[Any]:
    """Return the answer of each key, and ask only for those that are not kept.

    Args:
        kept: The answers of an earlier process.
        keys: One for each question.
        ask: Asks the questions at some indices, and passes each index and answer on as it comes.
        what: The answers, for a message.
    """
    answers: dict[int, Any] = {
        index: kept.found[key] for index, key in enumerate(keys) if key in kept.found
    }
    if answers:
        logger.info(
            "  %d of %d %s are kept from an interrupted evaluation; to ask again: %s",
            len(answers), len(keys), what, remove_command(kept.path),
        )  # fmt: skip

    def on_answer(index: int, answer: Any) -> None:
        answers[index] = answer
        kept.keep(keys[index], answer)

    rest = [index for index in range(len(keys)) if index not in answers]
    if rest:
        ask(rest, on_answer)
    return [answers[index] for index in range(len(keys))]


def ask_model(
    answerer: Answerer,
    questions: Sequence[Question],
    max_new_tokens: int,
    kept: Kept,
    *,
    repeat: int = 0,
) -> list[Reply]:
    """Return a model's answers, and ask only for those that are not kept.

    Answers to a question that is asked again have their own keys: `repeat` counts them from 1.
    """
    again = [repeat] if repeat else []
    keys = [
        canonical_digest([answerer.identity, q.messages, q.tools, max_new_tokens, *again])
        for q in questions
    ]

    def ask(rest: Sequence[int], on_answer: Callable[[int, Any], None]) -> None:
        answerer.answer(
            [questions[index] for index in rest],
            max_new_tokens,
            lambda place, reply: on_answer(rest[place], asdict(reply)),
        )

    found = ask_rest(kept, keys, ask, "answers")
    return [Reply(one["text"], one["finish_reason"], tuple(one["tool_calls"])) for one in found]
