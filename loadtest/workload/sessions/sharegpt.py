"""`source: sharegpt` with sessions: the conversations of a ShareGPT file."""

from __future__ import annotations

from loadtest.workload import sharegpt
from loadtest.workload.content import Wanted
from loadtest.workload.sessions.conversation import Conversation, turns_of


def read(wanted: Wanted) -> list[Conversation]:
    """Return the file's conversations, with the recorded answers."""
    workload = wanted.workload.model_copy(update={"multi_turn": True})
    found = sharegpt.sharegpt(workload, wanted.left_out)
    return [Conversation(turns_of(messages)) for messages in found]
