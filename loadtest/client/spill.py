"""The records of a long run on disk: an append-only file of chunks that a reader can take at any
time. A chunk is `TLC2`, its size, its CRC-32, and its columns, compressed.

A process that is killed leaves whole chunks and at most one torn chunk at the end. The reader ends
before the first chunk that is not whole.
"""

from __future__ import annotations

import errno
import json
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from loadtest.client.records import Records

SPILL_READS = 150_000
"""Reads of ended requests, about 60 MB, that a process keeps before it begins to write."""
SUFFIX = ".spill"
MARK = b"TLC2"
HEAD = struct.Struct("<4sII")
SIZES = struct.Struct("<III")
MAX_CHUNK_BYTES = 2**28
"""Of one chunk, also when it is decompressed: a damaged size must not fill the memory."""
RESERVE_BYTES = 4 * 2**20
"""Kept free for the report of a run that a full disk ends."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

TIMES = ("intended_s", "sent_s", "first_byte_s", "first_token_s", "last_token_s", "end_s")
NEVER = np.iinfo(np.int64).min
"""Nanoseconds of an event that never happened."""
COLUMNS: dict[str, str] = {
    "index": "<i8", "session": "<i8", "turn": "<i4", "warmup": "|u1", "state": "|u1",
    **dict.fromkeys(TIMES, "<i8"),
    "tokens": "<f8", "first_tokens": "<f8", "prompt_tokens": "<f8", "cached_tokens": "<f8",
    "retry_after_s": "<f8", "connect_s": "<f8", "resent": "|u1", "without_done": "|u1",
    "merged_events": "<i4", "num_events": "<i4",
}  # fmt: skip
"""Columns with a value per request, in their order in a chunk."""
EVENT_COLUMNS = {"event_s": "<i4", "event_tokens": "<f4"}
"""Columns with a value per event: microseconds since the event before, and tokens."""


def encode_chunk(records: Records) -> bytes:
    """Return the bytes of one chunk."""
    names = sorted(set(records.error.tolist()))
    codes = np.searchsorted(np.array(names or [""]), records.error).astype("<u2")
    words = json.dumps(names).encode()
    parts = [SIZES.pack(len(records), len(records.event_s), len(words)), words, codes.tobytes()]
    for name, kind in COLUMNS.items():
        values = getattr(records, name)
        parts.append((_to_ns(values) if name in TIMES else values).astype(kind).tobytes())
    parts.append(_steps_us(records).astype("<i4").tobytes())
    parts.append(records.event_tokens.astype("<f4").tobytes())
    payload = zlib.compress(b"".join(parts), 1)
    return HEAD.pack(MARK, len(payload), zlib.crc32(payload)) + payload


def _to_ns(seconds: NDArray[np.float64]) -> NDArray[np.int64]:
    known = ~np.isnan(seconds)
    found = np.full(len(seconds), NEVER)
    found[known] = np.rint(seconds[known] * 1e9).astype(np.int64)
    return found


def _to_seconds(times_ns: NDArray[np.int64]) -> NDArray[np.float64]:
    seconds = times_ns / 1e9
    seconds[times_ns == NEVER] = np.nan
    return seconds


def _firsts(num_events: NDArray[Any]) -> NDArray[np.int64]:
    """Return the place of the first event of each request that has events."""
    found: NDArray[np.int64] = (np.cumsum(num_events) - num_events)[num_events > 0]
    return found


def _steps_us(records: Records) -> NDArray[np.int64]:
    """Return microseconds from event to event; for a request's first event, since its first token,
    which mostly is that event."""
    places = np.rint(records.event_s * 1e6).astype(np.int64)
    steps = np.diff(places, prepend=0)
    firsts = _firsts(records.num_events)
    base = np.rint(records.first_token_s[records.num_events > 0] * 1e6).astype(np.int64)
    steps[firsts] = places[firsts] - base
    found: NDArray[np.int64] = np.clip(steps, -(2**31), 2**31 - 1)
    return found


def decode_chunk(payload: bytes) -> Records:
    """Return the records of a chunk's payload.

    Raises:
        ValueError: The payload is not a chunk's.
    """
    try:
        unpack = zlib.decompressobj()
        data = unpack.decompress(payload, MAX_CHUNK_BYTES)
        if not unpack.eof:
            raise ValueError("the chunk does not end")
        num_rows, num_events, num_words = SIZES.unpack_from(data)
        names = json.loads(data[SIZES.size : SIZES.size + num_words])
        sizes = {"codes": ("<u2", num_rows)}
        sizes |= {name: (kind, num_rows) for name, kind in COLUMNS.items()}
        sizes |= {name: (kind, num_events) for name, kind in EVENT_COLUMNS.items()}
        place = SIZES.size + num_words
        columns: dict[str, Any] = {}
        for name, (kind, count) in sizes.items():
            columns[name] = np.frombuffer(data, kind, count, place)
            place += columns[name].nbytes
        if place != len(data) or int(columns["num_events"].sum()) != num_events:
            raise ValueError("the columns do not fill the chunk")
        errors = np.array(names or [""], np.dtype("U32"))[columns.pop("codes")]
    except (zlib.error, struct.error, IndexError, TypeError, KeyError, OverflowError) as error:
        raise ValueError(f"not a chunk: {error}") from None
    if columns["num_events"].min(initial=0) < 0:
        raise ValueError("a request has fewer than no events")
    for name in TIMES:
        columns[name] = _to_seconds(columns[name])
    for name in ("warmup", "resent", "without_done"):
        columns[name] = columns[name].astype(np.bool_)
    for name in ("turn", "merged_events", "num_events"):
        columns[name] = columns[name].astype(np.int64)
    columns["event_s"] = _event_s(columns)
    columns["event_tokens"] = columns["event_tokens"].astype(np.float64)
    return Records(error=errors, **columns)


def _event_s(columns: dict[str, Any]) -> NDArray[np.float64]:
    steps = columns["event_s"].astype(np.int64)
    num_events = columns["num_events"]
    has_events = num_events > 0
    base = np.rint(np.nan_to_num(columns["first_token_s"][has_events]) * 1e6).astype(np.int64)
    total = np.cumsum(steps)
    firsts = _firsts(num_events)
    # The running sum starts anew with each request.
    offsets = base - (total[firsts] - steps[firsts])
    found: NDArray[np.float64] = (total + np.repeat(offsets, num_events[has_events])) / 1e6
    return found


def read_chunks(path: Path) -> Iterator[Records]:
    """Return the records of each whole chunk of a file; a torn end is left out."""
    with path.open("rb") as file:
        while (payload := _payload(file)) is not None:
            try:
                yield decode_chunk(payload)
            except ValueError:
                return


def _payload(file: BinaryIO) -> bytes | None:
    head = file.read(HEAD.size)
    if len(head) < HEAD.size:
        return None
    mark, size, checksum = HEAD.unpack(head)
    if mark != MARK or size > MAX_CHUNK_BYTES:
        return None
    payload = file.read(size)
    return payload if len(payload) == size and zlib.crc32(payload) == checksum else None


def spill_files(directory: Path, scenario: str) -> list[Path]:
    """Return the files of a scenario's records, one per client process; empty for a short run."""
    return sorted(directory.glob(f"records-{scenario}.*{SUFFIX}"))


class SpillFile:
    """An append-only file of chunks.

    Args:
        path: Created with the first chunk. A file next to it keeps RESERVE_BYTES of the disk until
            the disk is full or the run ends.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.reserve = path.with_suffix(".reserve")
        self.file: int | None = None
        self.num_bytes = 0
        self.is_full = False

    def append(self, records: Records) -> bool:
        """Write a chunk; return False if the disk is full, and leave the file as before."""
        if self.is_full:
            return False
        data = encode_chunk(records)
        try:
            if self.file is None:
                self._open()
            view = memoryview(data)
            while view:
                assert self.file is not None  # noqa: S101 (opened above)
                view = view[os.write(self.file, view) :]
        except OSError as error:
            if error.errno not in FULL:
                raise
            self.is_full = True
            self.release()
            if self.file is not None and self.num_bytes:
                os.ftruncate(self.file, self.num_bytes)
            return False
        self.num_bytes += len(data)
        return True

    def _open(self) -> None:
        with self.reserve.open("wb") as reserve:
            os.posix_fallocate(reserve.fileno(), 0, RESERVE_BYTES)
        self.file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def release(self) -> None:
        """Give the reserved space back."""
        self.reserve.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file and give the reserved space back."""
        self.release()
        if self.file is not None:
            os.close(self.file)
            self.file = None
