"""Adapters at run time: public names, the versions behind them, and `/v1/adapters`.

vLLM knows a version by its hidden name, `NAME@DIGEST`. A name is public only after its proof, and
the middleware refuses every hidden name that is not. A request for `NAME` reaches vLLM as a request
for the version that `NAME` means at that moment; a request in progress keeps its version.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

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
    remove_version,
    store_version,
    write_state,
)
from serving.middleware.access_log import say
from serving.middleware.adapter_names import Names, hidden_name
from serving.middleware.body import Refusal
from serving.middleware.key_file import NAME, NAME_FORM
from serving.middleware.loaded import Call, LoadedAdapters
from serving.middleware.metrics import ADAPTER_PROOFS
from tuneline.core.digests import short_digest
from tuneline.core.errors import ConfigError, TunelineError
from tuneline.core.parity import Parity

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
        """Every current version has been proven, or has failed."""
        self.failed: dict[str, str] = {}
        """Names whose current version could not be loaded or proven, with the reason."""
        self._lock = asyncio.Lock()
        self._state_lock = lock_state(settings.state_dir)
        self._desired = read_state(settings.state_dir)
        self._loaded = LoadedAdapters(call)
        self._names = Names()
        for name, desired in list(self._desired.items()):
            if why := self._stale(name, desired):
                del self._desired[name]
                _say(f"adapter {name}: is dropped: {why}")

    def resolve(self, model: object) -> tuple[str, str, str] | None:
        """Return hidden name, name and digest of the adapter that a request names; None for the
        server's own model.

        vLLM never sees an unknown name: it would look for an adapter of that name, and keep a lock
        for the name.

        Raises:
            Refusal: The adapter is not proven, or failed, or there is no such model.
        """
        if not isinstance(model, str) or not model:
            return None
        model = self.settings.aliases.get(model, model)
        if (found := self._names.find(model)) is not None:
            return found
        name = model.partition("@")[0]
        desired = self._desired.get(name)
        if desired is not None:
            current = hidden_name(name, desired.current)
            if model in (name, current) and name in self.failed:
                raise Refusal(
                    503, f"The adapter {name!r} is not served: it failed its proof.",
                    kind="ServiceUnavailableError", code="adapter_failed", param="model",
                )  # fmt: skip
            previous = desired.previous and hidden_name(name, desired.previous)
            if model in (name, current, previous):
                raise Refusal(
                    503, f"The adapter {name!r} is being proven; ask again.",
                    kind="ServiceUnavailableError", retry_after_s=5.0,
                )  # fmt: skip
        if model in self.settings.own_names:
            return None
        raise Refusal(
            404, f"The model {model!r} does not exist.", kind="NotFoundError",
            code="model_not_found", param="model",
        )  # fmt: skip

    def list_models(self, entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return vLLM's list of models with public names in place of hidden names."""
        return self._names.list_models(entries, self.settings.own_names)

    async def restore(self) -> None:
        """Load and prove the desired adapters, and name those that fail. Raises nothing.

        The server is ready after the current versions; the versions before follow.
        """
        async with self._lock:
            try:
                # With the copies of dropped entries, which stay in the list until its next change.
                listed = read_state(self.settings.state_dir)
                remove_other_versions(self.settings.state_dir, listed.values())
            except (OSError, TunelineError) as error:
                _say(f"adapters: unused copies stay: {error}")
            for name, desired in list(self._desired.items()):
                if why := await self._why_not_restored(name, desired.current):
                    self.failed[name] = why
                else:
                    self._names.publish(name, Desired(current=desired.current))
            self.is_restored = True
            for name, desired in list(self._desired.items()):
                if desired.previous is None:
                    continue
                if await self._why_not_restored(name, desired.previous):
                    self._desired[name] = desired = desired.model_copy(update={"previous": None})
                self._names.publish(name, desired, with_current=name not in self.failed)

    async def _why_not_restored(self, name: str, version: Version) -> str | None:
        """Load and prove a version after a start; return why it is not served, and log either."""
        hidden = hidden_name(name, version)
        try:
            await self._load_and_prove(name, version)
        # A boundary: whatever is wrong with one adapter, the others and the server must come up.
        except Exception as error:  # noqa: BLE001
            why = error.message if isinstance(error, TunelineError) else _description(error)
            _say(f"adapter {hidden}: is not served: {why}")
            return why
        _say(f"adapter {hidden}: is proven again and served")
        return None

    async def answer(self, method: str, path: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answer of `/v1/adapters` and the paths below it.

        Args:
            path: The part below `/v1/adapters/`, without escapes, as ASGI gives it.

        Raises:
            Refusal: The request cannot be done; what is served stays as it was.
        """
        name, _, action = path.partition("/")
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
            # Files with a valid manifest may still lack parts, or be of a newer version.
            except (OSError, ValueError, LookupError, TypeError) as error:
                message = f"the adapter cannot be used: {_description(error)}"
                raise Refusal(422, message, kind="ArtifactError", code="adapter_refused") from None
        raise Refusal(404, f"Unknown route: {method} /v1/adapters/{path}", kind="NotFoundError")

    async def _add(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        name, adapter_at, reference_at = (
            _text(fields, key) for key in ("name", "adapter", "reference")
        )
        self._require_free(name)
        digest = fields.get("digest")
        settings = self.settings
        adapter, reference = await asyncio.to_thread(
            store_version, settings.state_dir, settings.root, adapter_at, reference_at,
            None if digest is None else str(digest),
        )  # fmt: skip
        version = Version(
            digest=adapter.digest, reference_digest=reference.digest, figures={},
            added_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )  # fmt: skip
        try:
            return await self._prove_and_publish(name, version)
        finally:
            await asyncio.to_thread(self._remove_unused_copy, version)

    async def _prove_and_publish(self, name: str, version: Version) -> dict[str, Any]:
        before, short = self._desired.get(name), short_digest(version.digest)
        # A current version that failed after a start is not loaded: a roll-back leads past it.
        to_keep = None if before is None else before.current
        if before is not None and name in self.failed:
            to_keep = before.previous
            if to_keep is not None and to_keep.digest == version.digest:
                to_keep = None
        elif to_keep is not None and to_keep.digest == version.digest:
            raise ConfigError(f"{name}: {short} is served already")
        is_over_the_run = name in self.settings.own_names
        if is_over_the_run and version.digest == self.settings.run_digest:
            hint = f"Try: tuneline adapters remove URL {name}   (the name then means it again)"
            raise ConfigError(f"{name}: {short} is the run's own adapter", hint=hint)
        parity = await self._load_and_prove(name, version)
        version = version.model_copy(
            update={"figures": {key: getattr(parity, key) for key in FIGURES}}
        )
        over = self.settings.run_digest if is_over_the_run else None
        desired = Desired(current=version, previous=to_keep, over=over)
        try:
            write_state(self.settings.state_dir, {**self._desired, name: desired})
        except TunelineError:
            await self._unload_unused(name, version)
            raise
        # From here on nothing waits: requests see the earlier version, and then this one.
        self._desired[name] = desired
        self.failed.pop(name, None)
        self._names.publish(name, desired)
        if before is not None and before.previous is not None:
            await self._unload_unused(name, before.previous)
        _say(f"adapter {name}: {short} is proven and served")
        return {"name": name, **self._entry(name), "proof": parity.model_dump(mode="json")}

    async def _remove(self, name: str) -> dict[str, Any]:
        desired = self._known(name)
        rest = {key: value for key, value in self._desired.items() if key != name}
        write_state(self.settings.state_dir, rest)
        self._desired = rest
        self.failed.pop(name, None)
        self._names.withdraw(name)
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
        # No later roll-back leads to a version that failed.
        previous = None if name in self.failed else desired.current
        swapped = Desired(current=desired.previous, previous=previous, over=desired.over)
        write_state(self.settings.state_dir, {**self._desired, name: swapped})
        self._desired[name] = swapped
        self.failed.pop(name, None)
        self._names.publish(name, swapped)
        _say(f"adapter {name}: rolled back to {short_digest(swapped.current.digest)}")
        return {"name": name, **self._entry(name)}

    async def _load_and_prove(self, name: str, version: Version) -> Parity:
        """Load a version under its hidden name and prove it there; a failure unloads it.

        Raises:
            ArtifactError, TamperedError: The copy does not fit the server, or vLLM refuses it.
            VerdictError, InconclusiveError: The proof fails.
            OSError, ValueError: A file cannot be read, or is of a newer version.
        """
        hidden, settings = hidden_name(name, version), self.settings
        adapter, reference = await asyncio.to_thread(
            open_version, settings.state_dir, version.digest, version.reference_digest
        )
        await asyncio.to_thread(require_fit, adapter, reference, settings)
        if not self._names.has(hidden):
            await self._loaded.unload(hidden)  # left over from a call without an answer
        await self._loaded.load(hidden, str(adapter.path))
        try:
            parity = await prove_adapter(
                self._loaded.chat, hidden, settings.base_name, reference, settings.tolerances
            )
        except Exception:  # a boundary: whatever ends a proof, the version does not stay loaded
            ADAPTER_PROOFS.labels(adapter=name, verdict="FAIL").inc()
            await self._unload_unused(name, version)
            raise
        ADAPTER_PROOFS.labels(adapter=name, verdict="PASS").inc()
        return parity

    async def _unload_unused(self, name: str, version: Version) -> None:
        """Unload a version that is not public.

        Its copy stays: a request in progress may make vLLM read it again.
        """
        hidden = hidden_name(name, version)
        if not self._names.has(hidden):
            await self._loaded.unload(hidden)

    def _remove_unused_copy(self, version: Version) -> None:
        """Remove the copy of an adapter that was refused or failed."""
        versions = [v for d in self._desired.values() for v in (d.current, d.previous) if v]
        is_loaded = self._loaded.has_digest(short_digest(version.digest))
        keys = {(v.digest, v.reference_digest) for v in versions}
        if not is_loaded and (version.digest, version.reference_digest) not in keys:
            remove_version(self.settings.state_dir, version)

    def _stale(self, name: str, desired: Desired) -> str | None:
        """Return why an entry of the list would now hide the server's own model."""
        if name in self.settings.reserved_names:
            return "the server's own model has this name now"
        if name in self.settings.own_names and desired.over != self.settings.run_digest:
            return "it was added over another adapter of the run"
        return None

    def _require_free(self, name: str) -> None:
        if not NAME.fullmatch(name):
            raise ConfigError(f"{name!r}: is not a name; expected {NAME_FORM}")
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


def _text(fields: Mapping[str, Any], key: str) -> str:
    value = fields.get(key)
    if not isinstance(value, str) or not value:
        raise Refusal(400, f"{key} is {value!r}; expected a text.", param=key)
    return value


def _description(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"


def _say(text: str) -> None:
    say(f"tuneline: {text}")
