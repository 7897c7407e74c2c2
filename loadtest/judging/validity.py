"""Do the numbers say anything about the server? If not, the run is INVALID. Pure.

Two groups of problems: those of the client and its host, which another try may not have, and those
of the answers, which contradict themselves.
"""

from __future__ import annotations

from collections.abc import Mapping

from loadtest.config import SLO, LoadTestConfig
from loadtest.judging.statistics import Statistics
from loadtest.report.schema import Calibration, Client

MIN_LAG_BUDGET_S = 0.002
LAG_SHARE_OF_OBJECTIVE = 0.02
MAX_RATE_DIFFERENCE = 0.01
MAX_CV_DIFFERENCE = 0.05
MAX_DISPERSION_DIFFERENCE = 0.25
MAX_MERGED_SHARE = 0.05
MAX_USUAL_LAG_S = 0.05
MAX_HIT_RATE_DIFFERENCE = 0.05
MAX_RESENT_SHARE = 0.05
MAX_WAITED_SHARE = 0.01
MAX_STEAL_SHARE = 0.1
MAX_THROTTLED_SHARE = 0.01
MAX_REASONS = 5
"""Reasons for entries that were not sent that a warning names."""


def lag_budget_s(config: LoadTestConfig, slo: SLO, e2e_p50_s: float | None = None) -> float:
    """Return the lag at which the client itself could decide an objective, in seconds.

    Args:
        config: For `max_client_lag_s`, which takes precedence.
        slo: The lag is a share of its tightest TTFT or end-to-end objective.
        e2e_p50_s: Without such an objective, the lag is a share of this.
    """
    if config.max_client_lag_s is not None:
        return config.max_client_lag_s
    limits = [*slo.ttft_s.values(), *slo.e2e_s.values()]
    limits += [limit for limit in (slo.goodput_ttft_s, slo.goodput_e2e_s) if limit is not None]
    scale = min(limits, default=e2e_p50_s or 0.0)
    return max(MIN_LAG_BUDGET_S, LAG_SHARE_OF_OBJECTIVE * scale)


def client_problems(
    config: LoadTestConfig, slo: SLO, stats: Statistics, client: Client, open_loop: bool
) -> tuple[list[str], list[str]]:
    """Check that the client sent and read in time, and delivered the scheduled load.

    Returns:
        Problems, and warnings.
    """
    budget_s = lag_budget_s(config, slo, stats.latencies["e2e_s"].at(50))
    problems = _late(stats, client, budget_s)
    warnings: list[str] = []
    merged = stats.tokens.num_merged_events
    if merged > MAX_MERGED_SHARE * max(stats.tokens.num_events, 1):
        # A server may write several events at once. The client is the reason only if it read
        # later than the events are apart.
        read_lag_s = client.read_lag_s.at(99) or 0.0
        is_ours = read_lag_s > max(budget_s, stats.latencies["inter_chunk_gap_s"].at(90) or 0.0)
        (problems if is_ours else warnings).append(
            f"{merged} of {stats.tokens.num_events} events came together with the event before, so "
            "that their own times are lost (this affects inter_chunk_gap_s and not tpot_s)"
            + (f"; the client read up to {read_lag_s * 1e3:.1f} ms late" if is_ours else "")
        )
    if config.max_client_lag_s is not None and config.max_client_lag_s > MAX_USUAL_LAG_S:
        warnings.append(
            f"max_client_lag_s allows the client {config.max_client_lag_s * 1e3:g} ms of lag and "
            "widens the limits of the arrivals: not for a release decision"
        )
    waited_s = client.connect_wait_s.at(50) or 0.0
    if client.connect_wait_s.n > MAX_WAITED_SHARE * stats.num_offered and waited_s > budget_s:
        warnings.append(
            f"{client.connect_wait_s.n} of {stats.num_offered} requests waited for a connection of "
            f"their own, {waited_s * 1e3:.1f} ms at the median, which TTFT and end-to-end latency "
            "contain: the server closes its connections, or more were needed than were open"
        )
    exhausted = stats.errors.get("client_exhausted", 0)
    if exhausted:
        problems.append(
            f"the client ran out of sockets or ports: {exhausted} requests were not sent"
        )
    if open_loop and stats.num_offered > 10:
        problems += _arrivals(stats, config.max_client_lag_s or 0.0)
    return problems + _host(client), warnings


def _late(stats: Statistics, client: Client, budget_s: float) -> list[str]:
    """Return whether the client sent late, or was too busy to read in time."""
    problems = []
    send_lag_s = client.send_lag_s.at(99) or 0.0
    if send_lag_s > budget_s:
        problems.append(
            f"the client sent late: p99 of its send lag is {send_lag_s * 1e3:.1f} ms; at most "
            f"{budget_s * 1e3:.1f} ms is allowed"
        )
    # Where the kernel stamps the reads, a late loop does harm only if events run together, which
    # takes a loop that is later than the events are apart.
    loop_lag_s = client.loop_lag_s.at(99) or 0.0
    kernel_clock = client.num_reads_kernel_clock == client.num_reads > 0
    gap_s = stats.latencies["inter_chunk_gap_s"].at(50)
    loop_budget_s = max(budget_s, gap_s or 0.0) if kernel_clock else budget_s
    if loop_lag_s > loop_budget_s:
        problems.append(
            f"the client was busy: p99 of its loop lag is {loop_lag_s * 1e3:.1f} ms; at most "
            f"{loop_budget_s * 1e3:.1f} ms is allowed"
        )
    return problems


def answer_problems(
    config: LoadTestConfig, slo: SLO, stats: Statistics, num_closed_at_once: int = 0
) -> tuple[list[str], list[str]]:
    """Check that every request has an end, and that the answers' tokens add up.

    Args:
        num_closed_at_once: Requests, warm-up included, that were sent again because the server
            closes each connection after its answer. They end when the client has seen that.

    Returns:
        Problems, and warnings.
    """
    problems: list[str] = []
    warnings: list[str] = []
    total = stats.num_succeeded + stats.num_failed + stats.num_unfinished + stats.num_cancelled
    if total != stats.num_offered:
        problems.append(f"{stats.num_offered} requests were offered; {total} have an end")
    if stats.num_resent:
        num_others = stats.num_resent - num_closed_at_once
        is_many = num_others > MAX_RESENT_SHARE * stats.num_offered
        (problems if is_many else warnings).append(
            f"the server closed the connection of {stats.num_resent} of {stats.num_offered} "
            "requests before any answer, and answered them when the client sent them once more"
            + (f" (at most {MAX_RESENT_SHARE:.0%} is allowed)" if is_many else "")
        )
    tokens = stats.tokens
    needs_tokens = bool(slo.tpot_s) or not (
        slo.min_output_throughput_tps is None and slo.goodput_tpot_s is None
    )
    if tokens.num_without_usage:
        text = f"{tokens.num_without_usage} answers carry no usage: their tokens are not known"
        (problems if needs_tokens else warnings).append(text)
        if config.ignore_eos:
            problems.append("the exact lengths of ignore_eos cannot be checked without usage")
    if tokens.num_more_events_than_tokens:
        # Lengths that the request fixes show that the count is right.
        is_exact = config.ignore_eos and not tokens.num_wrong_length
        (problems if needs_tokens and not is_exact else warnings).append(
            f"{tokens.num_more_events_than_tokens} answers have more text events than tokens by "
            "the server's usage: a gateway cut their text anew, or the usage counts too few. "
            "Latencies are those of the events; "
            + (
                "ignore_eos shows that the count is right"
                if is_exact
                else "tpot_s and tokens/s are as right as the usage"
            )
        )
    if tokens.num_wrong_length:
        problems.append(
            f"{tokens.num_wrong_length} answers do not have exactly {config.max_tokens} tokens, "
            "which ignore_eos asks for"
        )
    if tokens.num_without_done:
        warnings.append(
            f"{tokens.num_without_done} answers end without [DONE]; the finish reason and the end "
            "of the HTTP body show that they are whole"
        )
    if tokens.num_first_tokens_estimated:
        warnings.append(
            f"{tokens.num_first_tokens_estimated} answers hold several tokens per event without a "
            "count in each: their tpot_s takes the mean for the first"
        )
    return problems, warnings


def calibration_problems(calibration: Calibration, budget_s: float) -> list[str]:
    """Check that the client adds little at this load, by the server of known delays."""
    problems = [f"calibration: {problem}" for problem in calibration.problems]
    for name, bias_s in (
        ("ttft_bias_p50_s", calibration.ttft_bias_p50_s),
        ("ttft_bias_p90_s", calibration.ttft_bias_p90_s),
    ):
        if bias_s is not None and abs(bias_s) > budget_s:
            problems.append(
                f"calibration: {name} is {bias_s * 1e3:.1f} ms; at most {budget_s * 1e3:.1f} ms "
                "is allowed"
            )
    return problems


def reuse_warnings(reusable: float | None, found: float | None) -> list[str]:
    """Compare the server's cache hits with the prompt tokens that turns send again."""
    if reusable is None or found is None or abs(found - reusable) <= MAX_HIT_RATE_DIFFERENCE:
        return []
    words = (
        "the server computed a part of the history again"
        if found < reusable
        else "conversations share text, or an earlier run filled the cache"
    )
    return [
        f"the prefix cache held {found:.0%} of the prompt tokens; {reusable:.0%} repeat an earlier "
        f"turn: {words}"
    ]


def unique_warnings(num_requests: int, num_prompts: int) -> list[str]:
    """Return that unique prompts were sent more than once: a run has a limited number of them."""
    if num_requests <= num_prompts:
        return []
    return [
        f"unique_prompts made {num_prompts} prompts for {num_requests} requests: the later ones "
        "repeat earlier prompts, and a prefix cache may answer them"
    ]


def left_out_warnings(left_out: Mapping[str, int]) -> list[str]:
    """Return how many entries of the workload's file were not sent, by reason."""
    if not left_out:
        return []
    reasons = [f"{count} x {reason}" for reason, count in left_out.items()]
    if len(reasons) > MAX_REASONS:
        num_others = sum(list(left_out.values())[MAX_REASONS:])
        reasons[MAX_REASONS:] = [f"{num_others} x other reasons"]
    total = sum(left_out.values())
    return [f"{total} entries of the workload's file were not sent: {'; '.join(reasons)}"]


def hit_rate_problems(declared: float, found: float | None) -> list[str]:
    """Check the prefix cache's hit rate against the declared one."""
    if found is None:
        return ["prefix_hit_rate is declared, but the server reports none"]
    if abs(found - declared) <= MAX_HIT_RATE_DIFFERENCE:
        return []
    return [f"the prefix cache held {found:.0%} of the prompt tokens; {declared:.0%} is declared"]


def _arrivals(stats: Statistics, allowed_lag_s: float) -> list[str]:
    """Check that the delivered load is the scheduled load.

    A lag that the user allows the client moves arrivals by that much. Its share of a gap widens the
    limits of the gaps, and its share of the run widens the limit of the rate.
    """
    problems = []
    wanted, found = stats.arrivals_scheduled, stats.arrivals_delivered
    in_gaps = 2 * allowed_lag_s * (wanted.rate_rps or 0.0)
    in_run = in_gaps / max(wanted.num_arrivals, 1)
    for what, scheduled, delivered, allowed, floor in (
        ("requests/s", wanted.rate_rps, found.rate_rps, MAX_RATE_DIFFERENCE + in_run, 0.0),
        (
            "as the gaps' coefficient of variation",
            wanted.gap_cv,
            found.gap_cv,
            MAX_CV_DIFFERENCE + in_gaps,
            1.0,
        ),
        (
            "as index of dispersion",
            wanted.index_of_dispersion,
            found.index_of_dispersion,
            MAX_DISPERSION_DIFFERENCE + in_gaps,
            1.0,
        ),
    ):
        if scheduled is None or delivered is None:
            continue
        if abs(delivered - scheduled) > allowed * max(scheduled, floor):
            problems.append(f"delivered {delivered:.3g} {what}, scheduled {scheduled:.3g}")
    return problems


def _host(client: Client) -> list[str]:
    """Check that the host left the client its CPU."""
    problems = []
    for share, allowed, what in (
        (
            client.steal_share,
            MAX_STEAL_SHARE,
            "the hypervisor took {:.0%} of the CPU time",
        ),
        (
            client.throttled_share,
            MAX_THROTTLED_SHARE,
            "a CPU quota stopped the client {:.0%} of the time",
        ),
    ):
        if share is not None and share > allowed:
            problems.append(what.format(share) + f"; at most {allowed:.0%} is allowed")
    return problems
