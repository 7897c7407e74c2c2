"""Two models that answer the same questions, side by side on the terminal."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from tuneline.core.errors import TunelineError
from tuneline.core.messages import Message

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from serving.chat import Answer

SECONDS_PER_PICTURE = 0.1


def ask_each(
    answer_to: Mapping[str, Answer],
    messages: Mapping[str, list[Message]],
    *,
    console: Console | None = None,
) -> dict[str, str]:
    """Return each model's answer to its own messages; both answers are written as they come.

    The models answer at the same time. Ctrl-C ends both answers, and what has come of them is
    returned.

    Args:
        answer_to: Each model's function, by the model's name.
        messages: Each model's conversation, by the model's name.
        console: Where the answers are written; nowhere if it is None.

    Raises:
        TunelineError: A model cannot answer. The message begins with the model's name.
    """
    found = dict.fromkeys(answer_to, "")
    failed: dict[str, TunelineError] = {}
    stopped = threading.Event()

    def collect(name: str) -> None:
        try:
            for piece in answer_to[name](messages[name]):
                found[name] += piece
                if stopped.is_set():
                    return
        except TunelineError as error:
            failed[name] = error

    threads = [
        threading.Thread(target=collect, args=(name,), name=f"ask {name}", daemon=True)
        for name in answer_to
    ]
    for thread in threads:
        thread.start()
    try:
        _show_until(threads, found, console)
    except KeyboardInterrupt:
        stopped.set()
    for name, error in failed.items():
        raise type(error)(f"{name}: {error.message}", hint=error.hint) from error
    return dict(found)


def converse_with_each(
    answer_to: Mapping[str, Answer],
    system: str | None = None,
    *,
    console: Console,
    read: Callable[[str], str] = input,
) -> int:
    """Hold one conversation with each model: each line read is a question to all of them.

    A model remembers its own answers. `/new` forgets the conversations; end of input or `/exit`
    ends them. If a model fails, all forget the question, and the next question can be asked.

    Returns:
        The number of questions that were answered.

    Raises:
        TunelineError: A model cannot answer the first question.
    """
    beginning: list[Message] = [{"role": "system", "content": system}] if system else []
    said = {name: list(beginning) for name in answer_to}
    num_answered = 0
    while True:
        try:
            question = read("> ").strip()
        except (EOFError, KeyboardInterrupt):
            console.print()
            return num_answered
        if question == "/exit":
            return num_answered
        if question == "/new":
            said = {name: list(beginning) for name in answer_to}
        if question in ("", "/new"):
            continue
        asked: Message = {"role": "user", "content": question}
        try:
            given = ask_each(
                answer_to,
                {name: [*messages, asked] for name, messages in said.items()},
                console=console,
            )
        except TunelineError as error:
            if num_answered == 0:
                raise
            console.print(str(error), markup=False, highlight=False)
            continue
        for name, text in given.items():
            said[name] += [asked, {"role": "assistant", "content": text}]
        num_answered += 1


def _show_until(
    threads: list[threading.Thread], found: Mapping[str, str], console: Console | None
) -> None:
    """Draw the end of the answers until all threads have ended, and then the whole answers.

    A picture that is taller than the screen cannot be drawn over: each one would leave a copy.
    """
    if console is None:
        for thread in threads:
            thread.join()
        return
    from rich.live import Live

    try:
        with Live(console=console, auto_refresh=False, transient=True) as live:
            for thread in threads:
                while thread.is_alive():
                    thread.join(SECONDS_PER_PICTURE)
                    live.update(_last_lines(console, _columns(found)), refresh=console.is_terminal)
    finally:
        console.print(_columns(found))


def _last_lines(console: Console, table: RenderableType) -> RenderableType:
    """Return the names and as many of the last lines as fit on the screen."""
    from rich.segment import Segment, Segments

    lines = console.render_lines(table, pad=False)
    # The cursor needs a line, too.
    shown = [*lines[:1], *lines[1:][-max(console.height - 2, 1) :]]
    return Segments([segment for line in shown for segment in (*line, Segment.line())])


def _columns(found: Mapping[str, str]) -> RenderableType:
    """Return a table with a column for each model, all of the same width."""
    from rich.table import Table
    from rich.text import Text

    table = Table(expand=True, box=None, padding=(0, 2, 1, 0))
    for name in found:
        table.add_column(Text(name, style="bold"), ratio=1, overflow="fold")
    # An answer is text: square brackets in it are not markup.
    table.add_row(*(Text(text) for text in found.values()))
    return table
