"""API keys: who asks, and how much each key may ask.

The key in `VLLM_API_KEY`, if there is one, is named `default` and has no limits of its own.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from serving.middleware.access_log import say
from serving.middleware.asgi import Header, Scope, header
from serving.middleware.chat_page import password
from serving.middleware.key_file import DEFAULT_NAME, Key, read_keys
from serving.middleware.metrics import KEYS_FILE_OK

RELOAD_INTERVAL_S = 1.0
PRIORITY_HEADER = b"x-vllm-priority"
OWN_HEADERS = (b"authorization", b"x-api-key", PRIORITY_HEADER)
"""Headers of a client that vLLM does not see."""


@dataclass
class Bucket:
    """A token bucket that holds one minute's worth, and at least one. Its level may fall below
    zero."""

    per_minute: float
    level: float
    updated_s: float

    def wait_s(self, amount: float, now_s: float) -> float:
        """Return the seconds until `amount` is there."""
        gained = (now_s - self.updated_s) * self.per_minute / 60
        self.level = min(max(1.0, self.per_minute), self.level + gained)
        self.updated_s = now_s
        return max(0.0, (amount - self.level) * 60 / self.per_minute)

    def take(self, amount: float) -> None:
        self.level -= amount


@dataclass
class Use:
    """How much one key has asked for."""

    requests: Bucket | None
    tokens: Bucket | None
    in_flight: int = 0


class Keys:
    """The keys that are valid now. A class, since the file is read again when it changes."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        """Read the keys.

        Raises:
            ValueError, OSError: The file cannot be used; a server must not start without its keys.
        """
        path = environ.get("TUNELINE_KEYS_FILE")
        self.path = Path(path) if path else None
        self.vllm_key = environ.get("VLLM_API_KEY") or None
        self.keys = self._read()
        self._uses: dict[Key, Use] = {}
        self._checked_s = time.monotonic()

    @property
    def are_required(self) -> bool:
        """Return whether requests need a key."""
        return self.path is not None or self.vllm_key is not None

    def find(self, scope: Scope, *, takes_basic: bool = False) -> Key | None:
        """Return the key that a request presents, in `Authorization: Bearer` or `x-api-key`.

        Args:
            takes_basic: The key may also be the password of `Authorization: Basic`.
        """
        self._reload()
        authorization = header(scope, b"authorization") or ""
        scheme, _, presented = authorization.partition(" ")
        if scheme.lower() != "bearer":
            presented = header(scope, b"x-api-key") or ""
            if takes_basic and not presented:
                presented = password(authorization)
        digest = hashlib.sha256(presented.strip().encode("latin-1")).hexdigest()
        found = None
        for key in self.keys:  # all of them: the time tells nothing about which key is near
            if hmac.compare_digest(digest, key.sha256):
                found = key
        return found if presented else None

    def use(self, key: Key) -> Use:
        """Return what a key has asked for; a key whose limits have changed starts anew."""
        if key not in self._uses:
            now_s = time.monotonic()
            requests, tokens = (
                None if limit is None else Bucket(limit, max(1.0, limit), now_s)
                for limit in (key.requests_per_minute, key.tokens_per_minute)
            )
            self._uses[key] = Use(requests, tokens)
        return self._uses[key]

    def authorize(self, scope: Scope, key: Key) -> None:
        """Put vLLM's own key, and the priority of the client's, into a request.

        vLLM takes a header over the field `priority` of the body, so a client cannot choose.
        """
        headers = [entry for entry in scope["headers"] if entry[0] not in OWN_HEADERS]
        priority = (PRIORITY_HEADER, b"%d" % (key.priority or 0))
        scope["headers"] = [*headers, priority, *self.vllm_headers()]

    def vllm_headers(self) -> list[Header]:
        """Return the header that vLLM asks for."""
        if self.vllm_key is None:
            return []
        return [(b"authorization", f"Bearer {self.vllm_key}".encode("latin-1"))]

    def _read(self) -> tuple[Key, ...]:
        keys: list[Key] = []
        if self.path is not None:
            stamp = self._stamp = _stamp(self.path)
            text = self.path.read_text(encoding="utf-8")
            # `tuneline keys remove` leaves a comment. A file without a byte is half-written.
            if not text.strip():
                raise ValueError("it is empty")
            keys += read_keys(text)
            self._used_stamp = stamp
        if self.vllm_key is not None:
            # A Secret made from a file may end with a line break, which no header can hold.
            digest = hashlib.sha256(self.vllm_key.strip().encode("latin-1")).hexdigest()
            keys.append(Key(DEFAULT_NAME, digest))
        KEYS_FILE_OK.set(1)
        return tuple(keys)

    def _reload(self) -> None:
        """Read a file that has changed; while it is broken, the earlier keys stay."""
        now_s = time.monotonic()
        if self.path is None or now_s - self._checked_s < RELOAD_INTERVAL_S:
            return
        self._checked_s = now_s
        try:
            stamp = _stamp(self.path)
            if stamp == self._used_stamp:  # also a file that was away for a time
                self._stamp = stamp
                KEYS_FILE_OK.set(1)
            if stamp == self._stamp:
                return
            self.keys = self._read()
            valid = set(self.keys)
            self._uses = {key: use for key, use in self._uses.items() if key in valid}
            say(f"tuneline: {self.path}: {len(self.keys)} keys read")
        except (OSError, ValueError) as error:
            KEYS_FILE_OK.set(0)
            say(f"tuneline: the keys file cannot be used, the earlier keys stay: {error}")


def _stamp(path: Path) -> tuple[int, int, int]:
    status = os.stat(path)  # noqa: PTH116 (follows the links of a mounted secret)
    return status.st_mtime_ns, status.st_ino, status.st_size
