"""`tuneline serve`: a server in the foreground that starts again after a crash."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

from serving.config import ServingConfig
from serving.supervisor.ports import reserved_port
from serving.supervisor.process import POLL_INTERVAL_S, RunningServer, Server, plan_launch
from serving.supervisor.signals import stop_signals
from tuneline.core.artifact import Artifact
from tuneline.core.endpoint import Endpoint
from tuneline.core.errors import ServerError
from tuneline.core.progress import logger
from tuneline.models.source import ModelSource


def serve_model(
    config: ServingConfig,
    model: ModelSource,
    *,
    name: str,
    adapter: Artifact | Path | None = None,
    log_path: Path,
    on_ready: Callable[[Endpoint], None] | None = None,
) -> int:
    """Serve until SIGINT or SIGTERM, then let answers in progress finish; a second signal ends it
    at once. A server that crashes is started again, `config.max_restarts` times at most.

    Listens on `config.host` and `config.port`. Call it from the main thread.

    Args:
        name: The first name that it is served as; the second is `name@digest`.
        adapter: In adapter mode, the adapter to serve next to `model`, its base.
        log_path: Where vLLM's output goes; an earlier file is replaced.
        on_ready: Called when it can be asked, again after each restart.

    Returns:
        0 after a signal.

    Raises:
        ConfigError: A key is required and missing, or the mode and the adapter do not fit.
        MissingError: vLLM is not installed.
        ServerError: The port is taken, the server was not ready in time, or it crashed more than
            `max_restarts` times.
    """
    with reserved_port(config.host, config.port) as port, stop_signals() as stops:
        server = Server(plan_launch(config, model, adapter, name, log_path, config.host, port))
        while True:
            server.start()
            try:
                if server.wait_until_ready(stops):
                    logger.info("%s", _how_to_call(server.running(), config))
                    if on_ready is not None:
                        on_ready(server.running().endpoint)
                while server.exit_code() is None and not stops.requested:
                    time.sleep(POLL_INTERVAL_S)
                if stops.requested:
                    server.stop(stops)
                    return 0
                death = server.death("while serving")
            except ServerError as error:
                if server.restarts == 0:
                    raise
                death = error
            finally:
                server.stop()
            if server.restarts == config.max_restarts:
                raise death
            server.restarts += 1
            logger.warning(
                "%s\nrestart %d of %d", death.message, server.restarts, config.max_restarts
            )


def _how_to_call(ready: RunningServer, config: ServingConfig) -> str:
    endpoint = ready.endpoint
    authorization = ""
    if endpoint.api_key is not None:
        authorization = f' -H "Authorization: Bearer ${config.api_key_env}"'
    body = {"model": endpoint.model, "messages": [{"role": "user", "content": "Hello"}]}
    names = ", ".join(ready.served_names)
    return (
        f"ready after {ready.ready_s:.0f} s: {endpoint.url} serves {names}\n"
        f"  curl {endpoint.url}/chat/completions -H 'Content-Type: application/json'"
        f"{authorization} -d '{json.dumps(body)}'\n"
        f"  metrics: {ready.metrics_url}   log: {ready.log_path}   stop: Ctrl-C"
    )
