"""Prometheus: the figures of the newest step, at a port of this machine."""

from __future__ import annotations

import re
from collections.abc import Mapping

from training.tracking.tracker import TrackedRun, Tracker

ADDRESS = "127.0.0.1"
PREFIX = "tuneline_training_"


def open_prometheus(run: TrackedRun) -> Tracker:
    """Serve `/metrics` on the loopback interface until the training ends."""
    from prometheus_client import CollectorRegistry, Gauge, start_http_server

    assert run.port is not None  # noqa: S101 (for the type checker)
    registry = CollectorRegistry()
    gauges: dict[str, Gauge] = {}

    def put(name: str, value: float) -> None:
        if name not in gauges:
            metric = PREFIX + re.sub(r"\W", "_", name, flags=re.ASCII)
            gauges[name] = Gauge(metric, f"{name} of the newest logged step", registry=registry)
        gauges[name].set(value)

    put("step", run.first_step)
    server, thread = start_http_server(run.port, addr=ADDRESS, registry=registry)

    def log(step: int, figures: Mapping[str, float]) -> None:
        put("step", step)
        for name, value in figures.items():
            put(name, value)

    def finish(_failed: bool) -> None:
        server.shutdown()
        server.server_close()
        thread.join(timeout=5)

    return Tracker(log, finish)
