"""`source: sharegpt`: conversations of a ShareGPT file."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from loadtest.workload.content import (
    Content,
    Wanted,
    file_of,
    is_text,
    json_lines,
    prompts_of,
    read_text,
)
from loadtest.workload.conversations import conversations
from loadtest.workload_config import WorkloadConfig
from tuneline.core.errors import DataError
from tuneline.core.messages import Messages

ROLES = {
    "system": "system",
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bing", "bard", "model"), "assistant"),
}


def read(wanted: Wanted) -> Content:
    """Return the file's conversations, or their turns."""
    found = conversations(sharegpt(wanted.workload, wanted.left_out), wanted.workload.multi_turn)
    return Content(prompts_of(found))


def sharegpt(workload: WorkloadConfig, left_out: Counter[str]) -> list[Messages]:
    """Read a ShareGPT file: a JSON list of `{"conversations": [{"from", "value"}]}`, or an entry
    per line. A turn of another speaker, such as a tool, ends its conversation. `left_out` counts
    the entries without a human turn.

    Raises:
        DataError: The file has another form, or holds no human turn.
    """
    path = file_of(workload)
    found = []
    entries = _entries(path)
    for number, entry in enumerate(entries):
        turns = entry.get("conversations") if isinstance(entry, dict) else None
        if not isinstance(turns, list):
            raise DataError(f"{path}: entry {number}: expected a list as conversations")
        messages: Messages = []
        for turn in turns:
            if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
                raise DataError(f"{path}: entry {number}: expected turns with from and value")
            if not is_text(turn["value"]):
                raise DataError(
                    f"{path}: entry {number}: a value holds half of a surrogate pair; expected "
                    "text that UTF-8 can hold"
                )
            role = ROLES.get(str(turn.get("from")).lower())
            if role is None:
                break
            messages.append({"role": role, "content": turn["value"]})
        while messages and messages[-1]["role"] != "user":
            messages.pop()
        if not workload.multi_turn and messages:
            first = next(place for place, one in enumerate(messages) if one["role"] == "user")
            messages = messages[: first + 1]
        if messages:
            found.append(messages)
        else:
            left_out["the conversation has no turn of the user"] += 1
    if not found:
        raise DataError(f"{path}: holds no human turn")
    return found


def _entries(path: Path) -> list[Any]:
    text = read_text(path)
    problems: list[str] = []
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError) as error:
        entries = [value for _, value in json_lines(path, text, problems)]
        if problems:
            raise DataError(f"{path}: not valid JSON: {error}") from None
    if isinstance(entries, dict) and "conversations" in entries:
        return [entries]
    if not isinstance(entries, list):
        raise DataError(f"{path}: expected a list of conversations")
    return entries
