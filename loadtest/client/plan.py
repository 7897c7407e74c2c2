"""The orders to a client process: the requests of one scenario. Pure; plain JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class SessionPlan:
    """The conversations of a scenario. The request of turn t of session i has the index
    i * stride + t."""

    offsets: list[int]
    """Place of each conversation's first turn in the lists of turns, and their length."""
    stride: int
    """Turns of the longest conversation."""
    opens: list[str]
    """Per conversation: the body up to the history."""
    closes: list[str]
    """Per turn: the body after the history."""
    answers: list[str]
    """Per turn: the recorded answer, as JSON messages; empty without one."""
    is_fresh: list[bool]
    """Per turn: the history is empty."""
    delays_s: list[list[float]]
    """Seconds from the end of a turn to the next; session i has row i modulo their number."""
    keeps_own: bool
    """The history has the server's own answers."""
    order: list[int]
    """Session i has conversation order[i] modulo their number."""
    nonce: str | None = None
    """A part of each first turn that every session replaces by its own."""
    kept: list[float] = field(default_factory=list)
    """Per turn: the share of the prompt before that the turn's prompt begins with."""
    lanes: list[int] = field(default_factory=list)
    """Per turn: 0 for the conversation itself, another number for each of its branches; empty
    without branches. Turns of a lane have neighbouring places, the conversation's own first."""
    waits_for: list[list[int]] = field(default_factory=list)
    """Per turn: the turns of its conversation whose ends it waits for; empty if each waits for the
    turn before."""

    def conversation(self, session: int) -> int:
        """Return the number of a session's conversation."""
        return self.order[session % len(self.order)]

    def num_turns(self, session: int) -> int:
        """Return how many turns a session has."""
        number = self.conversation(session)
        return self.offsets[number + 1] - self.offsets[number]

    def place(self, session: int, turn: int) -> int:
        """Return a turn's place in the lists of turns."""
        return self.offsets[self.conversation(session)] + turn

    def kept_share(self, session: int, turn: int) -> float:
        """Return the share of the prompt before that a turn's prompt begins with."""
        return self.kept[self.place(session, turn)]

    def lane(self, session: int, turn: int) -> int:
        """Return the lane of a turn."""
        return self.lanes[self.place(session, turn)] if self.lanes else 0

    def waited_for(self, session: int, turn: int) -> list[int]:
        """Return the turns whose ends a turn waits for."""
        if self.waits_for:
            return self.waits_for[self.place(session, turn)]
        return [turn - 1] if turn else []

    def next_turns(self, session: int) -> list[list[int]]:
        """Return by turn the turns that wait for its end."""
        count = self.num_turns(session)
        found: list[list[int]] = [[] for _ in range(count)]
        for turn in range(count):
            for one in self.waited_for(session, turn):
                found[one].append(turn)
        return found

    def other_first_turns(self, session: int) -> list[int]:
        """Return the turns that wait for no other turn, without the first: their delay begins with
        the conversation."""
        if not self.waits_for:
            return []
        turns = range(1, self.num_turns(session))
        return [turn for turn in turns if not self.waited_for(session, turn)]

    @property
    def mean_turns(self) -> float:
        return sum(map(self.num_turns, range(len(self.order)))) / len(self.order)

    @property
    def longest_delay_s(self) -> float:
        """Return the longest sum of a session's delays."""
        return max((sum(row) for row in self.delays_s), default=0.0)

    @property
    def shortest_delay_s(self) -> float:
        """Return the shortest delay between two turns; infinite without a second turn."""
        return min((one for row in self.delays_s for one in row[1:]), default=float("inf"))


@dataclass(frozen=True)
class Plan:
    """The requests of one scenario, as each of its client processes is given them.

    In an open loop, process i of W sends the requests whose index modulo W is i. In a closed loop
    it has the streams whose number modulo W is i, and of n streams, stream s sends the requests
    whose index modulo n is s. A process with i >= W sends none: load pods can have more processes
    than a closed loop has streams.
    """

    host: str
    port: int
    tls: bool
    head: str
    """Request line and headers up to `X-Request-Id: `; holds no key."""
    headers: dict[str, str]
    """Further headers; see `Endpoint.headers`."""
    bodies: list[str]
    """JSON request bodies."""
    body_of: list[int]
    """Body of request i is `bodies[body_of[i % len(body_of)]]`."""
    num_warmup_requests: int
    arrivals_s: list[float] | None
    """Open loop: seconds from the start, one per request. None for a closed loop."""
    concurrency: int | None
    """Closed loop: streams over all processes."""
    num_requests: int | None
    """Closed loop: how many to send, warm-up included; None to send until `duration_s`."""
    duration_s: float | None
    """Closed loop: seconds from the first measured request in which requests are begun."""
    timeout_s: float
    num_workers: int
    worker: int
    num_connections: int
    """Connections that this process opens before the start."""
    ca_file: str | None = None
    """A file of certificates to trust, next to the system's."""
    num_unchecked: int | None = None
    """The bodies from this one on are the reference's prompts, whose answers are kept."""
    leave_share: float = 0.0
    """The share of requests whose client leaves before the end."""
    leave_seed: int = 0
    leave_after_s: float | None = None
    leave_after_tokens: int | None = None
    trace_ends: bool = False
    """The times of a trace end before the scenario's duration."""
    route: str = "chat"
    """A key of ROUTES."""
    most_answer_bytes: int = 2**62
    """An answer that is longer is given up; see `client.answer_limit`."""
    form: dict[str, Any] | None = None
    """The form that requests ask of their answers; see `client.form`."""
    sessions: SessionPlan | None = None
    """Conversations, which then are the unit of `arrivals_s`, `concurrency`, `num_requests` and
    `num_warmup_requests`; `bodies` has what each turn adds."""

    @property
    def streams(self) -> range:
        """Return this process's streams of a closed loop, by their numbers over all processes."""
        return range(self.worker, self.concurrency or 0, self.num_workers)

    def number_of(self, num_begun: int) -> int:
        """Return the number of this process's next request or session in a closed loop.

        Each of n streams has every n-th number, so that a process with fewer streams has fewer.
        """
        rounds, place = divmod(num_begun, len(self.streams))
        return rounds * (self.concurrency or 1) + self.streams[place]

    def split(self, index: int) -> tuple[int, int]:
        """Return the session and the turn of a request; without sessions, the request and 0."""
        if self.sessions is None:
            return index, 0
        return divmod(index, self.sessions.stride)

    def split_all(self, index: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the sessions and the turns of requests; see `split`."""
        if self.sessions is None:
            return index, np.zeros(len(index), np.int64)
        return np.divmod(index, self.sessions.stride)

    def body_place(self, index: int) -> int:
        """Return the place of a request's body in `bodies`."""
        if self.sessions is None:
            return self.body_of[index % len(self.body_of)]
        return self.sessions.place(*self.split(index))

    def check_of(self, index: int) -> int | None:
        """Return which prompt of the reference a request asks; None for another request."""
        if self.num_unchecked is None or (place := self.body_place(index)) < self.num_unchecked:
            return None
        return place - self.num_unchecked

    def name_asked(self, index: int) -> str:
        """Return the served name that a request asks, which its body begins with."""
        body = self.bodies[self.body_place(index)] if self.sessions is None else (
            self.sessions.opens[self.sessions.conversation(self.split(index)[0])]
        )  # fmt: skip
        name, _ = json.JSONDecoder().raw_decode(body, body.index(":") + 2)
        return str(name)

    def tools_asked(self, index: int) -> list[dict[str, Any]]:
        """Return the tools that a request brings, in the form of its route."""
        place = self.body_place(index)
        body = self.bodies[place]
        if self.sessions is not None:
            body = "{" + self.sessions.closes[place].removeprefix("], ")
        tools: list[dict[str, Any]] = json.loads(body).get("tools", [])
        return tools

    def leaves(self, index: int) -> bool:
        """Return whether the client of a request leaves, by a hash of its index: a remainder would
        follow the turns of the sessions."""
        if not self.leave_share:
            return False
        digest = blake2b(b"%d:%d" % (self.leave_seed, index), digest_size=8).digest()
        return int.from_bytes(digest, "big") < self.leave_share * 2**64

    def is_warmup(self, index: int) -> bool:
        return self.split(index)[0] < self.num_warmup_requests

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Plan:
        sessions = value.get("sessions")
        if sessions is not None:
            value = {**value, "sessions": SessionPlan(**sessions)}
        return cls(**value)
