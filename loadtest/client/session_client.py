"""The client of conversations: the turns of a session follow each other.

A turn is due when its delay has passed since the last byte of the turn before had arrived. The
kernel's stamp says when that was, so a busy client shows as send lag, as for single requests.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import MutableSequence, Sequence

from loadtest.client.answer import Answer
from loadtest.client.client import NEVER_NS, Client
from loadtest.client.connection import TIMESPEC, Request, monotonic_ns
from loadtest.client.headers import header_lines
from loadtest.client.plan import Plan
from loadtest.client.read_pacing import MAX_NAP_NS, MIN_NAP_NS
from loadtest.client.sse import parse_response
from loadtest.client.timer import KernelTimer

LONG_DELAY_S = 0.02
"""If every delay is longer, the client may see the end of a turn late: the next turn is due later
than that all the same."""


class Session:
    """One conversation while it runs."""

    __slots__ = ("ends_ns", "histories", "is_over", "num_open", "number")

    def __init__(self, number: int) -> None:
        self.number = number
        self.num_open = 0
        """Turns that are in flight, or that have a time at which they are due."""
        self.is_over = False
        """A turn has failed: no further turn begins."""
        self.histories: dict[int, list[bytes]] = {}
        """By lane, the JSON of what was said, up to and with the own part of the turn that runs."""
        self.ends_ns: dict[int, list[int]] = {}
        """Of each turn that waits for others: the ends of these so far."""


class SessionClient(Client):
    """Runs the sessions of a plan that fall to this process."""

    def __init__(self, plan: Plan, key: str | None, counters: MutableSequence[int]) -> None:
        assert plan.sessions is not None  # noqa: S101 (the caller checks)
        super().__init__(plan, key, counters)
        self.sessions = plan.sessions
        self.added = [body.encode() for body in plan.bodies]
        self.answers = [answer.encode() for answer in plan.sessions.answers]
        self.opens = [text.encode() for text in plan.sessions.opens]
        self.closes = [text.encode() for text in plan.sessions.closes]
        self.headers_end = f"\r\n{header_lines(plan.headers, key)}Content-Length: ".encode()
        self.tails = []
        self.next_turns: dict[int, list[list[int]]] = {}
        """By conversation; see `SessionPlan.next_turns`."""
        self.session_of: dict[int, Session] = {}
        """By the index of the request that is in flight."""
        self.due: list[tuple[int, int, Session]] = []
        """Turns that wait for their time: a heap of times, indices of requests and sessions."""
        self.turn_timer = KernelTimer(self.loop, self.begin_turns)
        if plan.sessions.shortest_delay_s < LONG_DELAY_S:
            self.most_nap_ns = MIN_NAP_NS
        else:
            self.most_nap_ns = MAX_NAP_NS

    async def run(self, start_ns: int) -> list[Request]:
        try:
            return await super().run(start_ns)
        finally:
            self.turn_timer.close()

    # --- sending ---

    def arrive(self, number: int, due_ns: int) -> None:
        session = Session(number)
        session.num_open = 1
        for turn in self.sessions.other_first_turns(number):
            self.push(session, turn, due_ns)
        self.begin_turn(session, 0, due_ns)

    def begin_turn(self, session: Session, turn: int, due_ns: int) -> None:
        sessions = self.sessions
        place = sessions.place(session.number, turn)
        added = self.added[place]
        if sessions.nonce and turn == 0:
            added = self.own(added, session)
        history = session.histories.setdefault(sessions.lane(session.number, turn), [])
        if sessions.is_fresh[place]:
            history.clear()
        history.append(added)
        index = session.number * sessions.stride + turn
        self.session_of[index] = session
        self.begin(index, due_ns)

    def tail_of(self, request: Request) -> bytes:
        session = self.session_of[request.index]
        sessions, turn = self.sessions, request.index % self.sessions.stride
        number = sessions.conversation(session.number)
        history = b", ".join(session.histories[sessions.lane(session.number, turn)])
        close = self.closes[sessions.place(session.number, turn)]
        if sessions.nonce:  # a route may have the system's messages after the history
            close = self.own(close, session)
        size = len(self.opens[number]) + len(history) + len(close)
        return b"%b%d\r\n\r\n%b%b%b" % (
            self.headers_end, size, self.opens[number], history, close,
        )  # fmt: skip

    def own(self, text: bytes, session: Session) -> bytes:
        """Return a text with the session's own nonce in place of the plan's."""
        nonce = (self.sessions.nonce or "").encode()
        return text.replace(nonce, b"%b-%d" % (nonce, session.number), 1)

    def begin_turns(self) -> None:
        """Send every turn that is due; then sleep until the next."""
        while self.due:
            due_ns, index, session = self.due[0]
            if due_ns > monotonic_ns():
                self.turn_timer.at(due_ns)
                return
            heapq.heappop(self.due)
            self.begin_turn(session, index % self.sessions.stride, due_ns)

    def next_due_ns(self) -> int:
        next_turn_ns = self.due[0][0] if self.due else NEVER_NS
        return min(next_turn_ns, super().next_due_ns())

    def is_waiting(self) -> bool:
        return bool(self.due)

    # --- ends ---

    def follow(self, request: Request, *, pause: bool) -> None:
        """Plan the next turns of a session after one has ended, or end the session."""
        session = self.session_of.pop(request.index)
        session.num_open -= 1
        if not session.is_over:
            failed = pause or self.stopping or request.error is not None
            session.is_over = failed or not self.plan_next(session, request)
            if session.is_over and session.num_open:
                self.drop_due(session)
        if not session.num_open:
            self.free_slot(pause=pause)

    def drop_due(self, session: Session) -> None:
        """Take the turns of a session that is over out of the heap; others may be in flight."""
        kept = [one for one in self.due if one[2] is not session]
        session.num_open -= len(self.due) - len(kept)
        heapq.heapify(kept)
        self.due = kept

    def plan_next(self, session: Session, request: Request) -> bool:
        """Put the turns that wait for nothing else into the heap; return False if the session
        cannot go on."""
        sessions, turn = self.sessions, request.index % self.sessions.stride
        following = self.following(session.number)[turn]
        if not following:
            return True
        said = self.answers[sessions.place(session.number, turn)]
        if sessions.keeps_own:
            reads = [data for _, _, data in request.reads]
            answer = parse_response(
                [0] * len(reads), reads, closed=request.closed, keep_text=True,
                route=self.plan.route,
            )  # fmt: skip
            if answer.error is not None:
                return False  # an answer without content has no place in a history
            message = {"role": "assistant", "content": answer.content}
            said = json.dumps(message, ensure_ascii=False).encode()
        if said:
            session.histories[sessions.lane(session.number, turn)].append(said)
        for one in following:
            ends_ns = session.ends_ns.setdefault(one, [])
            ends_ns.append(self.end_of(request))
            if len(ends_ns) == len(sessions.waited_for(session.number, one)):
                self.push(session, one, max(session.ends_ns.pop(one)))
        return True

    def following(self, number: int) -> list[list[int]]:
        """Return by turn the turns that wait for its end, of a session's conversation."""
        conversation = self.sessions.conversation(number)
        if conversation not in self.next_turns:
            self.next_turns[conversation] = self.sessions.next_turns(number)
        return self.next_turns[conversation]

    def push(self, session: Session, turn: int, from_ns: int) -> None:
        """Put a turn into the heap, whose delay begins at a time."""
        delays_s = self.sessions.delays_s[session.number % len(self.sessions.delays_s)]
        due_ns = from_ns + round(delays_s[turn] * 1e9)
        index = session.number * self.sessions.stride + turn
        heapq.heappush(self.due, (due_ns, index, session))
        session.num_open += 1
        if self.due[0][1] == index:
            self.turn_timer.at(due_ns)

    def end_of(self, request: Request) -> int:
        """Return when the last byte of a response had arrived, by the kernel if it says."""
        seen_ns, stamp, _ = request.reads[-1]
        if stamp is None:
            return seen_ns
        seconds, nanoseconds = TIMESPEC.unpack(stamp)
        arrived_ns: int = seconds * 1_000_000_000 + nanoseconds - self.clock_offsets[-1][1]
        return min(arrived_ns, seen_ns)


def find_model_changes(plan: Plan, requests: Sequence[Request], answers: Sequence[Answer]) -> None:
    """Give an answer the class `model_changed` if it names another model than the first turn's."""
    first: dict[int, str] = {}
    order = sorted(range(len(requests)), key=lambda place: requests[place].index)
    for place in order:
        answer = answers[place]
        if answer.error is not None or not answer.model:
            continue
        session, _ = plan.split(requests[place].index)
        name = first.setdefault(session, answer.model)
        if name != answer.model:
            answer.error = "model_changed"
            answer.message = f"the answer names the model {answer.model}; turn 1 named {name}"
