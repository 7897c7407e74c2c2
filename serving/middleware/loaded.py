"""The adapters that vLLM has loaded, and the requests to vLLM that load, ask and unload them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from serving.middleware.body import Refusal
from serving.middleware.inner import words_of
from tuneline.core.errors import ArtifactError, ServerError

Call = Callable[[str, Mapping[str, Any]], Awaitable[tuple[int, bytes]]]
"""`await call(path, fields)`: status and body of a request to vLLM."""


class LoadedAdapters:
    """The hidden names in vLLM. A class, since each request depends on those before."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._names: set[str] = set()
        """Hidden names that vLLM knows, or may know after a call without an answer."""

    def has_digest(self, short: str) -> bool:
        """Return whether vLLM may have an adapter loaded, under any name."""
        return any(hidden.endswith(f"@{short}") for hidden in self._names)

    async def load(self, hidden: str, path: str) -> None:
        """Load an adapter that is not loaded yet.

        Raises:
            ArtifactError: vLLM refuses the adapter.
            ServerError: vLLM does not answer; a later call loads the adapter again.
        """
        if hidden in self._names:
            return
        self._names.add(hidden)
        try:
            fields = {"lora_name": hidden, "lora_path": path}
            status, body = await self._ask("/v1/load_lora_adapter", fields)
        except ServerError:
            await self.unload(hidden)
            raise
        if status != 200:
            self._names.discard(hidden)
            name = hidden.partition("@")[0]
            raise ArtifactError(f"{name}: vLLM refuses the adapter: {words_of(body)}")

    async def unload(self, hidden: str) -> None:
        """Unload an adapter, if vLLM may have it; the adapter stays if vLLM does not answer."""
        if hidden not in self._names:
            return
        with contextlib.suppress(ServerError):
            status, _ = await self._ask("/v1/unload_lora_adapter", {"lora_name": hidden})
            if status in (200, 404):
                self._names.discard(hidden)

    async def chat(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Return a chat completion.

        Raises:
            ServerError: vLLM refuses, or does not answer.
        """
        status, body = await self._ask("/v1/chat/completions", fields)
        if status != 200:
            raise ServerError(f"{fields['model']}: status {status}: {words_of(body)}")
        answer: dict[str, Any] = json.loads(body)
        return answer

    async def _ask(self, path: str, fields: Mapping[str, Any]) -> tuple[int, bytes]:
        """Send a request to vLLM.

        Raises:
            ServerError: The server drains, its engine makes no progress, or vLLM raises.
        """
        try:
            return await self._call(path, fields)
        except Refusal as refusal:
            raise ServerError(str(refusal)) from None
        except Exception as error:  # a boundary: vLLM's routes may raise anything
            raise ServerError(f"vLLM fails: {type(error).__name__}: {error}") from error
