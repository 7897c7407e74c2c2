"""Adapters at run time: public names, the versions behind them, and `/v1/adapters`.

vLLM knows a version by its hidden name, `NAME@DIGEST`. A name is public only after its proof, and
the middleware refuses every hidden name that is not. A request for `NAME` reaches vLLM as a request
for the version that `NAME` means at that moment; a request in progress keeps its version.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import sys
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote

from serving.adapters.check import require_fit
from serving.adapters.proof import prove_adapter
from serving.adapters.settings import AdapterSettings
from serving.adapters.store import (
    Desired,
    Version,
    lock_state,
    open_version,
    read_state,
    remove_other_versions,
    store_version,
    write_state,
)
from serving.middleware.body import Refusal
from serving.middleware.metrics import ADAPTER_INFO, ADAPTER_PROOFS
from tuneline.core.digests import short_digest
from tuneline.core.errors import ArtifactError, ConfigError, ServerError, TunelineError
from tuneline.core.parity import Parity

Call = Callable[[str, Mapping[str, Any]], Awaitable[tuple[int, bytes]]]
"""`await call(path, fields)`: status and body of a request to vLLM."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
FIGURES = (
    "num_prompts", "num_equal_answers", "max_logprob_difference", "mean_logprob_difference",
)  # fmt: skip

# By the exit code of the error: the status and the code of the answer.
STATUS = {
    2: (400, "adapter_request_refused"),
    3: (422, "adapter_refused"),
    4: (507, "adapter_not_stored"),
    5: (502, "adapter_not_answered"),
    6: (422, "adapter_proof_failed"),
    7: (422, "adapter_proof_inconclusive"),
}


class Adapters:
    """The adapters of this process. A class, since requests and admin routes share the names."""

    def __init__(self, settings: AdapterSettings, call: Call) -> None:
        """Read the desired adapters.

        Raises:
            TunelineError: The list is broken, or another server uses it; a server must not start.
        """
        self.settings = settings
        self.is_restored = False
        self.failed: dict[str, str] = {}
        """Desired adapters that could not be loaded or proven, with the reason."""
        self._call = call
        self._lock = asyncio.Lock()
        self._state_lock = lock_state(settings.state_dir)
        self._desired = read_state(settings.state_dir)
        self._loaded: set[str] = set()
        """Hidden names that vLLM knows."""
        self._public: dict[str, str] = {}
        """Hidden names by public name."""
        self._digests: dict[str, str] = {}
        """Digests by hidden name."""

    def resolve(self, model: object) -> tuple[str, str, str] | None:
        """Return hidden name, name and digest of the adapter that a request names; None for a
        model that is not an adapter of this table.

        Raises:
            Refusal: The adapter is not proven, or failed.
        """
        if not isinstance(model, str):
            return None
        name = model.partition("@")[0]
        if (hidden := self._public.get(model)) is not None:
            return hidden, name, self._digests[hidden]
        desired = self._desired.get(name)
        if desired is not None and model in (name, *_hidden_names(name, desired)):
            if not self.is_restored:
                raise Refusal(
                    503, f"The adapter {name!r} is being proven; ask again.",
                    kind="ServiceUnavailableError", retry_after_s=5.0,
                )  # fmt: skip
            raise Refusal(
                503, f"The adapter {name!r} is not served: {self.failed.get(name)}",
                kind="ServiceUnavailableError", code="adapter_failed", param="model",
            )  # fmt: skip
        if model in self._loaded:
            raise Refusal(
                404, f"The model {model!r} does not exist.", kind="NotFoundError",
                code="model_not_found", param="model",
            )  # fmt: skip
        return None

    def list_models(self, entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return vLLM's list of models with public names in place of hidden names."""
        by_id = {entry["id"]: entry for entry in entries}
        hidden = self._loaded | self._public.keys()
        shown = [entry for entry in entries if entry["id"] not in hidden]
        return shown + [
            {**by_id[at], "id": name} for name, at in self._public.items() if at in by_id
        ]

    async def restore(self) -> None:
        """Load and prove the desired adapters, and name those that fail. Raises nothing."""
        async with self._lock:
            remove_other_versions(self.settings.state_dir, self._desired.values())
            for name, desired in list(self._desired.items()):
                try:
                    await self._load_and_prove(name, desired.current)
                except TunelineError as error:
                    self.failed[name] = error.message
                    _say(f"adapter {name}: is not served: {error.message}")
                    continue
                try:
                    if desired.previous is not None:
                        await self._load_and_prove(name, desired.previous)
                except TunelineError as error:
                    self._desired[name] = Desired(current=desired.current)
                    _say(f"adapter {name}: has no earlier version any more: {error.message}")
                self._publish(name, self._desired[name])
            self.is_restored = True

    async def answer(self, method: str, path: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answer of `/v1/adapters` and the paths below it.

        Raises:
            Refusal: The request cannot be done; what is served stays as it was.
        """
        name, _, action = unquote(path).partition("/")
        if (method, name) == ("GET", ""):
            return {"adapters": self._entries()}
        async with self._lock:
            try:
                if (method, name) == ("POST", ""):
                    return await self._add(fields)
                if (method, action) == ("DELETE", ""):
                    return await self._remove(name)
                if (method, action) == ("POST", "roll-back"):
                    return self._roll_back(name)
            except TunelineError as error:
                status, code = STATUS[error.exit_code]
                raise Refusal(status, str(error), kind=type(error).__name__, code=code) from None
        raise Refusal(404, f"Unknown route: {method} /v1/adapters/{path}", kind="NotFoundError")

    async def _add(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        name, adapter_at, reference_at = (
            _text(fields, key) for key in ("name", "adapter", "reference")
        )
        self._require_free(name)
        digest = fields.get("digest")
        state_dir = self.settings.state_dir
        adapter, reference = await asyncio.to_thread(
            store_version, state_dir, self.settings.root, adapter_at, reference_at,
            None if digest is None else str(digest),
        )  # fmt: skip
        # A version that failed after a start is not loaded, so no roll-back may lead to it.
        before = None if name in self.failed else self._desired.get(name)
        if before is not None and before.current.digest == adapter.digest:
            raise ConfigError(f"{name}: {adapter.short_digest} is served already")
        version = Version(
            digest=adapter.digest, reference_digest=reference.digest, figures={},
            added_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )  # fmt: skip
        parity = await self._load_and_prove(name, version)
        version = version.model_copy(
            update={"figures": {key: getattr(parity, key) for key in FIGURES}}
        )
        desired = Desired(current=version, previous=None if before is None else before.current)
        try:
            write_state(state_dir, {**self._desired, name: desired})
        except TunelineError:
            await self._unload_unused(name, version)
            raise
        # From here on nothing waits: requests see the earlier version, and then this one.
        self._desired[name] = desired
        self.failed.pop(name, None)
        self._publish(name, desired)
        if before is not None and before.previous is not None:
            await self._unload_unused(name, before.previous)
        _say(f"adapter {name}: {adapter.short_digest} is proven and served")
        return {"name": name, **self._entry(name), "proof": parity.model_dump(mode="json")}

    async def _remove(self, name: str) -> dict[str, Any]:
        desired = self._known(name)
        rest = {key: value for key, value in self._desired.items() if key != name}
        write_state(self.settings.state_dir, rest)
        self._desired = rest
        self.failed.pop(name, None)
        self._unpublish(name)
        for version in (desired.current, desired.previous):
            if version is not None:
                await self._unload_unused(name, version)
        _say(f"adapter {name}: removed")
        return {"removed": name}

    def _roll_back(self, name: str) -> dict[str, Any]:
        """Swap the version with the version before, which vLLM has loaded and which is proven."""
        desired = self._known(name)
        if desired.previous is None:
            raise ConfigError(f"{name}: has no earlier version to roll back to")
        if name in self.failed:
            raise ArtifactError(f"{name}: is not served: {self.failed[name]}")
        swapped = Desired(current=desired.previous, previous=desired.current)
        write_state(self.settings.state_dir, {**self._desired, name: swapped})
        self._desired[name] = swapped
        self._publish(name, swapped)
        _say(f"adapter {name}: rolled back to {short_digest(swapped.current.digest)}")
        return {"name": name, **self._entry(name)}

    async def _load_and_prove(self, name: str, version: Version) -> Parity:
        """Load a version under its hidden name and prove it there; a failure unloads it.

        Raises:
            ArtifactError, TamperedError: The copy does not fit the server, or vLLM refuses it.
            VerdictError, InconclusiveError: The proof fails.
        """
        hidden, settings = _hidden(name, version), self.settings
        adapter, reference = await asyncio.to_thread(
            open_version, settings.state_dir, version.digest, version.reference_digest
        )
        await asyncio.to_thread(require_fit, adapter, reference, settings)
        if hidden not in self._loaded:
            fields = {"lora_name": hidden, "lora_path": str(adapter.path)}
            self._loaded.add(hidden)
            status, body = await self._ask_vllm("/v1/load_lora_adapter", fields)
            if status != 200:
                self._loaded.discard(hidden)
                raise ArtifactError(f"{name}: vLLM refuses the adapter: {_message(body)}")
        try:
            parity = await prove_adapter(
                self._chat, hidden, settings.base_name, reference, settings.tolerances
            )
        except TunelineError:
            ADAPTER_PROOFS.labels(adapter=name, verdict="FAIL").inc()
            await self._unload_unused(name, version)
            raise
        ADAPTER_PROOFS.labels(adapter=name, verdict="PASS").inc()
        return parity

    async def _chat(self, fields: dict[str, Any]) -> dict[str, Any]:
        status, body = await self._ask_vllm("/v1/chat/completions", fields)
        if status != 200:
            raise ServerError(f"{fields['model']}: status {status}: {_message(body)}")
        answer: dict[str, Any] = json.loads(body)
        return answer

    async def _unload_unused(self, name: str, version: Version) -> None:
        hidden = _hidden(name, version)
        if hidden not in self._public.values():
            await self._unload(hidden)

    async def _unload(self, hidden: str) -> None:
        # The copy stays until the next start: a request in progress may make vLLM read it again.
        if hidden not in self._loaded:
            return
        with contextlib.suppress(ServerError):  # it stays loaded, and has no public name
            status, _ = await self._ask_vllm("/v1/unload_lora_adapter", {"lora_name": hidden})
            if status == 200:
                self._loaded.discard(hidden)

    async def _ask_vllm(self, path: str, fields: Mapping[str, Any]) -> tuple[int, bytes]:
        """Send a request to vLLM.

        Raises:
            ServerError: The server drains, or its engine makes no progress.
        """
        try:
            return await self._call(path, fields)
        except Refusal as refusal:
            raise ServerError(str(refusal)) from None

    def _publish(self, name: str, desired: Desired) -> None:
        self._unpublish(name)
        current = _hidden(name, desired.current)
        self._public |= {name: current, current: current}
        self._digests[current] = desired.current.digest
        if desired.previous is not None:
            previous = _hidden(name, desired.previous)
            self._public[previous] = previous
            self._digests[previous] = desired.previous.digest
        ADAPTER_INFO.labels(adapter=name, digest=desired.current.digest).set(1)

    def _unpublish(self, name: str) -> None:
        for public in [key for key in self._public if key.partition("@")[0] == name]:
            hidden = self._public.pop(public)
            if public == name:
                ADAPTER_INFO.remove(name, self._digests[hidden])

    def _require_free(self, name: str) -> None:
        if not _NAME.fullmatch(name):
            raise ConfigError(f"{name!r}: expected letters, digits, '_', '.', '-' as a name")
        if name in self.settings.reserved_names:
            raise ConfigError(f"{name}: is a name of the server's own model")
        if name not in self._desired and len(self._desired) >= self.settings.max_adapters:
            raise ConfigError(
                f"{len(self._desired)} adapters are served; serving.adapters.max_adapters is "
                f"{self.settings.max_adapters}"
            )

    def _known(self, name: str) -> Desired:
        if name not in self._desired:
            names = ", ".join(self._desired) or "none"
            raise ConfigError(f"there is no adapter {name!r}; the adapters: {names}")
        return self._desired[name]

    def _entries(self) -> list[dict[str, Any]]:
        return [{"name": name, **self._entry(name)} for name in self._desired]

    def _entry(self, name: str) -> dict[str, Any]:
        desired = self._desired[name]
        state = "failed" if name in self.failed else "serving" if self.is_restored else "loading"
        return {
            "state": state,
            "reason": self.failed.get(name),
            "digest": desired.current.digest,
            "added_at": desired.current.added_at,
            "figures": desired.current.figures,
            "previous": None if desired.previous is None else desired.previous.digest,
        }


def _hidden(name: str, version: Version) -> str:
    return f"{name}@{short_digest(version.digest)}"


def _hidden_names(name: str, desired: Desired) -> list[str]:
    versions = (desired.current, desired.previous)
    return [_hidden(name, version) for version in versions if version is not None]


def _text(fields: Mapping[str, Any], key: str) -> str:
    value = fields.get(key)
    if not isinstance(value, str) or not value:
        raise Refusal(400, f"{key} is {value!r}; expected a text.", param=key)
    return value


def _message(body: bytes) -> str:
    try:
        message = str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = body.decode("utf-8", "replace")
    return " ".join(message.split())[:500]


def _say(text: str) -> None:
    print(f"tuneline: {text}", file=sys.stderr, flush=True)
