"""The route that a run's load test asks must be one that its server opens."""

from __future__ import annotations

from typing import get_args

from tuneline.core.errors import ConfigError
from tuneline.pipeline.run_config import Run

OPENED_BY = {"rerank": "score"}
"""Routes of a load test that `serving.routes` opens by another name."""


def require_route(run: Run) -> None:
    """Check that the server of a run opens the route of its load test.

    Raises:
        ConfigError: It does not.
    """
    serving, workload = run.config.serving, run.config.loadtest.workload
    opened = [*serving.routes] if serving.pools else ["chat", *serving.routes]
    known = get_args(type(workload).model_fields["route"].annotation)
    fit = [one for one in known if OPENED_BY.get(one, one) in opened]
    if workload.route not in fit:
        raise ConfigError(
            f"{run.path}: loadtest.workload.route is {workload.route}, which serving.routes does "
            f"not open; expected {' or '.join(fit)}",
            hint=f"Try: --set loadtest.workload.route={fit[0]}",
        )
