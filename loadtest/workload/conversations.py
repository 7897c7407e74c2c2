"""Conversations as requests: whole, or turn by turn. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from tuneline.core.messages import ChatPrompt, messages_of, tools_of, with_tools

CONVERSATIONS_AT_ONCE = 16


def conversations(prompts: Sequence[ChatPrompt], multi_turn: bool) -> list[ChatPrompt]:
    """Return conversations as they are, or each user turn as a request with its history.

    Turns of a conversation keep their order. CONVERSATIONS_AT_ONCE conversations take turns.
    """
    if not multi_turn:
        return list(prompts)
    turns = []
    for number, asked in enumerate(prompts):
        messages = messages_of(asked)
        ends = [place for place, one in enumerate(messages) if one["role"] == "user"]
        for turn, end in enumerate(ends):
            said = with_tools(messages[: end + 1], tools_of(asked))
            turns.append((number // CONVERSATIONS_AT_ONCE, turn, number, said))
    return [said for _, _, _, said in sorted(turns, key=lambda turn: turn[:3])]
