"""Recorded traffic: requests with their answers, as JSON Lines in a folder.

`tuneline data collect` makes rows of training data of them, and a load test can send them again.
A thread of its own reads the answers and writes the lines, so that no request waits for a disk.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import random
import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serving.middleware.access_log import say
from serving.middleware.asgi import Header, Scope
from serving.middleware.exchange import Exchange
from serving.middleware.joined import ROUTES, join_answer
from serving.middleware.metrics import RECORDED, UNRECORDED
from serving.middleware.settings import RecordingSettings, read_recording

PREFIX, SUFFIX = "recorded-", ".jsonl"
MAX_RECORD_BYTES = 32 * 2**20
"""Of a request and its answer as sent. A stream has about 250 bytes for each token."""
MAX_KEPT_BYTES = 256 * 2**20
"""Of all requests whose answers are being sent or wait for the disk."""
MAX_FILE_BYTES = 64 * 2**20
LOOK_INTERVAL_S = 600.0
"""How often files that are too old are looked for, without any request too."""
PAUSE_S = 5.0
"""After a write that failed."""


class Memory:
    """Bytes of records that are being made or wait for the disk, in all threads."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._num_bytes = 0
        self._lock = threading.Lock()

    def reserve(self, size: int) -> bool:
        """Take `size` bytes; return False if there is no room for them."""
        with self._lock:
            if self._num_bytes + size > self._most:
                return False
            self._num_bytes += size
            return True

    def release(self, size: int) -> None:
        """Give back bytes that were taken."""
        with self._lock:
            self._num_bytes -= size


@dataclass
class Recording:
    """One request whose answer is kept while it is sent.

    Attributes:
        parts: Pieces of the answer's body.
        num_bytes: Of the request and those pieces, as taken from the memory.
        lost: Why nothing is kept any more; None while the record is whole.
    """

    memory: Memory
    parts: list[bytes] = field(default_factory=list)
    num_bytes: int = 0
    lost: str | None = None

    def keep(self, size: int) -> bool:
        """Take memory for `size` bytes; without room, the whole record is lost."""
        if self.lost is not None:
            return False
        if self.num_bytes + size > MAX_RECORD_BYTES:
            self.lose("size")
        elif not self.memory.reserve(size):
            self.lose("behind")
        else:
            self.num_bytes += size
        return self.lost is None

    def add(self, body: bytes) -> None:
        """Keep a piece of the answer."""
        if self.keep(len(body)):
            self.parts.append(body)

    def lose(self, reason: str) -> None:
        """Keep nothing of the request."""
        self.lost = reason
        self.parts.clear()
        self.memory.release(self.num_bytes)
        self.num_bytes = 0


class Recorder:
    """The folder, and the thread that writes to it. A class, since both outlive a request."""

    def __init__(self, settings: RecordingSettings, digest: str) -> None:
        self._settings = settings
        self._digest = digest
        self._folder = Path(settings.folder)
        self._waiting: queue.SimpleQueue[tuple[int, dict[str, Any], bytes] | None] = (
            queue.SimpleQueue()
        )
        self.memory = Memory(MAX_KEPT_BYTES)
        self._random = random.Random()
        self._file = -1
        self._num_file_bytes = 0
        self._day = ""
        self._paused_until_s = 0.0
        self._thread = threading.Thread(target=self._write_all, name="recorder", daemon=True)

    def start(self) -> None:
        """Begin to write. The process that serves calls this, not the one that it came from."""
        self._thread.start()

    def close(self, timeout_s: float = 2.0) -> None:
        """Write what waits; the process ends soon."""
        if self._thread.is_alive():
            self._waiting.put(None)
            self._thread.join(timeout_s)

    def wants(self, scope: Scope, fields: Mapping[str, Any] | None) -> bool:
        """Return whether a request is recorded: `store` decides, else the share."""
        if fields is None or scope["path"] not in ROUTES:
            return False
        store = fields.get("store")
        if isinstance(store, bool):
            return store
        return self._random.random() < self._settings.share

    def take(self, exchange: Exchange, fields: Mapping[str, Any], recording: Recording) -> None:
        """Give a request with its answer to the thread, if the answer is whole."""
        is_answer = exchange.status == 200
        is_whole = exchange.is_done and not exchange.client_left and not exchange.is_ended
        if recording.lost is None and not (is_answer and is_whole):
            recording.lose("unfinished")
        if recording.lost is not None:
            if is_answer:
                UNRECORDED.labels(reason=recording.lost).inc()
            return
        seconds = time.monotonic() - exchange.started_s
        facts = {
            "id": exchange.request_id,
            "time": round(time.time() - seconds, 3),
            "seconds": round(seconds, 4),
            "route": exchange.scope["path"],
            "key": exchange.key_name,
            "digest": exchange.digest or self._digest,
            # The name by which the client knows the adapter, not vLLM's.
            "request": {**fields, **({"model": exchange.adapter} if exchange.adapter else {})},
            "is_stream": exchange.is_stream,
        }
        self._waiting.put((recording.num_bytes, facts, b"".join(recording.parts)))

    def note(self, facts: Mapping[str, Any]) -> None:
        """Write a line of another kind, such as feedback."""
        self._waiting.put((0, dict(facts), b""))

    def _write_all(self) -> None:
        self._remove_old()
        while True:
            try:
                entry = self._waiting.get(timeout=LOOK_INTERVAL_S)
            except queue.Empty:
                self._remove_old()
                continue
            if entry is None:
                return
            num_bytes, facts, body = entry
            try:
                self._write(facts, body)
            except Exception as error:  # noqa: BLE001 (a boundary: a record fails no server)
                UNRECORDED.labels(reason="form").inc()
                say(f"a request is not recorded: {type(error).__name__}: {error}")
            finally:
                self.memory.release(num_bytes)

    def _write(self, facts: dict[str, Any], body: bytes) -> None:
        """Write one line: a request whose answer is `body`, or a note."""
        if "route" in facts:
            is_stream = facts.pop("is_stream")
            facts["answer"] = join_answer(facts["route"], body, is_stream=is_stream)
            if facts["answer"] is None:
                UNRECORDED.labels(reason="unfinished").inc()
                return
        if time.monotonic() < self._paused_until_s:
            UNRECORDED.labels(reason="disk").inc()
            return
        try:
            self._append(_line(facts))
        except OSError as error:
            UNRECORDED.labels(reason="disk").inc()
            self._end_file()  # a part of the line may be there: the next one begins a file
            self._paused_until_s = time.monotonic() + PAUSE_S
            say(f"requests are not recorded: {self._folder}: {error.strerror or error}")
        else:
            RECORDED.labels(kind="request" if "route" in facts else "feedback").inc()

    def _append(self, line: bytes) -> None:
        today = time.strftime("%Y%m%d", time.gmtime())
        if self._file >= 0 and (self._day != today or self._num_file_bytes > MAX_FILE_BYTES):
            self._end_file()
        if self._file < 0:
            self._begin_file()
            self._day, self._num_file_bytes = today, 0
        if os.write(self._file, line) != len(line):
            raise OSError("the disk is full")
        self._num_file_bytes += len(line)

    def _begin_file(self) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._remove_old()
        # Several processes, and pods of one claim, write to one folder.
        moment = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        path = self._folder / f"{PREFIX}{moment}-{secrets.token_hex(4)}{SUFFIX}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_NOFOLLOW
        self._file = os.open(path, flags, 0o600)

    def _end_file(self) -> None:
        if self._file >= 0:
            with contextlib.suppress(OSError):
                os.close(self._file)
            self._file = -1

    def _remove_old(self) -> None:
        """Remove files beyond the age and the size that the folder may have, the oldest first."""
        with contextlib.suppress(OSError):
            found = sorted(self._folder.glob(f"{PREFIX}*{SUFFIX}"), reverse=True)
            oldest_s = time.time() - self._settings.keep_s
            # The file that is written next may grow to its full size.
            room = self._settings.max_bytes - MAX_FILE_BYTES
            for path in found:
                stat = path.stat()
                room -= stat.st_size
                if room < 0 or stat.st_mtime < oldest_s:
                    path.unlink()


def _line(facts: dict[str, Any]) -> bytes:
    """Return one line of JSON.

    Raises:
        ValueError: A number of the request is not one of JSON.
    """
    try:
        return json.dumps(facts, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    except UnicodeEncodeError:  # half of a pair of UTF-16, which JSON can write and UTF-8 cannot
        return json.dumps(facts, allow_nan=False).encode() + b"\n"


def open_recorder(environ: Mapping[str, str], digest: str) -> Recorder | None:
    """Return what records requests, if the server records any.

    Args:
        digest: The artifact that the server was started for.
    """
    settings = read_recording(environ)
    return None if settings is None else Recorder(settings, digest)


def recording_headers(recorder: Recorder | None) -> list[Header]:
    """Return the header of every answer of a server that records."""
    return [] if recorder is None else [(b"x-tuneline-records", b"1")]


@contextlib.contextmanager
def recorded(
    recorder: Recorder | None, exchange: Exchange, fields: Mapping[str, Any] | None, body: bytes
) -> Iterator[None]:
    """Keep the answer of a request while it is sent, if the request is recorded."""
    if recorder is None or fields is None or not recorder.wants(exchange.scope, fields):
        yield
        return
    recording = Recording(recorder.memory)
    recording.keep(len(body))
    exchange.on_body = recording.add
    try:
        yield
    finally:
        exchange.on_body = None
        recorder.take(exchange, fields, recording)
