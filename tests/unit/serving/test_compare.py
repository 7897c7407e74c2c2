"""Two models answer the same questions at the same time, and each remembers its own answers."""

import io
import re
import signal
import threading
from collections.abc import Iterator, Sequence

import pytest
from rich.console import Console

from serving.chat import Answer
from serving.compare import ask_each, converse_with_each
from tests.commands import tuneline_here
from tuneline.core.errors import ServerError
from tuneline.core.messages import Message

QUESTION: Message = {"role": "user", "content": "Who helps?"}


def says(*pieces: str) -> Answer:
    return lambda _: iter(pieces)


def lines(*typed: str) -> Iterator[str]:
    yield from typed
    raise EOFError


def console(width: int = 60) -> Console:
    return Console(file=io.StringIO(), width=width)


def shown(made: Console) -> str:
    assert isinstance(made.file, io.StringIO)
    return made.file.getvalue()


def test_both_answer_at_the_same_time() -> None:
    meeting = threading.Barrier(2, timeout=5)

    def answer(text: str) -> Answer:
        def given(_: Sequence[Message]) -> Iterator[str]:
            meeting.wait()  # passes only where the other model answers too
            yield text

        return given

    found = ask_each(
        {"base": answer("left"), "tuned": answer("right")},
        {"base": [QUESTION], "tuned": [QUESTION]},
    )
    assert found == {"base": "left", "tuned": "right"}


def test_the_answers_are_in_columns_and_markup_is_text() -> None:
    made = console()
    ask_each(
        {"base": says("one ", "[bold]two[/bold]"), "tuned": says("three")},
        {"base": [QUESTION], "tuned": [QUESTION]},
        console=made,
    )
    head, body = (line for line in shown(made).splitlines() if line.strip())
    assert re.split(r"\s{2,}", head.strip()) == ["base", "tuned"]
    assert re.split(r"\s{2,}", body.strip()) == ["one [bold]two[/bold]", "three"]
    assert body.index("three") == head.index("tuned")


def test_answers_taller_than_the_screen_are_left_there_once() -> None:
    """A terminal cannot draw over lines that have left its screen."""
    long = [f"line {number}\n" for number in range(40)]

    def slowly(_: Sequence[Message]) -> Iterator[str]:
        for piece in long:
            threading.Event().wait(0.01)
            yield piece

    made = Console(file=io.StringIO(), width=60, height=10, force_terminal=True)
    ask_each(
        {"base": slowly, "tuned": slowly}, {"base": [QUESTION], "tuned": [QUESTION]}, console=made
    )
    # A picture begins where the cursor has gone back to the first line of the one before.
    *pictures, whole = re.split(r"(?:\x1b\[1A\x1b\[2K)+", shown(made))
    assert len(pictures) > 1
    for picture in pictures[:-1]:
        assert "base" in picture and picture.count("\n") < made.height
    assert "line 0 " not in pictures[-1]
    assert all(whole.count(f"line {number} ") == 2 for number in range(40))


def test_each_model_remembers_its_own_answers() -> None:
    heard: dict[str, list[list[Message]]] = {"base": [], "tuned": []}

    def listens(name: str) -> Answer:
        def given(messages: Sequence[Message]) -> Iterator[str]:
            heard[name].append(list(messages))
            yield f"{name} {len(heard[name])}"

        return given

    typed = lines("first", "", "second", "/new", "third", "/exit", "never read")
    num_answered = converse_with_each(
        {name: listens(name) for name in heard}, "Be short.",
        console=console(), read=lambda _: next(typed),
    )  # fmt: skip
    assert num_answered == 3
    assert next(typed) == "never read"
    for name, conversations in heard.items():
        contents = [[message["content"] for message in said] for said in conversations]
        assert contents == [
            ["Be short.", "first"],
            ["Be short.", "first", f"{name} 1", "second"],
            ["Be short.", "third"],
        ]


def test_a_model_that_fails_is_named_and_both_forget_the_question() -> None:
    heard: list[list[str]] = []

    def listens(messages: Sequence[Message]) -> Iterator[str]:
        heard.append([message["content"] for message in messages])
        yield "well"

    def fails_at_the_second(messages: Sequence[Message]) -> Iterator[str]:
        if messages[-1]["content"] == "second":
            raise ServerError("the server is gone", hint="Try: again")
        yield "well"

    made, typed = console(), lines("first", "second", "third")
    num_answered = converse_with_each(
        {"base": listens, "tuned": fails_at_the_second}, console=made, read=lambda _: next(typed)
    )
    assert num_answered == 2
    assert "tuned: the server is gone" in shown(made)
    assert heard[-1] == ["first", "well", "third"]


def test_the_first_failure_ends_the_conversation() -> None:
    def fails(_: Sequence[Message]) -> Iterator[str]:
        raise ServerError("no such model", hint="Try: tuneline chat --model other")
        yield ""

    typed = lines("first")
    with pytest.raises(ServerError, match=r"^base: no such model\n  Try: tuneline chat") as caught:
        converse_with_each(
            {"base": fails, "tuned": says("well")}, console=console(), read=lambda _: next(typed)
        )
    assert caught.value.exit_code == 5


def test_ctrl_c_ends_both_answers_and_keeps_their_beginnings() -> None:
    pressed = threading.Event()

    def endless(messages: Sequence[Message]) -> Iterator[str]:
        yield "begun"
        if not pressed.is_set():
            pressed.set()
            threading.Timer(0.3, signal.raise_signal, args=(signal.SIGINT,)).start()
        while True:
            threading.Event().wait(0.01)
            yield "."

    made, typed = console(), lines("first")
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        num_answered = converse_with_each(
            {"base": endless, "tuned": endless}, console=made, read=lambda _: next(typed)
        )
    finally:
        signal.signal(signal.SIGINT, previous)
    assert num_answered == 1
    assert shown(made).count("begun") == 2


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--url", "http://127.0.0.1:1/v1", "--model", "a", "--compare", "a"), "answers already"),
        (("--artifact", "here", "--compare", "b"), "--compare"),
        (("run.yaml", "--compare", "tuned"), "expected base"),
        ((".", "--compare", "base"), "holds a single model"),
    ],
)
def test_a_comparison_that_cannot_be_is_refused(options: tuple[str, ...], problem: str) -> None:
    done = tuneline_here("chat", *options, "--message", "Hello")
    assert done.returncode == 2
    assert problem in done.stderr
