"""The safetensors file format, read and written in pieces: no file is held in memory.

A file is an 8-byte little-endian header length, a JSON header that gives each tensor its dtype,
shape and byte range, and the tensors' raw little-endian bytes, without holes. Specification:
https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tuneline.core.documents import parse_json
from tuneline.core.errors import ArtifactError

MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library

DTYPE_BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4, "C64": 64, "I64": 64, "I32": 32, "I16": 16, "I8": 8,
    "U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8,
}  # fmt: skip

TORCH_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
}  # fmt: skip
"""The number formats that this package computes in."""

SAFETENSORS_DTYPES = {torch_dtype: name for name, torch_dtype in TORCH_DTYPES.items()}

PIECE_ELEMENTS = 2**21
"""How many values of a tensor are held at once if it is only looked at."""


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies in its file."""

    name: str
    dtype: str
    """In the names of safetensors, e.g. `BF16`."""
    shape: tuple[int, ...]
    begin: int
    """First byte, counted from the end of the header."""
    end: int

    @property
    def num_bytes(self) -> int:
        return self.end - self.begin

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class TensorFile:
    """A safetensors file whose header has been read and checked."""

    path: Path
    header: bytes
    """The length field and the JSON, byte for byte."""
    metadata: dict[str, str]
    entries: tuple[TensorEntry, ...]
    """In the order of their bytes."""

    @property
    def size_bytes(self) -> int:
        return len(self.header) + (self.entries[-1].end if self.entries else 0)


@dataclass(frozen=True)
class Stored:
    """A tensor in its file; no value is held in memory."""

    file: TensorFile
    entry: TensorEntry

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def shape(self) -> tuple[int, ...]:
        return self.entry.shape

    def read(self) -> torch.Tensor:
        """Return the whole (small) tensor in float32."""
        return read_tensor(self.file, self.entry)


def read_tensor_file(path: Path) -> TensorFile:
    """Read and check a file's header, and the file's size against it.

    Raises:
        ArtifactError: The file is missing, truncated, corrupt or not a safetensors file.
    """
    try:
        with path.open("rb") as file:
            prefix = file.read(8)
            if prefix == b"version ":
                raise ArtifactError(
                    f"{path}: is a Git LFS pointer, not the weights",
                    hint="Fetch the weights: git lfs pull",
                )
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
            if not 2 <= length <= MAX_HEADER_BYTES:
                raise ArtifactError(f"{path}: not a safetensors file (its header length is wrong)")
            header = file.read(length)
            size_bytes = os.fstat(file.fileno()).st_size
    except (FileNotFoundError, IsADirectoryError):
        raise ArtifactError(f"{path}: no such file") from None
    if len(header) < length:
        raise ArtifactError(
            f"{path}: truncated: the header takes {length} bytes, {len(header)} are there"
        )
    metadata, entries = _parse_header(path, header)
    parsed = TensorFile(path, prefix + header, metadata, entries)
    if size_bytes != parsed.size_bytes:
        what = "truncated" if size_bytes < parsed.size_bytes else "corrupt"
        raise ArtifactError(
            f"{path}: {what}: its header describes {parsed.size_bytes} bytes, the file has "
            f"{size_bytes}"
        )
    return parsed


def make_header(entries: Sequence[TensorEntry], metadata: dict[str, str]) -> bytes:
    """Return the length field and JSON for `entries`, padded so that the data is aligned to 8."""
    values: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    for entry in entries:
        values[entry.name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [entry.begin, entry.end],
        }
    text = json.dumps(values, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def read_elements(
    descriptor: int, file: TensorFile, entry: TensorEntry, start: int, into: torch.Tensor
) -> None:
    """Fill the flat tensor `into` from element `start` of `entry`, stored in the same dtype.

    Raises:
        ArtifactError: The file ends early.
    """
    view = memoryview(into.view(torch.uint8).numpy())
    offset = len(file.header) + entry.begin + start * into.element_size()
    read_bytes(descriptor, file.path, entry.name, offset, view)


def read_bytes(descriptor: int, path: Path, name: str, offset: int, into: memoryview) -> None:
    """Fill `into` from byte `offset` of the open file.

    Raises:
        ArtifactError: The file ends early.
    """
    done = 0
    while done < len(into):
        count = os.preadv(descriptor, [into[done:]], offset + done)
        if count == 0:
            raise ArtifactError(
                f"{path}: {name}: the file ends early; it changed while it was read"
            )
        done += count


def read_tensor(file: TensorFile, entry: TensorEntry) -> torch.Tensor:
    """Return a whole (small) tensor in float32.

    Raises:
        ArtifactError: The tensor has a number format that this package does not compute in, or the
            file ends early.
    """
    if entry.dtype not in TORCH_DTYPES:
        raise ArtifactError(
            f"{file.path}: {entry.name}: is stored as {entry.dtype}; expected one of "
            f"{', '.join(TORCH_DTYPES)}"
        )
    flat = torch.empty(entry.num_elements, dtype=TORCH_DTYPES[entry.dtype])
    with file.path.open("rb") as opened:
        read_elements(opened.fileno(), file, entry, 0, flat)
    return flat.float().reshape(entry.shape)


def num_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Return the size of a tensor in a safetensors file."""
    return math.prod(shape) * DTYPE_BITS[dtype] // 8


def pieces_of(stored: Stored) -> Iterator[torch.Tensor]:
    """Yield a tensor's values in order, flat, in the tensor's own number format.

    Raises:
        ArtifactError: The file ends early.
    """
    with stored.file.path.open("rb") as opened:
        for start in range(0, stored.entry.num_elements, PIECE_ELEMENTS):
            count = min(PIECE_ELEMENTS, stored.entry.num_elements - start)
            piece = torch.empty(count, dtype=TORCH_DTYPES[stored.entry.dtype])
            read_elements(opened.fileno(), stored.file, stored.entry, start, piece)
            yield piece


def same_values(one: Stored, other: Stored) -> bool:
    """Return whether two stored tensors are equal, whatever their number formats."""
    return one.shape == other.shape and all(
        torch.equal(mine.float(), its.float())
        for mine, its in zip(pieces_of(one), pieces_of(other), strict=True)
    )


def is_finite(values: torch.Tensor) -> bool:
    """Return whether no value is NaN or infinite; far faster than `isfinite().all()` on a CPU."""
    if values.numel() == 0:
        return True
    low, high = torch.aminmax(values)
    return math.isfinite(low) and math.isfinite(high)


def _parse_header(path: Path, header: bytes) -> tuple[dict[str, str], tuple[TensorEntry, ...]]:
    try:
        values = parse_json(header)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: corrupt header: not JSON: {error}") from None
    if not isinstance(values, dict):
        raise ArtifactError(f"{path}: corrupt header: expected a JSON object")
    metadata = values.pop("__metadata__", {}) or {}
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ArtifactError(f"{path}: corrupt header: __metadata__: expected text by name")
    entries = sorted(
        (_entry(path, name, value) for name, value in values.items()),
        key=lambda entry: (entry.begin, entry.end),
    )
    position = 0
    for entry in entries:
        if entry.begin != position:
            raise ArtifactError(
                f"{path}: corrupt header: {entry.name} starts at byte {entry.begin} of the data; "
                f"expected {position}"
            )
        position = entry.end
    return metadata, tuple(entries)


def _entry(path: Path, name: str, value: Any) -> TensorEntry:
    try:
        dtype, shape, (begin, end) = value["dtype"], tuple(value["shape"]), value["data_offsets"]
        bits = DTYPE_BITS[dtype]
        counts = [*shape, begin, end]
    except (KeyError, TypeError, ValueError):
        raise ArtifactError(f"{path}: corrupt header: cannot read the entry of {name}") from None
    if not all(type(count) is int and count >= 0 for count in counts):
        raise ArtifactError(f"{path}: corrupt header: {name}: a shape or an offset is not a count")
    if (end - begin) * 8 != math.prod(shape) * bits:
        raise ArtifactError(
            f"{path}: corrupt header: {name}: {end - begin} bytes do not hold {dtype} of shape "
            f"{list(shape)}"
        )
    return TensorEntry(name, dtype, shape, begin, end)
