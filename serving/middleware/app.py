"""Tuneline's part of vLLM's server: `--middleware serving.middleware.TunelineMiddleware`.

- Paths without a row in `routes.py` do not exist. vLLM's key guards only `/v1`: without the list,
  `/invocations` answers prompts and `/adapters` loads weights, for anyone.
- Keys with names and limits, and limits of every request, before vLLM sees the request.
- `/ready`: 200 while it serves; 503 from the moment SIGTERM arrives, when the engine is gone, and
  when it makes no progress. vLLM's own `/health` stays 200 until the process is gone.
- A drain refuses new work with 503 and `Retry-After`, and loses nothing that it has accepted.
- Metrics of our own on vLLM's `/metrics` page, a request id, and an access log.
- Adapters at run time and recorded requests, if the server has such a section.

This package needs only the standard library and prometheus-client, and an image copies it whole.
Only adapters need more of Tuneline. Its settings are `TUNELINE_*` variables, so it runs alike below
`tuneline serve` and as the first process of a container.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from serving.middleware import limits
from serving.middleware.access_log import write_access
from serving.middleware.asgi import (
    RETRY_AFTER_S,
    App,
    Message,
    Receive,
    Scope,
    Send,
    answer,
)  # fmt: skip
from serving.middleware.body import Reading, Refusal, check_fields, parse_body, read_body, replayed
from serving.middleware.chat_page import CHAT_PAGE, answer_page, takes_basic
from serving.middleware.connections import Connections
from serving.middleware.cors import Origins, allowed_origins
from serving.middleware.drain import UNSENT_INTERVAL_S, call_on_sigterm, hand_on
from serving.middleware.engine import Process, engine_processes, own_children
from serving.middleware.exchange import Exchange
from serving.middleware.feedback import FEEDBACK, answer_feedback
from serving.middleware.first_answer import FAILS, why_no_answer
from serving.middleware.heartbeat import State, ask_engine
from serving.middleware.inner import call_inner
from serving.middleware.key_file import Key
from serving.middleware.keys import Keys
from serving.middleware.left_files import remove_left_files
from serving.middleware.lost_fields import refuse_lost_fields
from serving.middleware.metrics import (
    ADAPTER_REQUESTS,
    ADAPTER_SECONDS,
    ARTIFACT_INFO,
    CLIENTS_LEFT,
    DRAINING,
    IN_FLIGHT,
    KEY_REQUESTS,
    REQUESTS,
    RESTARTS,
    STALLED,
)  # fmt: skip
from serving.middleware.models_page import answer_models
from serving.middleware.open_adapters import open_adapters
from serving.middleware.recording import open_recorder, recorded, recording_headers
from serving.middleware.refusal_headers import refusal_headers
from serving.middleware.routes import ADAPTERS, MODELS, Route, find_route, open_routes, why_unknown
from serving.middleware.settings import read_settings
from serving.middleware.startup import is_first_front_end, process_age_s, record_start
from serving.middleware.watch import watch_engine


class TunelineMiddleware:
    """ASGI middleware; vLLM builds one per front-end process, around everything of its own."""

    def __init__(self, app: App) -> None:
        environ = os.environ
        remove_left_files()
        self.app = app
        self.settings = read_settings(environ)
        self.keys = Keys(environ)
        self.state: State = "moving"
        self.draining = False
        self.in_flight: set[Exchange] = set()
        self.proofs: set[asyncio.Task[tuple[int, bytes]]] = set()
        """Requests of proofs of adapters, which the heartbeat counts as in flight."""
        self.origins = Origins()
        self._num_prompts = 0  # of the requests in flight; a request may have a list of them
        self._reading = Reading()
        self._connections = Connections()
        self._has_handed_on = False
        self._next_look: asyncio.TimerHandle | None = None
        self._inner_scope: Scope = {}
        self._engines: Sequence[Process] = ()
        self._built_s = process_age_s()
        self._phases_s: dict[str, float] = {}
        self._facts = {
            name: environ.get(f"TUNELINE_ARTIFACT_{name.upper()}", "")
            for name in ("name", "kind", "digest")
        }
        self._base_name = environ.get("TUNELINE_BASE_NAME", "")
        self._base_digest = environ.get("TUNELINE_BASE_DIGEST", "")
        self._instance = environ.get("TUNELINE_INSTANCE", "")
        self._headers = [(b"x-tuneline-artifact", self._facts["digest"].encode())]
        self._headers.append((b"x-tuneline-engine", environ.get("TUNELINE_ENGINE", "").encode()))
        self.adapters = open_adapters(environ, self._call_vllm)
        self.recorder = open_recorder(environ, self._facts["digest"])
        parts = {"adapters": self.adapters, "feedback": self.recorder}
        self._headers += recording_headers(self.recorder)
        opened = [option for option, part in parts.items() if part is not None]
        self._routes = open_routes((*self.settings.routes, *opened))
        ARTIFACT_INFO.labels(**self._facts).set(1)
        DRAINING.set(0)
        STALLED.set(0)
        RESTARTS.inc(int(environ.get("TUNELINE_RESTARTS", "0")) if is_first_front_end() else 0)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            self._inner_scope = {key: scope[key] for key in ("app", "state") if key in scope}
            self.origins = allowed_origins(scope.get("app"))
            self._connections.record(self.settings)
            await self.app(scope, receive, self._at_start(send))
        elif scope["type"] == "http":
            await self._request(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    def drain(self) -> None:
        """Refuse new work from now on; vLLM ends when the work in flight is done."""
        if self.draining:
            return
        self.draining = True
        DRAINING.set(1)
        self._hand_on_if_done()
        if not self._has_handed_on:
            loop = asyncio.get_running_loop()
            loop.call_later(self.settings.shutdown_timeout_s, self._hand_on)

    async def _request(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = find_route(scope["path"], self._routes)
        exchange = Exchange(scope, receive, send, self._headers, self.origins.headers(scope))
        name, route = ("other", Route()) if found is None else found
        try:
            if found is None:
                what = f"{scope['method']} {scope['path']}"
                hint = why_unknown(scope["path"], self._routes)
                raise Refusal(404, f"Unknown route: {what}{hint}", kind="NotFoundError")
            if name == "/ready":
                await self._ready(exchange)
            elif name == "/health":
                await self._health(exchange)
            else:
                await self._guarded(exchange, name, route)
        except Refusal as refusal:
            await exchange.refuse(refusal, refusal_headers(refusal, name, route))
        except ConnectionError:
            exchange.client_left = True
        finally:
            if exchange.status == 0 and not exchange.client_left:
                exchange.status = 500  # vLLM raised; its own outer layer answers
            REQUESTS.labels(route=name, status=str(exchange.status)).inc()
            if exchange.client_left:
                CLIENTS_LEFT.labels(route=name).inc()
            if exchange.adapter:
                status, seconds = str(exchange.status), time.monotonic() - exchange.started_s
                ADAPTER_REQUESTS.labels(adapter=exchange.adapter, status=status).inc()
                ADAPTER_SECONDS.labels(adapter=exchange.adapter).inc(seconds)
            if route.is_work:
                KEY_REQUESTS.labels(key=exchange.key_name, status=str(exchange.status)).inc()
                write_access(exchange, self.settings.log_format)

    async def _guarded(self, exchange: Exchange, name: str, route: Route) -> None:
        """Answer a route that may need a key."""
        if self.origins.asks_before(exchange.scope):
            await self.app(exchange.scope, exchange.receive, exchange.send)
            return
        key = None
        if self.keys.are_required and not route.is_open:
            key = self._authenticate(exchange, route)
        if (method := exchange.scope["method"]) not in route.methods and name != ADAPTERS:
            raise Refusal(405, f"{name} takes {route.methods[0]}.", kind="MethodNotAllowedError")
        if route.is_work:
            await self._work(exchange, key, route)
        elif name == MODELS:
            edit = None if self.adapters is None else self.adapters.list_models
            await answer_models(self.app, exchange.scope, exchange.receive, exchange.send, edit)
        elif name == ADAPTERS:
            await self._change_adapters(exchange, key)
        elif name == FEEDBACK and self.recorder is not None:
            await answer_feedback(exchange, self.recorder, self.keys, key, self._body)
        elif name == CHAT_PAGE:
            await answer_page(exchange.send, method)
        elif route.names_model:
            _, body = await self._read(exchange, key)
            await self.app(exchange.scope, replayed(body, exchange.receive), exchange.send)
        else:
            await self.app(exchange.scope, exchange.receive, exchange.send)

    def _authenticate(self, exchange: Exchange, route: Route) -> Key:
        by_page = CHAT_PAGE in self._routes and takes_basic(exchange.scope)
        key = self.keys.find(exchange.scope, takes_basic=by_page)
        if key is None:
            raise Refusal(
                401, "The API key is missing or is not known.", kind="AuthenticationError",
                code="invalid_api_key",
            )  # fmt: skip
        exchange.key_name = key.name
        if route.needs_admin and not key.admin:
            raise Refusal(
                403, f"The key {key.name!r} is not an admin key.", kind="PermissionDeniedError",
                code="admin_key_required",
            )  # fmt: skip
        self.keys.authorize(exchange.scope, key)
        return key

    async def _work(self, exchange: Exchange, key: Key | None, route: Route) -> None:
        """Run the model: the limits first, then vLLM."""
        self._refuse_if_unable()
        use = None if key is None else self.keys.use(key)
        with limits.admitted(key, use):
            fields, body = await self._read(exchange, key)
            self._refuse_if_unable()  # the body of a slow client may come after SIGTERM
            number = 1 if fields is None else limits.num_prompts(fields, route.lists)
            limits.require_room(self._num_prompts, number, self.settings.max_in_flight)
            with limits.admitted_prompts(key, use, number):
                exchange.scope.setdefault("state", {})  # where vLLM leaves the usage
                exchange.reads_usage = use is not None and use.tokens is not None
                self.in_flight.add(exchange)
                self._num_prompts += number
                IN_FLIGHT.inc()
                try:
                    receive = replayed(body, exchange.receive)
                    with recorded(self.recorder, exchange, fields, body):
                        await self.app(exchange.scope, receive, exchange.send)
                finally:
                    limits.take_tokens(exchange, use, body)
                    IN_FLIGHT.dec()
                    self._num_prompts -= number
                    self.in_flight.discard(exchange)
                    if self.draining:
                        self._hand_on_if_done()

    async def _read(
        self, exchange: Exchange, key: Key | None
    ) -> tuple[dict[str, Any] | None, bytes]:
        """Return fields and body of a request that names a model, within the limits."""
        body = await self._body(exchange)
        fields = parse_body(body)
        if fields is None:
            return None, body
        check_fields(fields, self.settings, key)
        refuse_lost_fields(exchange.scope["path"], fields)
        return self._choose_model(exchange, fields, body)

    async def _body(self, exchange: Exchange) -> bytes:
        return await read_body(exchange.scope, exchange.receive, self.settings, self._reading)

    def _choose_model(
        self, exchange: Exchange, fields: dict[str, Any], body: bytes
    ) -> tuple[dict[str, Any], bytes]:
        """Return fields and body with the name by which vLLM knows the adapter that is named."""
        model = fields.get("model")
        found = None if self.adapters is None else self.adapters.resolve(model)
        if found is None:
            if self._base_name and (not model or model == self._base_name):
                exchange.answered_by(self._base_digest)  # vLLM's choice for a request without model
            return fields, body
        hidden, name, digest = found
        exchange.answered_by(digest, name)
        if fields["model"] != hidden:
            fields = {**fields, "model": hidden}
            body = json.dumps(fields, ensure_ascii=False).encode("utf-8", "surrogatepass")
        return fields, body

    async def _change_adapters(self, exchange: Exchange, key: Key | None) -> None:
        """Answer an admin key; a server without keys has no admin."""
        if key is None or self.adapters is None:
            raise Refusal(
                403, "Adapters are changed with an admin key.", kind="PermissionDeniedError",
                code="admin_key_required",
            )  # fmt: skip
        self._refuse_if_unable()
        method, path = exchange.scope["method"], exchange.scope["path"]
        fields = {} if method == "GET" else parse_body(await self._body(exchange) or b"{}")
        if fields is None:
            raise Refusal(400, "The body is not a JSON object.")
        below = path.removeprefix(ADAPTERS).removeprefix("/")
        await answer(exchange.send, 200, await self.adapters.answer(method, below, fields))

    async def _call_vllm(self, path: str, fields: Mapping[str, Any]) -> tuple[int, bytes]:
        """Return status and body of a request for the adapters. A stuck engine ends the request."""
        self._refuse_if_unable()
        scope = {**self._inner_scope, "headers": self.keys.vllm_headers()}
        call = asyncio.create_task(call_inner(self.app, scope, path, fields))
        # Loading computes no token, so its silence says nothing of the engine.
        runs_model = path in self._routes and self._routes[path].is_work
        calls = self.proofs if runs_model else set()
        calls.add(call)
        try:
            return await call
        except asyncio.CancelledError:
            if self.state != "stuck":
                raise
            message = "The engine of this server makes no progress."
            raise Refusal(503, message, kind="ServiceUnavailableError") from None
        finally:
            calls.discard(call)

    def _refuse_if_unable(self) -> None:
        why = None
        if self.draining:
            why = "This server is shutting down; ask again and another one answers."
        elif not self.engine_lives():
            why = "The engine of this server has ended; ask again."
        elif self.state != "moving":
            why = "The engine of this server makes no progress; ask again."
        if why is not None:
            raise Refusal(503, why, kind="ServiceUnavailableError", retry_after_s=RETRY_AFTER_S)

    async def _ready(self, exchange: Exchange) -> None:
        self._refuse_if_unable()
        document: dict[str, Any] = {"status": "ready", "instance": self._instance, **self._facts}
        document["start_s"] = self._phases_s
        if self.adapters is not None:
            if not self.adapters.is_restored:
                raise Refusal(
                    503, "The adapters are being proven.", kind="ServiceUnavailableError",
                    retry_after_s=RETRY_AFTER_S,
                )  # fmt: skip
            # Only the names: the route needs no key, and reasons name files of the server.
            document["failed_adapters"] = list(self.adapters.failed)
        await answer(exchange.send, 200, document)

    async def _health(self, exchange: Exchange) -> None:
        """Answer as vLLM does while the engine lives and moves; HEAD like GET."""
        if not self.engine_lives() or self.state == "stuck":
            self._refuse_if_unable()
        scope = {**exchange.scope, "method": "GET"}
        await self.app(scope, exchange.receive, exchange.send)

    def engine_lives(self) -> bool:
        """Return whether no process of the engine has ended."""
        return all(process.is_alive() for process in self._engines)

    def _hand_on_if_done(self) -> None:
        """Let vLLM end if every answer is computed and sent; a client may still read its answer."""
        if self.in_flight:
            return
        if self._connections.has_unsent():
            if self._next_look is not None:
                self._next_look.cancel()  # one look, however many answers end
            later = asyncio.get_running_loop().call_later
            self._next_look = later(UNSENT_INTERVAL_S, self._hand_on_if_done)
        else:
            self._hand_on()

    def _hand_on(self) -> None:
        if not self._has_handed_on:
            self._has_handed_on = True
            if self.recorder is not None:
                self.recorder.close()
            hand_on(exits_at_once=self.settings.exits_at_once)

    def _at_start(self, send: Send) -> Send:
        async def started(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete":
                began_s = time.monotonic()
                why = await why_no_answer(self.app, *self._own_request(), pools=self._pools)
                if why is not None:
                    await send({"type": "lifespan.startup.failed", "message": f"{FAILS}: {why}"})
                    return
                self._start_work(time.monotonic() - began_s)
            await send(message)

        return started

    def _start_work(self, answer_s: float) -> None:
        """Begin what runs as long as the server; the model has answered after `answer_s`."""
        call_on_sigterm(self.drain)
        self._engines = engine_processes()
        self._phases_s = record_start(self._built_s, answer_s, own_children())
        self._watching = asyncio.create_task(watch_engine(self, self._inner_scope.get("app")))
        self._closing = asyncio.create_task(self._connections.watch(self.settings))
        if self.recorder is not None:
            self.recorder.start()
        if self.adapters is not None:
            self._restoring = asyncio.create_task(self.adapters.restore())

    async def ask_engine(self) -> None:
        """Ask the engine for one token, so that an engine without work can show that it moves."""
        await ask_engine(self.app, *self._own_request(), pools=self._pools)

    @property
    def _pools(self) -> bool:
        return any(route.pools for route in self._routes.values())

    def _own_request(self) -> tuple[str, Scope]:
        """Return the model's name and the scope of a request of the server itself."""
        return self._facts["name"], {**self._inner_scope, "headers": self.keys.vllm_headers()}
