"""A conversation of turns, and how lists of messages become one. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from loadtest.workload.images import content_problem
from tuneline.core.messages import Message, Messages

ROLES = ("system", "developer", "user", "assistant", "tool")


@dataclass(frozen=True)
class Turn:
    """One request of a conversation."""

    added: Messages | list[int]
    """Messages that this turn adds to the history; or token ids, a whole prompt for
    `/v1/completions`."""
    answers: Messages
    """The recorded answer; empty if the file has none."""
    delay_s: float | None = None
    """Recorded seconds from the end of the turns that it waits for."""
    max_tokens: int | None = None
    """The recorded length of the answer."""
    is_fresh: bool = False
    """The prompt starts anew: nothing of the history is sent."""
    lane: int = 0
    """0 for the conversation itself, another number for each branch that runs next to it."""
    follows: tuple[int, ...] | None = None
    """The turns whose ends it waits for, by their places; None for the turn before. Without a turn
    to wait for, the delay begins with the conversation."""

    @property
    def follows_tool(self) -> bool:
        """Whether the turn brings the result of a tool."""
        first = self.added[0] if self.added else None
        return isinstance(first, dict) and first["role"] == "tool"


@dataclass(frozen=True)
class Conversation:
    """The turns of one session."""

    turns: list[Turn]
    """The conversation's own in their order, then those of each sub-agent in theirs."""
    start_s: float | None = None
    """When the trace begins it, in seconds."""
    tools: Sequence[dict[str, Any]] = ()
    """The tools that every request of it brings."""


def follows_of(turns: Sequence[Turn]) -> list[list[int]]:
    """Return the places of the turns that each turn waits for."""
    return [
        list(turn.follows) if turn.follows is not None else [place - 1] if place else []
        for place, turn in enumerate(turns)
    ]


def cut_turns(conversation: Conversation, max_turns: int | None) -> Conversation:
    """Return a conversation with its first `max_turns` turns and the sub-agents that they start."""
    turns = conversation.turns
    if max_turns is None:
        return conversation
    follows = follows_of(turns)
    kept: set[int] = set()
    # A branch may follow another one, whose places come later.
    while True:
        more = {
            place
            for place, turn in enumerate(turns)
            if (place < max_turns if turn.lane == 0 else kept.issuperset(follows[place]))
        }
        if more == kept:
            break
        kept = more
    new_place = {place: number for number, place in enumerate(sorted(kept))}
    return replace(conversation, turns=[_moved(turns[place], new_place) for place in sorted(kept)])


def _moved(turn: Turn, new_place: dict[int, int]) -> Turn:
    if turn.follows is None:
        return turn
    return replace(turn, follows=tuple(new_place[one] for one in turn.follows))


def turns_of(messages: Sequence[Message]) -> list[Turn]:
    """Return the turns of a recorded conversation: each ends before the assistant speaks.

    An answer that opens the conversation is history. Messages after the last answer are a turn if
    they end with a user or a tool.
    """
    turns: list[Turn] = []
    added: Messages = []
    answers: Messages = []
    for message in messages:
        if message["role"] == "assistant" and _asks(added):
            answers.append(message)
            continue
        if answers:
            turns.append(Turn(added, answers))
            added, answers = [], []
        added.append(message)
    if _asks(added):
        turns.append(Turn(added, answers))
    return turns


def _asks(messages: Messages) -> bool:
    return bool(messages) and messages[-1]["role"] in ("user", "tool")


def message_problem(message: object) -> str | None:
    """Return why a value is not a chat message that can be sent; None for a message."""
    if not isinstance(message, dict):
        return "expected an object with role and content"
    if message.get("role") not in ROLES:
        return f"role is {str(message.get('role'))[:40]!r}; expected {', '.join(ROLES)}"
    content = message.get("content")
    calls = message.get("tool_calls")
    has_calls = content is None and message["role"] == "assistant" and bool(calls)
    if not has_calls and (problem := content_problem(content)) is not None:
        return problem
    for key in ("tool_calls", "tool_call_id", "name"):
        try:
            json.dumps(message.get(key), ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return f"{key} holds half of a surrogate pair; expected text that UTF-8 can hold"
        except RecursionError:
            return f"{key} is nested too deep"
    return _calls_problem(calls) if calls else None


def _calls_problem(calls: object) -> str | None:
    """Return why the calls of tools do not have the form of OpenAI's chat route."""
    for place, call in enumerate(calls if isinstance(calls, list) else [None], start=1):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            return f"call {place} of tool_calls has no function with a name"
        if not isinstance(function.get("arguments", ""), str | dict):
            return f"call {place} of tool_calls: arguments are neither text nor an object"
    return None


def with_text_arguments(calls: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return calls of tools whose arguments are text, as servers take them; data sets often have an
    object."""
    found = []
    for call in calls:
        function = call["function"]
        arguments = function.get("arguments", "{}")
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        found.append({**call, "function": {**function, "arguments": arguments}})
    return found


def kept_shares(conversation: Conversation) -> list[float]:
    """Return per turn the share of the prompt before that the turn's prompt begins with: 1 if it
    continues the history, 0 for the first turn, also of a sub-agent. Of messages, the share counts
    characters."""
    shares: list[float] = []
    before: list[Any] = []
    history: list[Any] = []
    lane = 0
    for turn in conversation.turns:
        if turn.lane != lane:
            lane, before, history = turn.lane, [], []
        prompt = list(turn.added) if turn.is_fresh else [*history, *turn.added]
        continues = bool(before) and not turn.is_fresh
        shares.append(1.0 if continues else _common_share(before, prompt))
        before, history = prompt, [*prompt, *turn.answers]
    return shares


def _common_share(before: list[Any], prompt: list[Any]) -> float:
    """Return the share of a prompt that another prompt begins with."""
    if not before:
        return 0.0
    left: Sequence[Any] = before
    right: Sequence[Any] = prompt
    if isinstance(before[0], dict):
        left, right = (json.dumps(one)[1:-1] for one in (before, prompt))
    pairs = zip(left, right, strict=False)
    shortest = min(len(left), len(right))
    return next((place for place, (a, b) in enumerate(pairs) if a != b), shortest) / len(left)
