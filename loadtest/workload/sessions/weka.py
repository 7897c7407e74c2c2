"""`source: weka`: the sessions of coding agents that kv-cache-tester recorded.

Format: a JSON object per session, with `requests` of `t`, `in`, `out` and `hash_ids` (as aiperf's
reader at 90f31d18 declares it). A file holds one object, a list of objects, or one per line.
"""

from __future__ import annotations

import json
from hashlib import blake2b
from typing import Annotated, Literal

import msgspec
import numpy as np

from loadtest.workload.content import (
    MAX_PROBLEMS,
    Wanted,
    file_of,
    numbered_lines,
    read_text,
    token_ids,
)
from loadtest.workload.sessions.conversation import Conversation, Turn
from tuneline.core.errors import DataError

Count = Annotated[int, msgspec.Meta(ge=0, le=10**7)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e9)]


class _Request(msgspec.Struct):
    """A request, or the marker of a sub-agent, whose requests run elsewhere."""

    t: Seconds
    type: Literal["n", "s", "subagent"]
    input_length: Count = msgspec.field(name="in", default=0)
    output_length: Count = msgspec.field(name="out", default=0)
    hash_ids: list[Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]] = []
    think_time: Seconds | None = None
    """Delay of the client before this request."""


class _Trace(msgspec.Struct):
    id: str
    block_size: Annotated[int, msgspec.Meta(gt=0, le=65536)]
    requests: list[_Request]


def read(wanted: Wanted) -> list[Conversation]:
    """Return a conversation per session. Requests of sub-agents are left out.

    Raises:
        DataError: The file has another form; up to MAX_PROBLEMS objects are named.
    """
    path = file_of(wanted.workload)
    found, problems = [], []
    for place, text in _objects(wanted):
        try:
            trace = msgspec.json.decode(text, type=_Trace)
        except (msgspec.DecodeError, RecursionError) as error:
            problems.append(f"{path}: {place}: {error}")
            continue
        asked = [one for one in trace.requests if one.type != "subagent" and one.input_length]
        turns = [
            Turn(
                _tokens(wanted, trace, number, one),
                [],
                one.think_time if number else None,
                max(one.output_length, 1),
                is_fresh=True,
            )
            for number, one in enumerate(asked)
        ]
        if turns:
            found.append(Conversation(turns))
    if problems:
        raise DataError(problems[:MAX_PROBLEMS])
    return found


def _objects(wanted: Wanted) -> list[tuple[str, bytes]]:
    path = file_of(wanted.workload)
    text = read_text(path)
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):
        return [(f"line {number}", line.encode()) for number, line in numbered_lines(text)]
    parts = whole if isinstance(whole, list) else [whole]
    return [(f"entry {number}", json.dumps(one).encode()) for number, one in enumerate(parts)]


def _tokens(wanted: Wanted, trace: _Trace, number: int, request: _Request) -> list[int]:
    """Return token ids in which equal blocks of a session are equal; hash ids are local to it."""
    ids: list[int] = []
    own = int.from_bytes(blake2b(trace.id.encode(), digest_size=16).digest(), "big")
    for place in range(-(-request.input_length // trace.block_size)):
        known = place < len(request.hash_ids)
        key = [own, request.hash_ids[place], 0] if known else [own, number, place, 1]
        ids += token_ids(np.random.default_rng(key), trace.block_size, wanted.workload)
    return ids[: request.input_length]
