"""Which objectives a search can judge. Pure."""

from __future__ import annotations

from loadtest.config import LoadTestConfig
from loadtest.judging.intervals import num_to_tell_share
from loadtest.judging.statistics import objective_name
from loadtest.percentiles import num_needed
from tuneline.core.errors import ConfigError


def require_objective(config: LoadTestConfig, num_requests: int) -> None:
    """Check that a search can end in a rate.

    Args:
        num_requests: Requests of a probe; with `workload.sessions`, conversations. These have any
            number of turns, so only objectives on conversations can be checked before the run.

    Raises:
        ConfigError: No latency, throughput or goodput objective is set, or `num_requests` cannot
            judge a percentile or a share.
    """
    slo = config.slo
    has_objective = bool(slo.latency) or any(name.startswith("min_") for name in slo.bounds)
    if slo.has_goodput and not has_objective:
        limits = slo.model_dump(
            include={"goodput_ttft_s", "goodput_tpot_s", "goodput_e2e_s"}, exclude_none=True
        )
        raise ConfigError(
            f"the search needs an objective: {', '.join(sorted(limits))} says which requests are "
            "good, and not how many must be",
            hint="Try: --set loadtest.slo.min_goodput_share=0.9",
        )
    if not has_objective:
        raise ConfigError(
            "the search needs an objective besides max_error_rate",
            hint="Try: --set loadtest.slo.ttft_s.p90=0.5",
        )
    sessions = config.workload.sessions is not None
    unit = "conversations" if sessions else "requests"
    for metric, by_percentile in slo.latency.items():
        if sessions and not metric.startswith("session_"):
            continue
        for q in by_percentile:
            if num_requests < num_needed(q):
                raise ConfigError(
                    f"{num_requests} {unit} a probe cannot judge {objective_name(metric, q)}; "
                    f"expected at least {num_needed(q)}",
                    hint=f"Try: --requests {num_needed(q)}",
                )
    of_requests = (
        ("max_error_rate", slo.max_error_rate, 0.0, "0.0: no request may fail"),
        ("min_goodput_share", slo.min_goodput_share, 1.0, "1.0: no request may be slower"),
    )
    limit = slo.max_session_error_rate
    of_sessions = (("max_session_error_rate", limit, 0.0, "0.0: no conversation may fail"),)
    for name, limit, best, decides in of_sessions if sessions else of_requests:
        if limit is None or limit == best:
            continue
        needed = num_to_tell_share(best, limit)
        if num_requests < needed:
            raise ConfigError(
                f"{num_requests} {unit} a probe cannot judge {name} {limit:g}; expected at least "
                f"{needed}",
                hint=f"Try: --requests {needed}, or a {name} of {decides}",
            )
