"""vLLM's process, from its start to the moment that nothing of it is left.

The server and everything it starts form one process group. It ends in one of four ways: by itself;
by SIGTERM and a drain; by SIGKILL to the group, if that takes too long or if the model is
still loading and vLLM does not hear SIGTERM; or by the lifeline (see
`serving.supervisor.launch`) when this process is gone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import os
import secrets
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from serving.command.keys import readable_keys
from serving.command.parser_check import check_flags
from serving.command.vllm_version import require_vllm
from serving.config import ServingConfig
from serving.kernels.bake import fill_cache
from serving.kernels.cache import CompileCache, temporary_cache
from serving.middleware.first_answer import FAILS
from serving.scratch import Scratch, new_scratch
from serving.supervisor.diagnosis import why_not_loaded
from serving.supervisor.group import kill_group
from serving.supervisor.plan import Launch, plan_launch
from serving.supervisor.ports import reserved_port
from serving.supervisor.preparation import Preparation, prepare
from serving.supervisor.signals import Stops
from serving.supervisor.vllm_log import (
    cause,
    engine_parts_s,
    is_disk_full,
    keep_earlier_logs,
    last_lines,
    with_engine_parts,
)
from tuneline.core.artifact import Artifact
from tuneline.core.disk import cannot_write
from tuneline.core.endpoint import Endpoint
from tuneline.core.errors import ServerError, TunelineError
from tuneline.core.progress import logger, progress
from tuneline.core.vllm_limits import VLLM_EXIT_MARGIN_S
from tuneline.models.source import ModelSource

POLL_INTERVAL_S = 0.1
USAGE_STATUS = 2
"""With which vLLM ends if it does not take a flag."""
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class RunningServer:
    """A server that is ready, and how to reach it."""

    endpoint: Endpoint
    metrics_url: str
    pid: int
    """Of the HTTP server, which is also the id of its process group."""
    ready_s: float
    """From the start of the process until it was ready."""
    start_s: dict[str, float]
    """The parts of `ready_s`: imports, engine, weights, compile and warm-up, routes, answer."""
    served_names: list[str]
    log_path: Path
    cache: CompileCache


@contextmanager
def running_server(
    config: ServingConfig,
    model: ModelSource,
    *,
    name: str,
    adapter: Artifact | Path | None = None,
    log_path: Path,
    port: int | None = None,
    check: Callable[[], None] | None = None,
) -> Iterator[RunningServer]:
    """Serve a model for as long as the block lasts; afterwards no process of it is left.

    Args:
        name: The first name that it is served as; the second is `name@digest`.
        adapter: In adapter mode, the adapter to serve next to `model`, its base.
        log_path: Where vLLM's output goes; earlier files are kept as `NAME.1`, `NAME.2`.
        port: None takes a free one.
        check: Checks the model's files, in a thread, before vLLM reads them.

    Raises:
        ArtifactError: The server died while loading, and the model folder is broken; or `check`
            has raised it.
        ConfigError: A key is required and missing, or the mode and the adapter do not fit.
        MissingError: vLLM is not installed.
        ServerError: The port is taken, or the server died or was not ready in time.
    """
    config = config.model_copy(update={"recording": None})  # nobody else asks this server
    with reserved_port(LOOPBACK, port) as port:
        server = Server(plan_launch(config, model, adapter, name, log_path, LOOPBACK, port), check)
        try:
            server.start()
            server.wait_until_ready()
            try:
                yield server.running()
            except TunelineError as error:
                # The server's last output says more than the client's error.
                if server.exit_code() is not None:
                    raise server.death("while it was in use") from error
                raise
            if server.exit_code() is not None:
                logger.warning("%s", server.death("while it was in use").message)
        finally:
            server.close()


def require_server(config: ServingConfig) -> None:
    """Check what can be known of a server on loopback before there is a model to serve.

    Raises:
        ConfigError: The keys file cannot be used, or vLLM's parser refuses a flag.
        MissingError: vLLM is not installed, or its version has known holes.
        ServerError: The port is taken.
    """
    require_vllm()
    check_flags(config)
    if config.keys_file is not None:
        readable_keys(Path(config.keys_file))
    with reserved_port(LOOPBACK, config.port):
        pass


class Server:
    """One server: its process while there is one. A class, since a restart keeps the launch."""

    def __init__(self, launch: Launch, check: Callable[[], None] | None = None) -> None:
        self.launch = launch
        self.restarts = 0
        self._checks = [self._check_cache, *([check] if check is not None else [])]
        self._preparation: Preparation | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._scratch: Scratch | None = None
        self._lifeline: int | None = None
        self._lifeline_lock = threading.Lock()
        self._start_s: dict[str, float] = {}
        self._ready_s: float | None = None
        self._instance = ""

    def start(self) -> None:
        self._started_s = time.monotonic()
        self._ready_s = None
        self._instance = secrets.token_hex(8)
        self._scratch = new_scratch()
        try:
            self.launch.log_path.parent.mkdir(parents=True, exist_ok=True)
            if self.restarts == 0:
                keep_earlier_logs(self.launch.log_path)
            log = self.launch.log_path.open("ab")
        except OSError as error:
            raise cannot_write(self.launch.log_path, error) from error
        read_end, self._lifeline = os.pipe()
        env = (
            self.launch.command.env
            | self.launch.cache.env(os.environ)
            | {
                "TMPDIR": str(self._scratch.path),
                "TUNELINE_LIFELINE": str(read_end),
                "TUNELINE_RESTARTS": str(self.restarts),
                "TUNELINE_INSTANCE": self._instance,
            }
        )
        try:
            with log:
                self._log_start = log.tell()
                self._process = subprocess.Popen(
                    self.launch.command.argv, env=env, stdin=subprocess.DEVNULL, stdout=log,
                    stderr=subprocess.STDOUT, start_new_session=True, pass_fds=(read_end,),
                )  # fmt: skip
        finally:
            os.close(read_end)
        # After a crash the files are those of the first start.
        checks = self._checks if self.restarts == 0 else []
        self._preparation = prepare(checks, self.launch.model.path, self._let_load)

    def _check_cache(self) -> None:
        cache, baked = self.launch.cache, self.launch.config.compile_cache
        cache.check(None if baked is None else lambda: fill_cache(cache, Path(baked)))

    def _let_load(self) -> None:
        with self._lifeline_lock:
            if self._lifeline is not None:
                # vLLM has ended, and the main thread sees it.
                with contextlib.suppress(BrokenPipeError):
                    os.write(self._lifeline, b"1")

    @property
    def pid(self) -> int:
        assert self._process is not None, "start() comes first"  # noqa: S101
        return self._process.pid

    def exit_code(self) -> int | None:
        """Return how it ended, if it did. The process is not reaped yet, so that its id still names
        its group and no other."""
        ended = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is None:
            return None
        return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status

    def wait_until_ready(self, stops: Stops | None = None) -> bool:
        """Return whether it got ready; False if it was asked to stop before."""
        stops = stops or Stops()
        with progress("loading the model", unit="s") as advance:
            while not self._answers_ready():
                if stops.requested:
                    return False
                if self._preparation is not None and self._preparation.error is not None:
                    raise self._preparation.error
                if self.exit_code() is not None:
                    lines = last_lines(self.launch.log_path, self._log_start)
                    answers_none = any(FAILS in line for line in lines)
                    death = self.death("at its first request" if answers_none else "while loading")
                    if not self._has_left_full_cache():
                        is_usage = self.exit_code() == USAGE_STATUS
                        config = self.launch.config if is_usage else None
                        raise why_not_loaded(death, self.launch.model, config)
                    logger.warning("%s\nvLLM starts again without the compile cache", death.message)
                if time.monotonic() - self._started_s > self.launch.config.ready_timeout_s:
                    raise self._failure(
                        f"vLLM was not ready after {self.launch.config.ready_timeout_s:g} s",
                        "Raise serving.ready_timeout_s if the log shows that it was still loading.",
                    )
                advance(round(time.monotonic() - self._started_s))
                time.sleep(POLL_INTERVAL_S)
        self._ready_s = round(time.monotonic() - self._started_s, 2)
        self.launch.cache.record()
        return True

    def _has_left_full_cache(self) -> bool:
        """Start again with a temporary compile cache if vLLM died of a full disk."""
        cache = self.launch.cache
        lines = last_lines(self.launch.log_path, self._log_start)
        if not cache.is_kept or not is_disk_full(lines):
            return False
        self.stop()
        cache.close()
        self.launch = dataclasses.replace(self.launch, cache=temporary_cache(cache.key))
        self.start()
        return True

    def running(self) -> RunningServer:
        assert self._ready_s is not None, "wait_until_ready() comes first"  # noqa: S101
        host, port = self.launch.address
        url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        return RunningServer(
            endpoint=Endpoint(f"{url}/v1", self.launch.names[0], self.launch.command.key),
            metrics_url=f"{url}/metrics",
            pid=self.pid,
            ready_s=self._ready_s,
            start_s=self._start_s,
            served_names=self.launch.names,
            log_path=self.launch.log_path,
            cache=self.launch.cache,
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

    def stuck(self, why: str) -> ServerError:
        """End a server that would not hear of a drain, and return the error."""
        kill_group(self.pid)
        return self._failure(why, None)

    def stop(self, stops: Stops | None = None) -> None:
        """End every process of the group; called again it does nothing."""
        if self._process is None:
            return
        if self._preparation is not None:
            self._preparation.ended.set()
        try:
            if self._ready_s is not None and self.exit_code() is None and self.health() != 503:
                self._drain(stops or Stops())
        finally:
            kill_group(self.pid)
            self._process.wait()
            self._process = None
            with self._lifeline_lock:
                if self._lifeline is not None:
                    os.close(self._lifeline)
                    self._lifeline = None
            if self._scratch is not None:
                self._scratch.close()
                self._scratch = None
        if self._ready_s is not None:
            self.launch.cache.record()

    def close(self) -> None:
        """End the server and leave its compile cache to others."""
        try:
            self.stop()
        finally:
            self.launch.cache.close()

    def _drain(self, stops: Stops) -> None:
        signals_before = stops.requested
        logger.info("stopping the server; answers get %d s", self.launch.config.shutdown_timeout)
        os.kill(self.pid, signal.SIGTERM)
        deadline_s = time.monotonic() + self.launch.config.shutdown_timeout + VLLM_EXIT_MARGIN_S
        while self.exit_code() is None and time.monotonic() < deadline_s:
            if stops.requested > signals_before:
                return
            time.sleep(POLL_INTERVAL_S)

    def _answers_ready(self) -> bool:
        """Return whether the server is ready.

        Raises:
            ServerError: Another server answers on the port.
        """
        status, body = ask(self.launch.address, "/ready")
        if status != 200:
            return False
        try:
            found = json.loads(body)
        except ValueError:
            found = None
        if not isinstance(found, dict) or found.get("instance") != self._instance:
            host, port = self.launch.address
            raise ServerError(
                f"port {port} on {host} is answered by another server",
                hint=f"Who holds it: ss -ltnp 'sport = :{port}'; leave serving.port out for a "
                "free port.",
            )
        self._start_s = with_engine_parts(
            found.get("start_s", {}), engine_parts_s(self.launch.log_path, self._log_start)
        )
        return True

    def health(self) -> int | None:
        """Return the status of `/health`: 503 if the engine makes no progress or is gone, None if
        the front end does not answer."""
        return ask(self.launch.address, "/health")[0]

    def _failure(self, what: str, hint: str | None) -> ServerError:
        why, shown = cause(last_lines(self.launch.log_path, self._log_start))
        lines = [f"{what}{': ' + why if why else ''}", *(f"  | {line}" for line in shown)]
        lines.append(f"  whole log: {self.launch.log_path}")
        if hint is None and why and "KV cache" in why:
            hint = (
                "Lower serving.max_model_len, or raise serving.gpu_memory_utilization "
                "(on a CPU: serving.cpu_kvcache_space_gib)."
            )
        if hint is None and why and "_OpNamespace" in why:
            hint = "The installed vLLM does not have this kernel: serve the model on a GPU."
        return ServerError("\n".join(lines), hint=hint)


def ask(address: tuple[str, int], path: str) -> tuple[int | None, bytes]:
    """Return status and body of a GET; the status is None if nothing answers in two seconds."""
    connection = http.client.HTTPConnection(*address, timeout=2)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    except (OSError, http.client.HTTPException):
        return None, b""
    finally:
        connection.close()
