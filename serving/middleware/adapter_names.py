"""Public names of adapters at run time, and the hidden names behind them.

`NAME` and `NAME@DIGEST` are public only for a version that is proven.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from serving.adapters.store import Desired, Version
from serving.middleware.metrics import ADAPTER_INFO
from tuneline.core.digests import short_digest


def hidden_name(name: str, version: Version) -> str:
    """Return the name by which vLLM knows a version."""
    return f"{name}@{short_digest(version.digest)}"


class Names:
    """The public names of this process. A class, since requests and admin routes share them."""

    def __init__(self) -> None:
        self._hidden: dict[str, str] = {}
        """Hidden names by public name."""
        self._digests: dict[str, str] = {}
        """Digests by hidden name."""

    def find(self, model: str) -> tuple[str, str, str] | None:
        """Return hidden name, name and digest of a public name."""
        hidden = self._hidden.get(model)
        return None if hidden is None else (hidden, model.partition("@")[0], self._digests[hidden])

    def has(self, hidden: str) -> bool:
        """Return whether a version is public."""
        return hidden in self._hidden.values()

    def publish(self, name: str, desired: Desired, *, with_current: bool = True) -> None:
        """Name the versions of an entry, in place of those that the name has.

        Args:
            with_current: Whether the current version is served; only the version before is named
                otherwise.
        """
        self.withdraw(name)
        if with_current:
            self._hidden[name] = hidden_name(name, desired.current)
            self._add(name, desired.current)
            ADAPTER_INFO.labels(adapter=name, digest=desired.current.digest).set(1)
        if desired.previous is not None:
            self._add(name, desired.previous)

    def withdraw(self, name: str) -> None:
        """Take away every public name of an adapter."""
        for public in [key for key in self._hidden if key.partition("@")[0] == name]:
            hidden = self._hidden.pop(public)
            if public == name:
                ADAPTER_INFO.remove(name, self._digests[hidden])

    def list_models(
        self, entries: list[dict[str, Any]], own_names: Collection[str]
    ) -> list[dict[str, Any]]:
        """Return vLLM's list of models with public names in place of hidden names.

        Args:
            own_names: The names that the server has without adapters at run time.
        """
        by_id = {entry["id"]: entry for entry in entries}
        shown = [
            entry for name, entry in by_id.items() if name in own_names and name not in self._hidden
        ]
        return shown + [
            {**by_id[at], "id": name} for name, at in self._hidden.items() if at in by_id
        ]

    def _add(self, name: str, version: Version) -> None:
        hidden = hidden_name(name, version)
        self._hidden[hidden] = hidden
        self._digests[hidden] = version.digest
