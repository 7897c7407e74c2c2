"""From records to the figures of a scenario. Pure.

docs/metrics.md has the definitions and sources. Three rules: a failed or unfinished request is
infinitely slow; every percentile carries the number of its values, and is withheld if that
number cannot support it; `offered = succeeded + failed + unfinished`, or the run is INVALID.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loadtest.arrivals.dispersion import dispersion
from loadtest.client.records import CANCELLED, FAILED, STATES, SUCCEEDED, UNFINISHED, Records
from loadtest.config import SLO
from loadtest.judging.clusters import Labels
from loadtest.judging.goodput import good
from loadtest.judging.intervals import block_length, mean_overlap
from loadtest.judging.latency import (
    Values,
    distribution,
    latency_sessions,
    latency_values,
    share_of,
    share_of_clustered,
)
from loadtest.judging.sessions import (
    Agents,
    KeptShare,
    Sessions,
    failed_share,
    session_figures,
    sessions_of,
)
from loadtest.judging.steady_state import steady_state
from loadtest.judging.window import Window
from loadtest.percentiles import name_of
from loadtest.report.part import Distribution, Share
from loadtest.report.schema import Dispersion, SteadyState, Throughput, Tokens
from loadtest.report.session_schema import SessionFigures


@dataclass(frozen=True)
class Statistics:
    """Everything measured of one scenario; warm-up is left out."""

    num_offered: int
    num_succeeded: int
    num_failed: int
    num_unfinished: int
    num_warmup: int
    failed: Share
    """Failed and unfinished requests."""
    good: Share | None
    """Requests that meet every goodput limit; None without limits or without requests."""
    within: dict[str, Share]
    """By latency objective, the share of the requests that keep to its limit."""
    errors: dict[str, int]
    retry_after_s: list[float]
    latencies: dict[str, Distribution]
    throughput: Throughput
    tokens: Tokens
    send_lag: Distribution
    connect_wait: Distribution
    """Of the requests that waited for a connection of their own."""
    arrivals_scheduled: Dispersion
    arrivals_delivered: Dispersion
    mean_in_flight: float | None
    """Requests in flight on average, by Little's law."""
    steady_state: SteadyState
    sessions: SessionFigures | None = None
    failed_sessions: Share | None = None
    """Sessions with a failed or unfinished turn; None without sessions."""
    num_cancelled: int = 0
    """Requests whose client left; the latencies and shares leave them out."""
    num_resent: int = 0
    """Requests that succeeded when they were sent once more: the server had closed the connection.
    Others count as failed."""


def statistics(
    records: Records,
    slo: SLO,
    *,
    exact_tokens: Values | None,
    window: Window,
    ended_early: bool = False,
    num_turns: Callable[[int], int] | None = None,
    kept_share: KeptShare | None = None,
    agents: Agents | None = None,
) -> Statistics:
    """Return every figure of one scenario.

    Args:
        records: All requests of the scenario, warm-up included.
        slo: For its goodput limits.
        exact_tokens: Tokens that each row's answer must have; None if they end by themselves.
        window: Over which rates are taken.
        ended_early: The run was given up: what was not sent by then was not to be sent.
        num_turns: With sessions: how many turns a session has.
        kept_share: With sessions: see `prefix_reuse`.
        agents: With sessions that have sub-agents: see `session_figures`.
    """
    # Over 60 lines: one pass gathers every figure, and one call lists them all by name.
    whole = records.select(~records.warmup)
    states = {code: int(np.sum(whole.state == code)) for code in range(len(STATES))}
    # Clients that left say nothing about the whole of an answer; the report has them apart.
    measured = whole.select(whole.state != CANCELLED)
    if exact_tokens is not None:
        exact_tokens = exact_tokens[~records.warmup][whole.state != CANCELLED]
    names, counts = np.unique(measured.error[measured.state == FAILED], return_counts=True)
    latencies = latency_values(measured)
    labels = {} if num_turns is None else latency_sessions(measured)
    decisive = ("ttft_s", "tpot_s", "e2e_s")
    in_flight = mean_in_flight(measured)
    block = block_length(in_flight or 1.0)
    sent = ~np.isnan(measured.sent_s)
    # A request that failed before it was sent found no connection: the server's failure, and no
    # arrival that the client kept back. One that the client never began is.
    kept_back = (measured.state == UNFINISHED) & ~np.isnan(measured.intended_s) & ~sent
    scheduled = sent if ended_early else sent | kept_back

    def share(hits: NDArray[np.bool_], of_hits: Labels, names: Sequence[str], block: int) -> Share:
        if num_turns is None:
            return share_of(hits, *(latencies[name] for name in names), block=block)
        pairs = [(latencies[name], labels[name]) for name in names]
        return share_of_clustered(hits, of_hits, *pairs, block=block)

    good_share = None
    if slo.has_goodput and len(measured):
        good_share = share(good(measured, slo), measured.session, decisive, block)
    within = {
        objective_name(metric, q): share(
            latencies[metric] <= limit, labels.get(metric, measured.session), [metric], block
        )
        for metric, limits in slo.latency.items()
        if metric in latencies
        for q, limit in limits.items()
    }
    found = {
        # Gaps are too many to resample, and no objective is set on them.
        name: distribution(
            values,
            block=None if name == "inter_chunk_gap_s" else block,
            clusters=labels.get(name),
            also=slo.latency.get(name, ()),
        )
        for name, values in latencies.items()
    }
    sessions = None
    if num_turns is not None:
        sessions = sessions_of(whole, num_turns)
        found |= _of_sessions(sessions, slo, within)
    return Statistics(
        num_offered=len(whole),
        num_cancelled=states[CANCELLED],
        num_resent=int(np.sum(whole.resent & (whole.state == SUCCEEDED))),
        num_succeeded=states[SUCCEEDED],
        num_failed=states[FAILED],
        num_unfinished=states[UNFINISHED],
        num_warmup=int(np.sum(records.warmup)),
        failed=share(measured.state != SUCCEEDED, measured.session, [], 1),
        good=good_share,
        within=within,
        errors={str(name): int(count) for name, count in zip(names, counts, strict=True)},
        retry_after_s=sorted({float(v) for v in measured.retry_after_s if not np.isnan(v)}),
        latencies=found,
        throughput=_throughput(records, measured, slo, window),
        tokens=_tokens(measured, exact_tokens),
        send_lag=distribution((measured.ready_s - measured.intended_s)[sent], withhold=False),
        connect_wait=distribution(measured.connect_s[measured.connect_s > 0], withhold=False),
        arrivals_scheduled=dispersion(measured.intended_s[scheduled]),
        arrivals_delivered=dispersion(measured.ready_s[sent]),
        mean_in_flight=in_flight,
        steady_state=_steady_state(measured, block),
        sessions=None
        if sessions is None
        else session_figures(
            whole, sessions, len(np.unique(records.session[records.warmup])), kept_share, agents
        ),
        failed_sessions=None if sessions is None else failed_share(sessions),
    )


def _of_sessions(sessions: Sessions, slo: SLO, within: dict[str, Share]) -> dict[str, Distribution]:
    """Return the latencies of sessions, and add the shares that keep to their objectives."""
    found = {}
    for name in ("session_s", "session_wait_s"):
        values = getattr(sessions, name)
        limits = slo.latency.get(name, {})
        found[name] = distribution(values, block=1, also=limits)
        for q, limit in limits.items():
            within[objective_name(name, q)] = share_of(values <= limit, values)
    return found


def objective_name(metric: str, q: float) -> str:
    """Return the name of a latency objective, as `--set loadtest.slo.` takes it."""
    return f"{metric}.{name_of(q)}"


def mean_in_flight(records: Records) -> float | None:
    """Return the sum of the times in the system over the span of the arrivals and ends."""
    return mean_overlap(records.intended_s, records.end_s)


def _steady_state(measured: Records, block: int) -> SteadyState:
    began = np.flatnonzero(~np.isnan(measured.intended_s))
    order = began[np.argsort(measured.intended_s[began], kind="stable")]
    ok = measured.state == SUCCEEDED
    e2e = np.where(ok, measured.last_token_s - measured.intended_s, np.inf)
    return steady_state(measured.intended_s[order], e2e[order], block)


def _throughput(records: Records, measured: Records, slo: SLO, window: Window) -> Throughput:
    start_s, end_s = window.rates_from_s, window.end_s
    span_s = end_s - start_s

    def per_second(amount: float) -> float | None:
        return float(amount) / span_s if span_s > 0 else None

    def inside(times_s: Values) -> NDArray[np.bool_]:
        return (times_s > start_s) & (times_s <= end_s)

    # A warm-up request that ends inside the window loads the server there, so it counts here.
    ok = records.state == SUCCEEDED
    of_ok = np.repeat(ok, records.num_events)
    prompts = np.nansum(records.prompt_tokens[ok & inside(records.first_token_s)])
    is_whole = window.name == "whole run"
    arrived = len(measured) if is_whole else np.sum(inside(measured.intended_s))
    num_good_inside = float(np.sum(good(records, slo) & inside(records.last_token_s)))
    return Throughput(
        window=window.name,
        window_s=span_s,
        offered_rps=per_second(float(arrived)),
        succeeded_rps=per_second(np.sum(ok & inside(records.last_token_s))),
        output_tokens_per_s=per_second(
            np.nansum(records.event_tokens[of_ok & inside(records.event_s)])
        ),
        prompt_tokens_per_s=per_second(prompts),
        goodput_rps=per_second(num_good_inside) if slo.has_goodput else None,
    )


def _tokens(measured: Records, exact_tokens: Values | None) -> Tokens:
    succeeded = measured.state == SUCCEEDED
    ok = measured.select(succeeded)
    known = ~np.isnan(ok.tokens)
    more = known & (ok.num_events > ok.tokens)
    cached = ok.cached_tokens[~np.isnan(ok.cached_tokens)]
    wrong = np.zeros(len(ok), np.bool_)
    if exact_tokens is not None:
        wrong = known & (ok.tokens != exact_tokens[succeeded])
    return Tokens(
        num_output_tokens=int(np.nansum(ok.tokens)),
        num_prompt_tokens=int(np.nansum(ok.prompt_tokens)),
        num_cached_prompt_tokens=int(np.sum(cached)) if len(cached) else None,
        num_events=int(np.sum(ok.num_events)),
        num_without_done=int(np.sum(ok.without_done)),
        num_without_usage=int(np.sum(~known)),
        num_more_events_than_tokens=int(np.sum(more)),
        num_wrong_length=int(np.sum(wrong)),
        num_first_tokens_estimated=int(np.sum(known & ~more & np.isnan(ok.first_tokens))),
        num_merged_events=int(np.sum(ok.merged_events)),
    )
