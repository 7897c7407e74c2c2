"""Talking to an endpoint: one answer, or a conversation on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from tuneline.core.endpoint import Endpoint
from tuneline.core.errors import ServerError, TunelineError
from tuneline.core.messages import Message
from tuneline.core.openai_client import openai_client, stream_text
from tuneline.core.server_words import text_of

TIMEOUT_S = 120.0


Answer = Callable[[Sequence[Message]], Iterator[str]]
"""`answer(messages)`: the text of an answer, in pieces as it comes."""


def answers(endpoint: Endpoint, options: Mapping[str, Any] = MappingProxyType({})) -> Answer:
    """Return a function that answers messages with an endpoint's model.

    Args:
        options: Options of `chat.completions.create`, e.g. `{"temperature": 0}`.

    Returns:
        An `Answer`; its pieces raise ServerError if the server cannot be reached, refuses or
        answers wrongly.
    """

    def answer(messages: Sequence[Message]) -> Iterator[str]:
        with openai_client(endpoint, timeout_s=TIMEOUT_S) as client:
            # The client's types name each role apart; a message here is any role and its content.
            chunks: Any = client.chat.completions.create(
                model=endpoint.model,
                messages=list(messages),  # type: ignore[arg-type]
                stream=True,
                **options,
            )
            has_text, num_thought, finish = False, 0, None
            for chunk in chunks:
                if text := stream_text(chunk, endpoint):
                    has_text = True
                    yield text
                thought, ended = _reasoning(chunk)
                num_thought, finish = num_thought + len(thought), ended or finish
            if finish is None:
                raise ServerError(
                    f"{endpoint.url}: the stream ended without a finish_reason: the answer may be "
                    "cut",
                    hint="The server or a proxy closed it. Ask again, or read the server's log.",
                )
            if num_thought and not has_text:
                raise ServerError(
                    f"{endpoint.url}: the answer is {num_thought:,} characters of reasoning and no "
                    f"text; its finish_reason is {finish}",
                    hint="The answer may need a larger serving.max_model_len. A model that writes "
                    "no reasoning needs a server without serving.extra_args.reasoning_parser.",
                )

    return answer


def _reasoning(chunk: Any) -> tuple[str, str | None]:
    """Return the reasoning that a chunk adds, and the finish_reason if it is the last one."""
    choices = getattr(chunk, "choices", None) or [None]
    delta = getattr(choices[0], "delta", None)
    names = ("reasoning", "reasoning_content")  # vLLM's, and that of other servers
    thought = next((text for name in names if (text := getattr(delta, name, None))), "")
    return text_of(thought), getattr(choices[0], "finish_reason", None)


def converse(
    answer_to: Answer,
    system: str | None = None,
    *,
    read: Callable[[str], str] = input,
    write: Callable[[str], object] = sys.stdout.write,
) -> int:
    """Hold a conversation: each line read is a question, and its answer is written as it comes.

    `/new` forgets what was said; end of input or `/exit` ends it. An answer that fails is said and
    its question forgotten, so that the next one can be asked.

    Returns:
        How many questions were answered.

    Raises:
        TunelineError: The first question already cannot be answered.
    """
    beginning = [{"role": "system", "content": system}] if system else []
    messages = list(beginning)
    num_answered = 0
    while True:
        try:
            question = read("> ").strip()
        except (EOFError, KeyboardInterrupt):
            write("\n")
            return num_answered
        if question == "/exit":
            return num_answered
        if question == "/new":
            messages = list(beginning)
            continue
        if not question:
            continue
        messages.append({"role": "user", "content": question})
        answer = ""
        try:
            for piece in answer_to(messages):
                answer += piece
                write(piece)
                sys.stdout.flush()
        except KeyboardInterrupt:
            pass  # Ctrl-C ends this answer; what has come of it stays in the conversation
        except TunelineError as error:
            if num_answered == 0:
                raise
            write(f"{error}\n")
            messages.pop()
            continue
        write("\n")
        messages.append({"role": "assistant", "content": answer})
        num_answered += 1
