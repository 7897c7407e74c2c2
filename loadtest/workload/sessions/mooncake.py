"""`source: mooncake` with sessions: requests whose blocks continue those of an earlier request."""

from __future__ import annotations

from dataclasses import dataclass

from loadtest.workload import mooncake
from loadtest.workload.content import Wanted, file_of
from loadtest.workload.sessions.conversation import Conversation, Turn


@dataclass
class _Open:
    """A conversation that a later request of the trace may continue."""

    turns: list[Turn]
    start_s: float
    last_s: float


def read(wanted: Wanted) -> list[Conversation]:
    """Return the trace's requests, joined into conversations.

    The trace (Qin et al., FAST 2025) names no conversation. A request continues the conversation
    whose last prompt it begins with, by all of that prompt's whole blocks; the last block of a
    prompt is rarely whole and does not count. The trace has start times only, so the recorded delay
    is the time between two starts: longer than the user's by the answer's time.
    """
    lines = mooncake.read_lines(file_of(wanted.workload))
    by_blocks: dict[tuple[int, ...], _Open] = {}
    found: list[_Open] = []
    for line in sorted(lines, key=lambda line: line.time_s):
        ids = mooncake.tokens_of(line, wanted.workload)
        num_whole = line.length // mooncake.BLOCK_TOKENS
        blocks = tuple((line.hashes or [])[:num_whole])
        session = _continued(by_blocks, blocks)
        delay_s = None if session is None else line.time_s - session.last_s
        turn = Turn(ids, [], delay_s, max(line.answer_length, 1), is_fresh=True)
        if session is None:
            session = _Open([turn], line.time_s, line.time_s)
            found.append(session)
        else:
            session.turns.append(turn)
            session.last_s = line.time_s
        if blocks:
            by_blocks[blocks] = session
    return [Conversation(one.turns, one.start_s) for one in found]


def _continued(by_blocks: dict[tuple[int, ...], _Open], blocks: tuple[int, ...]) -> _Open | None:
    """Return the conversation with the longest last prompt that these blocks begin with, and take
    it from the table: a conversation has one next turn."""
    for length in range(len(blocks), 0, -1):
        session = by_blocks.pop(blocks[:length], None)
        if session is not None:
            return session
    return None
