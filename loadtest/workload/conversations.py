"""Conversations as requests: whole, or turn by turn. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from tuneline.core.messages import Messages

CONVERSATIONS_AT_ONCE = 16


def conversations(prompts: Sequence[Messages], multi_turn: bool) -> list[Messages]:
    """Return conversations as they are, or each user turn as a request with its history.

    Turns of a conversation keep their order. CONVERSATIONS_AT_ONCE conversations take turns.
    """
    if not multi_turn:
        return [list(messages) for messages in prompts]
    turns = []
    for number, messages in enumerate(prompts):
        ends = [place for place, one in enumerate(messages) if one["role"] == "user"]
        for turn, end in enumerate(ends):
            turns.append((number // CONVERSATIONS_AT_ONCE, turn, number, list(messages[: end + 1])))
    return [messages for _, _, _, messages in sorted(turns, key=lambda turn: turn[:3])]
