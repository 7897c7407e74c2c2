"""vLLM's process, from its start to the moment that nothing of it is left.

The server and everything it starts form one process group. It ends in one of four ways: by itself;
by SIGTERM and a drain; by SIGKILL to the group, where that takes too long or where the model is
still loading and vLLM does not hear SIGTERM; or by the lifeline (see
`serving.supervisor.launch`) when this process is gone.
"""

from __future__ import annotations

import errno
import http.client
import importlib.util
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from serving.command.arguments import Command, api_key, served_names, vllm_command
from serving.config import ServingConfig
from serving.supervisor.vllm_log import cause, last_lines
from tuneline.core.artifact import Artifact, cannot_write
from tuneline.core.endpoint import Endpoint
from tuneline.core.errors import MissingError, ServerError, TunelineError
from tuneline.core.progress import logger, progress
from tuneline.core.vllm_limits import EXIT_MARGIN_S
from tuneline.models.source import ModelSource

POLL_INTERVAL_S = 0.2
# How long processes that were killed may take to be gone; a device can hold one for a while.
GONE_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class RunningServer:
    endpoint: Endpoint
    metrics_url: str
    pid: int
    """Of the HTTP server, which is also the id of its process group."""
    ready_s: float
    """From the start of the process until it was ready."""
    served_names: list[str]
    log_path: Path


@contextmanager
def running(
    config: ServingConfig,
    model: ModelSource,
    *,
    name: str,
    adapter: Artifact | Path | None = None,
    log_path: Path,
    host: str = "127.0.0.1",
    port: int | None = None,
) -> Iterator[RunningServer]:
    """Serve a model for as long as the block lasts; afterwards no process of it is left.

    Args:
        name: The first name that it is served as; the second is `name@digest`.
        adapter: In adapter mode, the adapter to serve beside `model`, its base.
        log_path: Where vLLM's output goes; an earlier file is replaced.
        port: None takes a free one.

    Raises:
        ConfigError: A key is required and missing, or the mode and the adapter do not fit.
        MissingError: vLLM is not installed.
        ServerError: The port is taken, or the server died or was not ready in time.
    """
    with _reserved_port(host, port) as port:
        server = _Server(config, model, name, adapter, log_path, host, port)
        server.start()
        try:
            server.wait_until_ready()
            try:
                yield server.running()
            except TunelineError as error:
                # What a client saw of it is less than what the server said last.
                if server.exit_code() is not None:
                    raise server.death("while it was in use") from error
                raise
            if server.exit_code() is not None:
                logger.warning("%s", server.death("while it was in use").message)
        finally:
            server.stop()


def require_server(port: int | None) -> None:
    """What can be known of a server on loopback before there is a model to serve.

    Raises:
        MissingError: vLLM is not installed.
        ServerError: The port is taken.
    """
    _require_vllm()
    with _reserved_port("127.0.0.1", port):
        pass


def _require_vllm() -> None:
    if importlib.util.find_spec("vllm") is None:
        raise MissingError(
            "vLLM is not installed",
            hint="Try, in the checkout: make setup   (or: pip install -e '.[serve,cpu]'; "
            "with a GPU: serve,gpu)",
        )


def serve(
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
        on_ready: Called when it can be asked, again after each restart.

    Returns:
        0 after a signal.

    Raises:
        As `running`; a crash beyond `max_restarts` is a ServerError.
    """
    with _reserved_port(config.host, config.port) as port, _stop_signals() as stops:
        server = _Server(config, model, name, adapter, log_path, config.host, port)
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


class _Stops:
    """How many signals asked the foreground server to end."""

    def __init__(self) -> None:
        self.requested = 0

    def request(self, _number: int, _frame: FrameType | None) -> None:
        # No lock: a handler runs inside whatever the main thread does, which may hold it.
        self.requested += 1


@contextmanager
def _stop_signals() -> Iterator[_Stops]:
    stops = _Stops()
    before = {number: signal.signal(number, stops.request) for number in STOP_SIGNALS}
    try:
        yield stops
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class _Server:
    """One server: its process while there is one, and what it takes to start it again."""

    def __init__(
        self,
        config: ServingConfig,
        model: ModelSource,
        name: str,
        adapter: Artifact | Path | None,
        log_path: Path,
        host: str,
        port: int,
    ) -> None:
        _require_vllm()
        digest = adapter.digest if isinstance(adapter, Artifact) else model.digest
        self.names = served_names(name, digest)
        self.command: Command = vllm_command(
            config, model=model, adapter=adapter, served_names=self.names,
            host=host, port=port, environ=os.environ,
        )  # fmt: skip
        self.config = config
        self.address = _reachable(host), port
        self.key = api_key(config, host, os.environ)
        self.log_path = log_path
        self.restarts = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._lifeline: int | None = None
        self._ready_s: float | None = None

    def start(self) -> None:
        self._started_s = time.monotonic()
        self._ready_s = None
        try:
            self.log_path.parent.mkdir(parents=True, exist_ok=True)
            log = self.log_path.open("ab" if self.restarts else "wb")
        except OSError as error:
            raise cannot_write(self.log_path, error) from error
        read_end, self._lifeline = os.pipe()
        env = self.command.env | {
            "TUNELINE_LIFELINE": str(read_end),
            "TUNELINE_RESTARTS": str(self.restarts),
        }
        try:
            with log:
                self._log_start = log.tell()
                self._process = subprocess.Popen(
                    self.command.argv, env=env, stdin=subprocess.DEVNULL, stdout=log,
                    stderr=subprocess.STDOUT, start_new_session=True, pass_fds=(read_end,),
                )  # fmt: skip
        finally:
            os.close(read_end)

    @property
    def pid(self) -> int:
        assert self._process is not None, "start() comes first"  # noqa: S101
        return self._process.pid

    def exit_code(self) -> int | None:
        """How it ended, if it did. The process is not reaped yet, so that its id still names its
        group and no other."""
        ended = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is None:
            return None
        return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status

    def wait_until_ready(self, stops: _Stops | None = None) -> bool:
        """Whether it got ready; False where it was asked to stop before."""
        stops = stops or _Stops()
        deadline_s = self._started_s + self.config.ready_timeout_s
        with progress("loading the model", unit="s") as advance:
            while not _answers_ready(self.address):
                if stops.requested:
                    return False
                if self.exit_code() is not None:
                    raise self.death("while loading")
                if time.monotonic() > deadline_s:
                    raise self._failure(
                        f"vLLM was not ready after {self.config.ready_timeout_s:g} s",
                        "Raise serving.ready_timeout_s if the log shows that it was still loading.",
                    )
                advance(round(time.monotonic() - self._started_s))
                time.sleep(POLL_INTERVAL_S)
        self._ready_s = round(time.monotonic() - self._started_s, 2)
        return True

    def running(self) -> RunningServer:
        assert self._ready_s is not None, "wait_until_ready() comes first"  # noqa: S101
        host, port = self.address
        url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        return RunningServer(
            endpoint=Endpoint(f"{url}/v1", self.names[0], self.key),
            metrics_url=f"{url}/metrics",
            pid=self.pid,
            ready_s=self._ready_s,
            served_names=self.names,
            log_path=self.log_path,
        )

    def death(self, when: str) -> ServerError:
        code = self.exit_code()
        age_s = time.monotonic() - self._started_s
        how = f"exit code {code}" if code is None or code >= 0 else signal.Signals(-code).name
        hint = None
        if code == -signal.SIGKILL:
            hint = (
                "SIGKILL from elsewhere is most often the kernel running out of memory: see dmesg."
            )
        return self._failure(f"vLLM died {when}, after {age_s:.0f} s ({how})", hint)

    def stop(self, stops: _Stops | None = None) -> None:
        """End every process of the group; called again it does nothing."""
        if self._process is None:
            return
        try:
            if self._ready_s is not None and self.exit_code() is None:
                self._drain(stops or _Stops())
        finally:
            _kill_group(self.pid)
            self._process.wait()
            self._process = None
            if self._lifeline is not None:
                os.close(self._lifeline)
                self._lifeline = None

    def _drain(self, stops: _Stops) -> None:
        signals_before = stops.requested
        logger.info("stopping the server; answers get %d s", self.config.shutdown_timeout)
        os.kill(self.pid, signal.SIGTERM)
        deadline_s = time.monotonic() + self.config.shutdown_timeout + EXIT_MARGIN_S
        while self.exit_code() is None and time.monotonic() < deadline_s:
            if stops.requested > signals_before:
                return
            time.sleep(POLL_INTERVAL_S)

    def _failure(self, what: str, hint: str | None) -> ServerError:
        why, shown = cause(last_lines(self.log_path, self._log_start))
        lines = [f"{what}{': ' + why if why else ''}", *(f"  | {line}" for line in shown)]
        lines.append(f"  whole log: {self.log_path}")
        if hint is None and why and "KV cache" in why:
            hint = (
                "Lower serving.max_model_len, or raise serving.gpu_memory_utilization "
                "(on a CPU: serving.cpu_kvcache_space_gib)."
            )
        return ServerError("\n".join(lines), hint=hint)


@contextmanager
def _reserved_port(host: str, port: int | None) -> Iterator[int]:
    """Hold a port, or a free one, until vLLM listens on it and beyond.

    Linux lets a second socket bind and listen where the first only binds, if both set SO_REUSEADDR,
    as vLLM does; nobody is given the port in between, and a restart finds it again.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            holder.bind((host, port or 0))
        except (OSError, OverflowError) as error:
            raise _bind_error(host, port, error) from None
        yield holder.getsockname()[1]


def _bind_error(host: str, port: int | None, error: Exception) -> ServerError:
    code = getattr(error, "errno", None)
    if code == errno.EADDRINUSE:
        return ServerError(
            f"port {port} on {host} is taken by another process",
            hint="Leave serving.port out for a free one, or choose another: --set serving.port="
            f"{(port or 8000) + 1}   (who holds it: ss -ltnp 'sport = :{port}')",
        )
    if code == errno.EACCES:
        return ServerError(
            f"port {port} on {host} may not be used by this user",
            hint="Choose one above 1023: --set serving.port=8000",
        )
    return ServerError(
        f"serving.host {host!r}: cannot listen there ({error})",
        hint="Give an address of this machine: 127.0.0.1, or 0.0.0.0 for all of them.",
    )


def _answers_ready(address: tuple[str, int]) -> bool:
    connection = http.client.HTTPConnection(*address, timeout=2)
    try:
        connection.request("GET", "/ready")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _reachable(host: str) -> str:
    """Where a server that listens on every address is reached from here."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104


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


def _kill_group(group: int) -> None:
    """SIGKILL every process of the group and wait until they are gone."""
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return
    deadline_s = time.monotonic() + GONE_TIMEOUT_S
    while group_members(group) and time.monotonic() < deadline_s:
        time.sleep(0.02)


def group_members(group: int) -> list[int]:
    """Processes of a group that still run; a zombie only waits to be reaped."""
    members = []
    for directory in Path("/proc").iterdir():
        if not directory.name.isdecimal():
            continue
        try:
            stat = (directory / "stat").read_text(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        # Behind the name in parentheses: state, parent, process group (proc_pid_stat(5)).
        state, _, process_group = stat.rpartition(")")[2].split()[:3]
        if int(process_group) == group and state not in "ZX":
            members.append(int(directory.name))
    return members
