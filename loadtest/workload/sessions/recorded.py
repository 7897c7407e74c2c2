"""`source: recorded` with `sessions`: the conversations in the chats that a server recorded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from loadtest.workload.content import Wanted
from loadtest.workload.recorded import Chat, read_chats
from loadtest.workload.sessions.conversation import Conversation, Turn
from tuneline.core.messages import Messages


@dataclass
class _Thread:
    """A conversation while it is put together."""

    first: Chat
    turns: list[Turn] = field(default_factory=list)


def read(wanted: Wanted) -> list[Conversation]:
    """Return the recorded conversations; a chat that continues no other begins one.

    A request is the next turn of the request whose messages and answer it begins with. The delay
    is the time from the end of that answer. A second request that continues the same answer, such
    as a question that was edited, begins a conversation of its own.

    Raises:
        DataError: No file can be read, or no line is a chat that can be sent again.
    """
    threads: list[_Thread] = []
    # By what the next request of a conversation begins with: the conversation, and its last chat.
    open_ends: dict[str, tuple[_Thread, Chat]] = {}
    for chat in read_chats(wanted):
        if chat.messages[-1]["role"] not in ("user", "tool"):
            wanted.left_out["the messages end with neither a user nor a tool"] += 1
            continue
        thread, before = _before(chat, open_ends)
        answers = [] if chat.answer is None else [chat.answer]
        if thread is None or before is None:
            thread = _Thread(chat)
            threads.append(thread)
            thread.turns.append(Turn(chat.messages, answers, max_tokens=chat.num_tokens))
        else:
            added = chat.messages[len(before.messages) + 1 :]
            delay_s = max(0.0, chat.time_s - before.end_s)
            thread.turns.append(Turn(added, answers, delay_s, chat.num_tokens))
        if chat.answer is not None:
            open_ends[_key([*chat.messages, chat.answer])] = thread, chat
    return [
        Conversation(thread.turns, thread.first.time_s, thread.first.tools) for thread in threads
    ]


def _before(
    chat: Chat, open_ends: dict[str, tuple[_Thread, Chat]]
) -> tuple[_Thread | None, Chat | None]:
    """Return the conversation that a chat continues and its last chat, and close that end."""
    for place in range(len(chat.messages) - 1, 0, -1):
        if chat.messages[place - 1]["role"] != "assistant":
            continue
        key = _key(chat.messages[:place])
        if key in open_ends and open_ends[key][0].first.tools == chat.tools:
            return open_ends.pop(key)
    return None, None


def _key(messages: Messages | Sequence[dict[str, object]]) -> str:
    """Return what two conversations have in common if they are the same: roles, texts and calls."""
    parts = []
    for message in messages:
        calls = message.get("tool_calls") or []
        functions = [call["function"] for call in calls] if isinstance(calls, list) else []
        named = [[one.get("name"), one.get("arguments")] for one in functions]
        parts.append([message["role"], message.get("content") or "", named])
    return json.dumps(parts, sort_keys=True)
