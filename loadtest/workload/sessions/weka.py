"""`source: weka`: the sessions of coding agents that kv-cache-tester recorded.

Format: a JSON object per session, with `requests` of `t`, `in`, `out` and `hash_ids` (as aiperf's
reader at 90f31d18 declares it). A file holds one object, a list of objects, or one per line.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
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

ASYNC = "async_launched"
"""The status of a sub-agent that no turn waits for."""
Count = Annotated[int, msgspec.Meta(ge=0, le=10**7)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e9)]


class _Request(msgspec.Struct):
    """A request, or a sub-agent with its requests."""

    t: Seconds
    type: Literal["n", "s", "subagent"]
    input_length: Count = msgspec.field(name="in", default=0)
    output_length: Count = msgspec.field(name="out", default=0)
    hash_ids: list[Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]] = []
    think_time: Seconds | None = None
    """Delay of the client before this request."""
    requests: list[_Request] = []
    """Of a sub-agent."""
    duration_ms: Annotated[float, msgspec.Meta(ge=0, le=1e12)] | None = None
    status: str | None = None


class _Trace(msgspec.Struct):
    id: str
    block_size: Annotated[int, msgspec.Meta(gt=0, le=65536)]
    requests: list[_Request]


def read(wanted: Wanted) -> list[Conversation]:
    """Return a conversation per session, with its sub-agents.

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
        if turns := _turns(wanted, trace):
            found.append(Conversation(turns))
    if problems:
        raise DataError(problems[:MAX_PROBLEMS])
    return found


@dataclass
class _Agent:
    """A sub-agent, which begins when some turns have ended."""

    requests: list[_Request]
    end_s: float
    """By the trace; infinite if it does not say."""
    after: list[_Agent]
    """Sub-agents that had ended before it began; it waits for these."""
    own_turn: int
    """The conversation's own turn before it."""


def _turns(wanted: Wanted, trace: _Trace) -> list[Turn]:
    """Return the turns of a session: its own, then those of each sub-agent.

    A sub-agent begins after the turn before it in the trace, or after the sub-agents that had ended
    by then; others run next to it. The next turn waits for all of them, unless their status is
    ASYNC.
    """
    own: list[tuple[_Request, list[_Agent]]] = []
    agents: list[_Agent] = []
    open_agents: list[_Agent] = []
    """Those that the next turn waits for."""
    for one in trace.requests:
        if one.type != "subagent" and one.input_length:
            own.append((one, open_agents))
            open_agents = []
        elif own and (asked := _asked(one.requests)):
            end_s = math.inf if one.duration_ms is None else one.t + one.duration_ms / 1e3
            ended = [agent for agent in open_agents if agent.end_s <= one.t]
            agents.append(_Agent(asked, end_s, ended, len(own) - 1))
            if one.status != ASYNC:
                open_agents = [*open_agents, agents[-1]]
    first = len(own)
    last_of: dict[int, int] = {}
    for agent in agents:
        last_of[id(agent)] = first + len(agent.requests) - 1
        first += len(agent.requests)
    turns = [
        _turn(wanted, trace, number, one, 0, [number - 1, *(last_of[id(a)] for a in before)])
        for number, (one, before) in enumerate(own)
    ]
    for lane, agent in enumerate(agents, start=1):
        begins = [last_of[id(a)] for a in agent.after] or [agent.own_turn]
        for place, one in enumerate(agent.requests):
            if not place and one.think_time is None:
                one = msgspec.structs.replace(one, think_time=0.0)  # it begins at once
            turns.append(_turn(wanted, trace, len(turns), one, lane, begins))
            begins = [len(turns) - 1]
    return turns


def _asked(requests: list[_Request]) -> list[_Request]:
    """Return the requests of a sub-agent with those of its own sub-agents, in their order."""
    found = []
    for one in requests:
        if one.type == "subagent":
            found += _asked(one.requests)
        elif one.input_length:
            found.append(one)
    return found


def _turn(
    wanted: Wanted, trace: _Trace, number: int, one: _Request, lane: int, follows: list[int]
) -> Turn:
    return Turn(
        _tokens(wanted, trace, number, one),
        [],
        one.think_time if number else None,
        max(one.output_length, 1),
        is_fresh=True,
        lane=lane,
        follows=tuple(follows) if number else (),
    )


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
