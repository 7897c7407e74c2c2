"""Whether the client is fit for the load of every scenario."""

from __future__ import annotations

from loadtest.calibration.calibrate import calibrate
from loadtest.config import LoadTestConfig
from loadtest.judging.validity import calibration_problems, lag_budget_s
from loadtest.report.schema import Calibration


def calibrate_client(
    config: LoadTestConfig, *, tls: bool = False
) -> tuple[dict[str, Calibration], list[str]]:
    """Measure what the client adds at the load of each scenario.

    Args:
        tls: Whether the endpoint is reached over TLS: decrypting costs the client time.

    Returns:
        The calibration of each scenario by name, and the problems of a client that adds too much.

    Raises:
        ServerError: The bundled server or a client process died.
    """
    found = {one.name: calibrate(config, one, tls=tls) for one in config.scenarios}
    problems = [
        f"{scenario.name}: {problem}"
        for scenario in config.scenarios
        for problem in calibration_problems(
            found[scenario.name], lag_budget_s(config, scenario.slo or config.slo)
        )
    ]
    return found, problems
