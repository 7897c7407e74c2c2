"""`source: sharegpt`: conversations of a ShareGPT file."""

from __future__ import annotations

import json

from loadtest.config import WorkloadConfig
from loadtest.workload.content import Content, Prompt, Wanted, file_of, is_text, read_text
from loadtest.workload.conversations import conversations
from tuneline.core.errors import DataError
from tuneline.core.messages import Messages

ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}


def read(wanted: Wanted) -> Content:
    """Return the file's conversations, or their turns."""
    found = conversations(sharegpt(wanted.workload), wanted.workload.multi_turn)
    return Content([Prompt(messages) for messages in found])


def sharegpt(workload: WorkloadConfig) -> list[Messages]:
    """Read a ShareGPT file: a JSON list of `{"conversations": [{"from", "value"}]}`.

    Raises:
        DataError: The file has another form, or holds no human turn.
    """
    path = file_of(workload)
    try:
        entries = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(entries, list):
        raise DataError(f"{path}: expected a list of conversations")
    found = []
    for number, entry in enumerate(entries):
        turns = entry.get("conversations") if isinstance(entry, dict) else None
        if not isinstance(turns, list):
            raise DataError(f"{path}: entry {number}: expected a list as conversations")
        messages: Messages = []
        for turn in turns:
            if not isinstance(turn, dict) or not is_text(turn.get("value")):
                raise DataError(f"{path}: entry {number}: expected turns with from and value")
            role = ROLES.get(str(turn.get("from")))
            if role is not None:
                messages.append({"role": role, "content": turn["value"]})
        while messages and messages[-1]["role"] != "user":
            messages.pop()
        if not workload.multi_turn and messages:
            first = next(place for place, one in enumerate(messages) if one["role"] == "user")
            messages = messages[: first + 1]
        if messages:
            found.append(messages)
    if not found:
        raise DataError(f"{path}: holds no human turn")
    return found
