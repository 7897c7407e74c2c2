"""`tuneline serve`: a server in the foreground that starts again after a crash."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from serving.config import ServingConfig
from serving.middleware.routes import open_routes
from serving.supervisor.plan import plan_launch
from serving.supervisor.ports import reserved_port
from serving.supervisor.process import POLL_INTERVAL_S, RunningServer, Server
from serving.supervisor.signals import Stops, stop_signals
from serving.supervisor.vllm_log import keep_log_small
from tuneline.core.artifact import Artifact
from tuneline.core.errors import ServerError
from tuneline.core.progress import logger
from tuneline.models.companion_files import has_chat_template
from tuneline.models.source import ModelSource

WITHOUT_TEMPLATE = (
    "has no chat template: the server refuses every chat with status 400 and answers "
    "/v1/completions only\n  Try: --set serving.extra_args.chat_template=FILE.jinja"
)
HEALTH_INTERVAL_S = 2.0
GRACE_S = 8.0
"""How long a server that is not healthy may take to end by itself, or to be healthy again."""
UNANSWERED_S = 60.0
"""The front end is stuck if it answers no probe for so long, as in the pods' livenessProbe."""
RESTART_WINDOW_S = 3600.0
LONGEST_PAUSE_S = 60.0
SIGNAL_EXIT = 128
"""A shell reports the end of a program by a signal as 128 and the number of the signal."""


def serve_model(
    config: ServingConfig,
    model: ModelSource,
    *,
    name: str,
    adapter: Artifact | Path | None = None,
    log_path: Path,
    on_ready: Callable[[RunningServer], None] | None = None,
    check: Callable[[], None] | None = None,
) -> int:
    """Serve until SIGINT or SIGTERM, then let answers in progress finish; a second signal ends it
    at once. A server that crashes or whose engine is stuck is started again, after a pause and at
    most `config.max_restarts` times within an hour.

    Listens on `config.host` and `config.port`. Call it from the main thread.

    Args:
        name: The first name that it is served as; the second is `name@digest`.
        adapter: In adapter mode, the adapter to serve next to `model`, its base.
        log_path: Where vLLM's output goes; the two logs before are kept, those of earlier starts
            and those that grew too large.
        on_ready: Called once, when it can be asked. A restart has the same address.
        check: Checks the model's files, in a thread, before vLLM reads them.

    Returns:
        0 after a signal; 128 and the signal's number if the server was not ready by then.

    Raises:
        ArtifactError: `check` has raised it.
        ConfigError: A key is required and missing, or the mode and the adapter do not fit.
        MissingError: vLLM is not installed.
        ServerError: The port is taken, the server was not ready in time, or it crashed more than
            `max_restarts` times.
    """
    chats = answers_chats(config, model, adapter)
    if not chats and not config.pools:
        logger.warning("%s", f"{model.path} {WITHOUT_TEMPLATE}")
    with ExitStack() as stack:
        port = stack.enter_context(reserved_port(config.host, config.port))
        stops = stack.enter_context(stop_signals())
        launch = plan_launch(config, model, adapter, name, log_path, config.host, port)
        server = stack.enter_context(closing(Server(launch, check)))
        ended_s: list[float] = []
        while True:
            server.start()
            try:
                if server.wait_until_ready(stops):
                    logger.info("%s", _how_to_call(server.running(), config, chats))
                    if on_ready is not None and server.restarts == 0:
                        on_ready(server.running())
                    why = _watch(server, stops)
                    if stops.requested:
                        server.stop(stops)
                        return 0
                    death = server.stuck(why) if why else server.death("while serving")
                else:
                    return SIGNAL_EXIT + stops.first
            except ServerError as error:
                if server.restarts == 0:
                    raise
                death = error
            finally:
                server.stop()
            now_s = time.monotonic()
            ended_s = [at_s for at_s in ended_s if now_s - at_s < RESTART_WINDOW_S]
            if len(ended_s) >= config.max_restarts:
                raise death
            pause_s = min(2.0 ** len(ended_s), LONGEST_PAUSE_S)
            ended_s.append(now_s)
            server.restarts += 1
            logger.warning(
                "%s\nrestart %d of at most %d within an hour, in %g s", death.message,
                len(ended_s), config.max_restarts, pause_s,
            )  # fmt: skip
            if _sleep(pause_s, stops):
                return SIGNAL_EXIT + stops.first


def _watch(server: Server, stops: Stops) -> str | None:
    """Return when the server has ended, must end, or is stuck; the reason if it is stuck."""
    asked_s = answered_s = time.monotonic()
    while server.exit_code() is None and not stops.requested:
        time.sleep(POLL_INTERVAL_S)
        if time.monotonic() - asked_s < HEALTH_INTERVAL_S:
            continue
        health = server.health()
        asked_s = time.monotonic()
        keep_log_small(server.launch.log_path)
        if health is not None:
            answered_s = asked_s
        elif asked_s - answered_s >= UNANSWERED_S:
            return f"vLLM answered no probe for {asked_s - answered_s:.0f} s"
        # A server whose engine has died says so too; its own end gives a better reason. An engine
        # that moves again is healthy again.
        if health == 503 and not _ends_within(server, GRACE_S, stops) and server.health() == 503:
            return "vLLM made no progress while requests were running"
    return None


def _ends_within(server: Server, seconds: float, stops: Stops) -> bool:
    """Return whether the server ends by itself, or must end."""
    deadline_s = time.monotonic() + seconds
    while time.monotonic() < deadline_s:
        if server.exit_code() is not None or stops.requested:
            return True
        time.sleep(POLL_INTERVAL_S)
    return False


def _sleep(seconds: float, stops: Stops) -> bool:
    """Sleep; return True at once when a signal has asked to stop."""
    deadline_s = time.monotonic() + seconds
    while time.monotonic() < deadline_s and not stops.requested:
        time.sleep(POLL_INTERVAL_S)
    return bool(stops.requested)


def answers_chats(
    config: ServingConfig, model: ModelSource, adapter: Artifact | Path | None
) -> bool:
    """Return whether the server writes text and has a chat template: an option's, the adapter's or
    the model's.

    Raises:
        ArtifactError: A file of the folder cannot be read.
    """
    if config.pools:
        return False
    if config.given_args & {"chat_template"}:
        return True
    folder = adapter.path if isinstance(adapter, Artifact) else adapter
    return any(has_chat_template(one) for one in (folder, model.path) if one is not None)


def _example(config: ServingConfig, chats: bool) -> tuple[str, dict[str, Any]]:
    """Return the path of an open route, and the fields of a request that it answers."""
    if config.pools:
        path = next(path for path, route in open_routes(config.routes).items() if route.pools)
        pair = {"queries": "Hello", "documents": ["Good morning"]}
        return path, pair if path == "/score" else {"input": "Hello"}
    if chats:
        return "/v1/chat/completions", {"messages": [{"role": "user", "content": "Hello"}]}
    return "/v1/completions", {"prompt": "Hello"}


def _how_to_call(ready: RunningServer, config: ServingConfig, chats: bool) -> str:
    endpoint = ready.endpoint
    authorization = ""
    if endpoint.api_key is not None:
        # The key of this process is not for clients if a file names theirs.
        variable = config.api_key_env if config.keys_file is None else "KEY"
        authorization = f' -H "Authorization: Bearer ${variable}"'
    address = endpoint.url.removesuffix("/v1")
    path, fields = _example(config, chats)
    body = {"model": endpoint.model, **fields}
    names = ", ".join(ready.served_names)
    parts = ", ".join(f"{part} {seconds:.1f}" for part, seconds in ready.start_s.items())
    kernels = "warm" if ready.cache.is_warm else "empty"
    page = f"   chat: {address}/chat" if "page" in config.routes else ""
    recording = config.recording
    records = "" if recording is None else f"\n  requests are recorded in {recording.folder}"
    return (
        f"ready after {ready.ready_s:.1f} s: {endpoint.url} serves {names}\n"
        f"  seconds: {parts}; the compile cache was {kernels}\n"
        f"  curl {address}{path} -H 'Content-Type: application/json'"
        f"{authorization} -d '{json.dumps(body)}'\n"
        f"  metrics: {ready.metrics_url}   log: {ready.log_path}{page}   stop: Ctrl-C{records}"
    )
