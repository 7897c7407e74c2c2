"""From records to the figures of sessions: their ends, their times, and their turns. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from loadtest.client.records import CANCELLED, FAILED, SUCCEEDED, Records
from loadtest.judging.clusters import bounds_of
from loadtest.judging.intervals import block_length, mean_overlap
from loadtest.judging.latency import Values, distribution, latency_values, share_of
from loadtest.report.part import Share
from loadtest.report.session_schema import SessionFigures, TurnFigures

MAX_TURNS_SHOWN = 32

KeptShare = Callable[[int, int], float]
"""Of a session and a turn: the share of the prompt before that the turn's prompt begins with."""


class Agents(Protocol):
    """Says which turns of a session are of sub-agents; see `SessionPlan`."""

    def lane(self, session: int, turn: int) -> int: ...

    def waited_for(self, session: int, turn: int) -> list[int]: ...


@dataclass(frozen=True)
class Sessions:
    """One row per measured session, in the order of their numbers."""

    begin_s: Values
    end_s: Values
    """The end of the last turn that was sent."""
    state: NDArray[np.uint8]
    """One of STATES: a session succeeds if every turn does, and fails if a turn fails."""
    num_turns: NDArray[np.int64]
    """Turns that the session has."""
    num_sent: NDArray[np.int64]
    session_s: Values
    """From the begin to the last token of the last turn; infinite unless the session succeeded. Not
    of sessions whose client left."""
    session_wait_s: Values
    """The same without the delays between the turns."""

    @property
    def failed(self) -> NDArray[np.bool_]:
        failed: NDArray[np.bool_] = ~np.isin(self.state, (SUCCEEDED, CANCELLED))
        return failed

    @property
    def mean_in_flight(self) -> float | None:
        """Return sessions in flight on average, by Little's law."""
        return mean_overlap(self.begin_s, self.end_s)


def sessions_of(measured: Records, num_turns: Callable[[int], int]) -> Sessions:
    """Return the sessions of measured requests.

    Args:
        measured: Requests without warm-up, ordered by session and turn.
        num_turns: How many turns a session has.
    """
    starts, sizes = bounds_of(measured.session)
    planned = np.array([num_turns(int(number)) for number in measured.session[starts]], np.int64)
    ok = measured.state == SUCCEEDED
    num_ok = np.add.reduceat(ok.astype(np.int64), starts) if len(starts) else planned
    any_failed = np.isin(np.arange(len(starts)), _owners(measured, starts, sizes, FAILED))
    whole = num_ok == planned
    left = np.isin(np.arange(len(starts)), _owners(measured, starts, sizes, CANCELLED))
    state = np.where(whole, SUCCEEDED, np.where(any_failed, FAILED, np.where(left, CANCELLED, 2)))
    begin_s = measured.intended_s[starts]
    last_s = np.fmax.reduceat(measured.last_token_s, starts) if len(starts) else begin_s
    total_waits = np.add.reduceat(_waits(measured), starts) if len(starts) else begin_s
    return Sessions(
        begin_s=begin_s,
        end_s=np.fmax.reduceat(measured.end_s, starts) if len(starts) else begin_s,
        state=state.astype(np.uint8),
        num_turns=planned,
        num_sent=sizes.astype(np.int64),
        session_s=np.where(whole, last_s - begin_s, np.inf)[~left],
        session_wait_s=np.where(whole, total_waits, np.inf)[~left],
    )


def _waits(measured: Records) -> Values:
    """Return the seconds that each request waits for its answer, without those in which an earlier
    request of its session waits as well: sub-agents wait next to each other."""
    waits = np.where(measured.state == SUCCEEDED, measured.last_token_s - measured.intended_s, 0.0)
    order = np.lexsort((measured.intended_s, measured.session))
    same = np.diff(measured.session[order]) == 0
    begin_s, until_s = measured.intended_s[order], -np.inf
    for place, wait in enumerate(waits[order]):
        until_s = until_s if place and same[place - 1] else -np.inf
        if begin_s[place] < until_s:
            waits[order[place]] = max(begin_s[place] + wait - until_s, 0.0)
        until_s = max(until_s, begin_s[place] + wait)
    return waits


def _owners(
    measured: Records, starts: NDArray[np.int64], sizes: NDArray[np.int64], state: int
) -> NDArray[np.int64]:
    """Return the sessions with a request in a state."""
    owners: NDArray[np.int64] = np.repeat(np.arange(len(starts)), sizes)
    found: NDArray[np.int64] = owners[measured.state == state]
    return found


def failed_share(sessions: Sessions) -> Share:
    """Return the share of sessions that failed or did not end, of those whose client stayed."""
    return share_of(sessions.failed[sessions.state != CANCELLED])


def session_figures(
    measured: Records,
    sessions: Sessions,
    num_warmup: int,
    kept_share: KeptShare | None,
    agents: Agents | None = None,
) -> SessionFigures:
    """Return the report's part on sessions.

    Args:
        agents: Says which turns are of sub-agents; None without any.
    """
    states = [int(np.sum(sessions.state == code)) for code in range(4)]
    failed = failed_share(sessions)
    return SessionFigures(
        offered=len(sessions.state),
        succeeded=states[0],
        failed=states[1],
        unfinished=states[2],
        cancelled=states[CANCELLED],
        warmup=num_warmup,
        error_rate=failed.value,
        error_rate_ci95=failed.ci95,
        num_turns=int(np.sum(sessions.num_turns)),
        num_turns_sent=int(np.sum(sessions.num_sent)),
        num_turns_not_reached=int(np.sum(sessions.num_turns - sessions.num_sent)),
        num_model_changes=int(np.sum(measured.error == "model_changed")),
        mean_in_flight=sessions.mean_in_flight,
        delay_s=distribution(_delays(measured, agents), withhold=False),
        prefix_reuse=prefix_reuse(measured, kept_share),
        turns=_turns(_own_turns(measured, agents)),
    )


def prefix_reuse(measured: Records, kept_share: KeptShare | None) -> float | None:
    """Return the share of prompt tokens that an earlier turn of the same session has sent.

    The prompt of a turn begins with the prompt of the turn before, or with a part of it if the
    conversation starts anew. The answer between them may be recorded text that the server has
    never seen. Without `kept_share`, every turn continues the history. None without counts of
    prompt tokens.
    """
    total = np.nansum(measured.prompt_tokens)
    if not total:
        return None
    follows = (measured.session[1:] == measured.session[:-1]) & (np.diff(measured.turn) == 1)
    places = np.flatnonzero(follows) + 1
    kept = [
        1.0
        if kept_share is None
        else kept_share(int(measured.session[one]), int(measured.turn[one]))
        for one in places
    ]
    before, after = measured.prompt_tokens[places - 1], measured.prompt_tokens[places]
    reused = np.minimum(before * np.array(kept), after)
    return float(np.nansum(reused) / total)


def _own_turns(measured: Records, agents: Agents | None) -> Records:
    """Return the turns of the conversations themselves, without those of their sub-agents."""
    if agents is None:
        return measured
    rows = zip(measured.session, measured.turn, strict=True)
    own = [agents.lane(int(session), int(turn)) == 0 for session, turn in rows]
    return measured.select(np.array(own, np.bool_))


def _delays(measured: Records, agents: Agents | None) -> Values:
    """Return the seconds from the end of a turn to the time when the next one was due."""
    if agents is not None:
        keys = list(zip(measured.session.tolist(), measured.turn.tolist(), strict=True))
        end_s = dict(zip(keys, measured.end_s.tolist(), strict=True))
        found = [
            begin_s - max(end_s[session, one] for one in before)
            for (session, turn), begin_s in zip(keys, measured.intended_s.tolist(), strict=True)
            if (before := agents.waited_for(session, turn))
        ]
        return np.array([delay for delay in found if not np.isnan(delay)], np.float64)
    follows = measured.session[1:] == measured.session[:-1]
    delays = (measured.intended_s[1:] - measured.end_s[:-1])[follows]
    known: Values = delays[~np.isnan(delays)]
    return known


def _turns(measured: Records) -> list[TurnFigures]:
    found = []
    for turn in range(min(int(np.max(measured.turn, initial=0)) + 1, MAX_TURNS_SHOWN)):
        rows = measured.select(measured.turn == turn)
        values = latency_values(rows)
        known = rows.prompt_tokens[~np.isnan(rows.prompt_tokens)]
        cached = rows.cached_tokens[~np.isnan(rows.cached_tokens)]
        # One value per conversation: these depend on each other only as far as they overlap.
        block = block_length(mean_overlap(rows.intended_s, rows.end_s) or 1.0)
        found.append(
            TurnFigures(
                turn=turn + 1,
                offered=len(rows),
                succeeded=int(np.sum(rows.state == SUCCEEDED)),
                mean_prompt_tokens=float(np.mean(known)) if len(known) else None,
                cached_share=float(np.sum(cached) / np.sum(known))
                if len(cached) and np.sum(known)
                else None,
                ttft_s=distribution(values["ttft_s"], block=block),
                tpot_s=distribution(values["tpot_s"], block=block),
                e2e_s=distribution(values["e2e_s"], block=block),
            )
        )
    return found
