"""An API server for kubectl, as far as a deployment asks one.

No Debian or PyPI package carries the real one. This one answers what the real kubectl asks of it:
discovery, OpenAPI v3 (the parameters of patch), get by name and by label, server-side apply with
dry run, conflicts and optimistic locks, delete, logs, and port-forward over SPDY. It compares no
object with a schema; the schemas of the manifests have tests of their own.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.integration.k8s.cluster.objects import RESOURCES, VERSIONS, Refused, Store
from tests.integration.k8s.cluster.spdy import Tunnel


@dataclass
class ApiServer:
    """One cluster with one namespace.

    Attributes:
        backend_port: The port of the server in every pod.
        backends: For a text in a pod's name, which `$` ends, the port of its server.
        forbidden: Pairs of verb and resource that the user has no right to.
        denied: Resources whose objects an admission webhook refuses.
        slow_s: Every answer takes so long.
        hangs: No request is answered.
        hangs_after: No request is answered after so many applied objects.
        hangs_on: Pairs of verb and resource that get no answer; `store` is a patch without a dry
            run, and `log` and `portforward` are resources.
        tunnel_connections: The next tunnels carry so many connections each, then break.
        absent: Group versions that the cluster does not serve.
        once: For a verb and a resource, refusals that the next requests get, one each.
        is_ending: The namespace is being deleted: nothing new gets in.
    """

    store: Store = field(default_factory=Store)
    backend_port: int = 0
    backends: dict[str, int] = field(default_factory=dict)
    forbidden: set[tuple[str, str]] = field(default_factory=set)
    denied: set[str] = field(default_factory=set)
    absent: set[str] = field(default_factory=set)
    once: dict[tuple[str, str], list[Refused]] = field(default_factory=dict)
    is_ending: bool = False
    slow_s: float = 0.0
    hangs: bool = False
    hangs_after: int | None = None
    hangs_on: set[tuple[str, str]] = field(default_factory=set)
    tunnel_connections: list[int] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    port: int = 0
    stopped: threading.Event = field(default_factory=threading.Event)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def is_silent(self, verb: str, path: str) -> bool:
        """Return whether a request gets no answer."""
        url = urlsplit(path)
        _, *words = url.path.partition("/namespaces/")[2].split("/")
        is_part = len(words) > 2  # of an object: its log, or a tunnel to it
        resource = words[-1] if is_part else "".join(words[:1])
        asked = "get" if is_part else "list" if verb == "get" and len(words) == 1 else verb
        pairs = {(asked, resource)}
        if verb == "patch" and "dryRun" not in parse_qs(url.query):
            pairs.add(("store", resource))
        return (
            self.hangs
            or (self.hangs_after is not None and len(self.store.applied) >= self.hangs_after)
            or not pairs.isdisjoint(self.hangs_on)
        )

    def write_kubeconfig(self, path: Path, *, port: int | None = None) -> None:
        """Write a kubeconfig with one context, `test`, which is the current one."""
        server = f"http://127.0.0.1:{port or self.port}"
        config = {
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "c", "cluster": {"server": server}}],
            "users": [{"name": "u", "user": {}}],
            "contexts": [{"name": "test", "context": {"cluster": "c", "user": "u"}}],
        }  # fmt: skip
        path.write_text(json.dumps(config), encoding="utf-8")


@contextmanager
def emptied(api: ApiServer) -> Iterator[ApiServer]:
    """Return a running server as it was at its start: nothing in it, and no fault."""
    fresh = ApiServer()
    for name in (entry.name for entry in fields(ApiServer)):
        if name not in ("port", "stopped", "lock"):
            setattr(api, name, getattr(fresh, name))
    yield api
    api.hangs, api.hangs_after, api.hangs_on = False, None, set()


@contextmanager
def api_server() -> Iterator[ApiServer]:
    """Run an API server for the block."""
    cluster = ApiServer()

    class Bound(Handler):
        api = cluster

    server = QuietServer(("127.0.0.1", 0), Bound)
    server.daemon_threads = True
    cluster.port = server.server_address[1]
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
    )
    thread.start()
    try:
        yield cluster
    finally:
        cluster.stopped.set()
        server.shutdown()
        server.server_close()


class QuietServer(ThreadingHTTPServer):
    """A server whose clients may go before their answer."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """One connection of kubectl."""

    api: ApiServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        return

    def do_GET(self) -> None:
        self._answer("get")

    def do_POST(self) -> None:
        self._answer("create")

    def do_PATCH(self) -> None:
        self._answer("patch")

    def do_DELETE(self) -> None:
        self._answer("delete")

    def _answer(self, verb: str) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(size)
        if self.api.is_silent(verb, self.path):
            while self.api.is_silent(verb, self.path) and not self.api.stopped.is_set():
                time.sleep(0.05)
            # Nobody waits for the answer, and the next test has another cluster.
            self.close_connection = True
            return
        time.sleep(self.api.slow_s)
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        self.api.requests.append(f"{verb} {url.path}")
        try:
            if url.path.endswith("/portforward"):
                self._forward(url.path)
                return
            with self.api.lock:
                found = self._route(verb, url.path, query, body)
        except Refused as refused:
            status = {
                "apiVersion": "v1", "kind": "Status", "status": "Failure", "code": refused.code,
                "reason": refused.reason, "message": refused.message,
                "details": {"causes": refused.causes},
            }  # fmt: skip
            self._send(refused.code, status)
        else:
            self._send(200, found)

    def _send(self, code: int, document: Any) -> None:
        is_text = isinstance(document, str)
        body = document.encode() if is_text else json.dumps(document).encode()
        self.send_response(code)
        self.send_header("Content-Type", "text/plain" if is_text else "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _route(self, verb: str, path: str, query: dict[str, str], body: bytes) -> Any:
        parts = path.strip("/").split("/")
        if parts == ["openapi", "v2"]:
            # An empty message of protobuf: schemas of no kind.
            return ""
        if parts[0] == "openapi":
            return _openapi(self._versions(), parts)
        if parts == ["version"]:
            return {"major": "1", "minor": "36", "gitVersion": "v1.36.0"}
        if parts == ["api"]:
            return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}
        if parts == ["apis"]:
            return _groups(self._versions())
        length = 2 if parts[0] == "api" else 3
        version = "/".join(parts[1:length])
        if version not in self._versions():
            raise Refused(404, "NotFound", "the server could not find the requested resource")
        rest = parts[length:]
        if not rest:
            return _resources(version)
        return self._objects(verb, rest, query, body)

    def _versions(self) -> list[str]:
        return [version for version in RESOURCES if version not in self.api.absent]

    def _objects(self, verb: str, rest: list[str], query: dict[str, str], body: bytes) -> Any:
        store = self.api.store
        if rest[0] != "namespaces" or len(rest) < 3:
            raise Refused(404, "NotFound", "the server could not find the requested resource")
        namespace, resource, *named = rest[1:]
        asked = "list" if verb == "get" and not named else verb
        if (asked, resource) in self.api.forbidden:
            text = f'{resource} is forbidden: User "u" cannot {asked} resource "{resource}"'
            raise Refused(403, "Forbidden", f'{text} in the namespace "{namespace}"')
        if refusals := self.api.once.get((asked, resource)):
            raise refusals.pop(0)
        if self.api.is_ending and verb == "patch":
            text = f'{resource} "x" is forbidden: unable to create new content in namespace'
            raise Refused(403, "Forbidden", f"{text} {namespace} because it is being terminated")
        if verb == "get" and named[1:] == ["log"]:
            if query.get("previous") == "true":
                raise Refused(400, "BadRequest", "previous terminated container not found")
            return store.logs
        if verb == "get" and named:
            return store.find(resource, named[0])
        if verb == "get":
            kind = RESOURCES[VERSIONS[resource]][resource]
            items = store.select(resource, query.get("labelSelector", ""))
            return {
                "kind": f"{kind}List",
                "apiVersion": VERSIONS[resource],
                "metadata": {},
                "items": items,
            }
        if verb == "delete":
            return store.remove(resource, named[0])
        if namespace != store.namespace:
            raise Refused(404, "NotFound", f'namespaces "{namespace}" not found')
        if verb == "create":
            return store.create(resource, json.loads(body), manager=query["fieldManager"])
        if verb != "patch" or "apply-patch" not in self.headers["Content-Type"]:
            raise Refused(405, "MethodNotAllowed", f"{verb} {self.headers['Content-Type']}")
        if resource in self.api.denied:
            text = 'admission webhook "policy.example.com" denied the request: no team label'
            raise Refused(400, "BadRequest", text)
        return store.apply(
            resource, named[0], json.loads(body), manager=query["fieldManager"],
            force=query.get("force") == "true", dry_run=query.get("dryRun") == "All",
        )  # fmt: skip

    def _forward(self, path: str) -> None:
        if self.headers.get("Upgrade", "").upper() != "SPDY/3.1":
            # kubectl asks for a websocket first, and falls back.
            self._send(
                400, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 400}
            )
            return
        name = path.split("/")[-2]
        port = next(
            (p for part, p in self.api.backends.items() if part in f"{name}$"),
            self.api.backend_port,
        )
        head = (
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n"
            "X-Stream-Protocol-Version: portforward.k8s.io\r\n\r\n"
        )
        self.connection.sendall(head.encode())
        cuts = self.api.tunnel_connections
        Tunnel(self.connection, port, cuts.pop(0) if cuts else None).serve()
        self.close_connection = True


def _groups(versions: list[str]) -> Any:
    groups = []
    for version in versions:
        if "/" in version:
            entry = {"groupVersion": version, "version": version.split("/")[1]}
            groups.append(
                {"name": version.split("/")[0], "versions": [entry], "preferredVersion": entry}
            )
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}


def _resources(version: str) -> Any:
    verbs = ["create", "delete", "get", "list", "patch", "watch"]
    rows = [
        {
            "name": resource, "singularName": kind.lower(), "kind": kind, "verbs": verbs,
            "namespaced": resource != "namespaces",
        }
        for resource, kind in RESOURCES[version].items()
    ]  # fmt: skip
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": version,
        "resources": rows,
    }


def _openapi(versions: list[str], parts: list[str]) -> Any:
    """Return the list of documents, or the patch of each resource with its parameters."""
    paths = {version: ("api/v1" if version == "v1" else f"apis/{version}") for version in versions}
    if parts == ["openapi", "v3"]:
        urls = {path: {"serverRelativeURL": f"/openapi/v3/{path}"} for path in paths.values()}
        return {"paths": urls}
    version = next((v for v, path in paths.items() if path == "/".join(parts[2:])), None)
    if version is None:
        raise Refused(404, "NotFound", "the server could not find the requested resource")
    group, _, short = version.rpartition("/")
    names = ("dryRun", "fieldManager", "fieldValidation", "force")
    parameters = [{"name": name, "in": "query", "schema": {"type": "string"}} for name in names]
    found = {}
    for resource, kind in RESOURCES[version].items():
        path = f"/{paths[version]}/namespaces/{{namespace}}/{resource}/{{name}}"
        found[path] = {
            "patch": {
                "parameters": parameters,
                "x-kubernetes-group-version-kind": {"group": group, "version": short, "kind": kind},
                "responses": {},
            }
        }
    return {"openapi": "3.0.0", "info": {"title": "test", "version": "1"}, "paths": found}
