"""Writing safetensors files tensor by tensor, in memory that no model's size enters.

One thread reads ahead, this one computes in blocks of rows, one writes behind and hashes as it
writes, one waits for the disk, so that disk and processor work at the same time. What a killed run
has finished is noted in a journal; the next run hashes what it finds on the disk and goes on after
the last tensor that is what the journal says.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from export.merge.deltas import MIN_PRODUCT_ROWS, Change, RowFunction, is_finite
from export.quantize.schemes import Scheme, num_bytes, quantize_rows, stored_tensors
from export.weights.tensor_file import (
    DTYPE_BITS,
    TORCH_DTYPES,
    Stored,
    TensorEntry,
    TensorFile,
    make_header,
    read_bytes,
)
from tuneline.core.errors import ArtifactError
from tuneline.core.progress import logger

BLOCK_BYTES = 2 * 2**20
"""Of one block in float32; a few of these are held at a time. Larger gains no speed."""

BLOCKS_AHEAD = 4
"""How many blocks are read ahead, and how many may wait to be written."""

DROP_BYTES = 16 * 2**20
"""How much is read between two times that what was read is dropped from the page cache."""

KEPT_BYTES = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4
"""A result up to this size is left in the page cache for whoever reads it next. Of a larger one,
what has reached the disk is dropped: to reclaim it later slows down what is written next."""

CHECKPOINT_BYTES = 64 * 2**20
"""How much is written at least between two notes in the journal."""

SaidBytes = Callable[[int, str], None]
"""`said(count, tensor)`: so many bytes more are written."""


@dataclass(frozen=True)
class Output:
    """One tensor of the result: where its bytes come from, what is done to them, what is written.

    Where it is quantized, `written` is its codes, its scales and whatever else the scheme stores.
    """

    source: Stored
    changes: tuple[Change, ...]
    dtype: str
    """The number format that the result is rounded to, before it is quantized."""
    written: tuple[TensorEntry, ...]
    scheme: Scheme | None = None

    @property
    def is_raw(self) -> bool:
        """Whether it is of a format that no arithmetic is done on."""
        return self.source.entry.dtype not in TORCH_DTYPES


@dataclass(frozen=True)
class OutputFile:
    """One file to be written; its outputs are in the order of its bytes."""

    name: str
    header: bytes
    outputs: tuple[Output, ...]

    @property
    def size_bytes(self) -> int:
        return self.end_of(len(self.outputs))

    def end_of(self, count: int) -> int:
        """Where in the file the first `count` outputs end."""
        return len(self.header) + (self.outputs[count - 1].written[-1].end if count else 0)


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of the result, before its place in a file is known."""

    name: str
    source: Stored
    changes: tuple[Change, ...]
    dtype: str


@dataclass(frozen=True)
class Block:
    """Some rows of one output."""

    index: int
    output: Output
    start: int
    stop: int
    num_columns: int
    is_last: bool

    @property
    def num_elements(self) -> int:
        return (self.stop - self.start) * self.num_columns


def lay_out(
    name: str, tensors: Sequence[PlannedTensor], source: TensorFile, schemes: Mapping[str, Scheme]
) -> OutputFile:
    """Give each tensor its place: in the order of `tensors`, wide formats before narrow ones so
    that each is aligned to its own width, and quantized ones last. A file whose tensors are those
    of `source` keeps its header, byte for byte."""
    plain = [tensor for tensor in tensors if tensor.name not in schemes]
    entries = {entry.name: (entry.dtype, entry.shape) for entry in source.entries}
    if len(plain) == len(tensors) == len(entries) and all(
        entries.get(tensor.name) == (tensor.dtype, tensor.source.shape) for tensor in plain
    ):
        outputs = [
            Output(tensor.source, tensor.changes, tensor.dtype, (entry,))
            for tensor, entry in zip(plain, source.entries, strict=True)
        ]
        return OutputFile(name, source.header, tuple(outputs))
    plain.sort(key=lambda tensor: -DTYPE_BITS[tensor.dtype])
    outputs = []
    position = 0
    for tensor in [*plain, *(tensor for tensor in tensors if tensor.name in schemes)]:
        scheme = schemes.get(tensor.name)
        shape = tensor.source.shape
        parts = [(tensor.name, tensor.dtype, shape)]
        if scheme is not None:
            parts = stored_tensors(tensor.name, shape, TORCH_DTYPES[tensor.dtype], scheme)
        written = []
        for part, dtype, part_shape in parts:
            end = position + num_bytes(dtype, part_shape)
            written.append(TensorEntry(part, dtype, part_shape, position, end))
            position = end
        outputs.append(Output(tensor.source, tensor.changes, tensor.dtype, tuple(written), scheme))
    entries_written = [entry for output in outputs for entry in output.written]
    return OutputFile(name, make_header(entries_written, source.metadata), tuple(outputs))


def write_files(
    files: Sequence[OutputFile], out: Path, journal: Path, said: SaidBytes
) -> tuple[dict[str, str], int]:
    """Write all files into `out`, going on from what an earlier run has left there.

    Returns:
        Each file's SHA-256, and how many bytes were found finished.

    Raises:
        ArtifactError: A value is NaN or infinite, or a source file ends early.
    """
    noted = _read_journal(journal)
    hashes = {}
    resumed_bytes = 0
    is_kept = sum(file.size_bytes for file in files) <= KEPT_BYTES
    with _one_thread():
        for file in files:
            count, hasher = _finished(file, out / file.name, noted.get(file.name, []))
            if count:
                resumed_bytes += file.end_of(count)
                said(file.end_of(count), "found finished")
            path = out / file.name
            hashes[file.name] = _write_file(file, path, count, hasher, journal, said, is_kept)
    if resumed_bytes:
        logger.info("  went on from %d MiB that were finished before", resumed_bytes // 2**20)
    return hashes, resumed_bytes


def _write_file(
    file: OutputFile,
    path: Path,
    first: int,
    hasher: Any,
    journal: Path,
    said: SaidBytes,
    is_kept: bool,
) -> str:
    """Write the outputs from number `first` on; the file ends just before them."""
    with ExitStack() as stack:
        # The threads end before the files they use are closed.
        sources = stack.enter_context(ExitStack())
        out = stack.enter_context(path.open("ab", buffering=0))
        reader = stack.enter_context(ThreadPoolExecutor(1))
        syncer = stack.enter_context(ThreadPoolExecutor(1))
        writer = stack.enter_context(ThreadPoolExecutor(1))
        descriptors: dict[Path, int] = {}
        dropped: dict[Path, int] = {}
        noted_bytes = file.end_of(first)
        note: Future[None] | None = None

        def read(block: Block, buffer: torch.Tensor) -> torch.Tensor:
            source = block.output.source.file.path
            if source not in descriptors:
                descriptors[source] = sources.enter_context(source.open("rb")).fileno()
            values, end = _read(descriptors[source], block, buffer)
            # What has been read is not read again. Left in the page cache, it would have to be
            # reclaimed for what is written, which costs several times what the reading does.
            start = dropped.setdefault(source, 0)
            if end - start >= DROP_BYTES:
                os.posix_fadvise(descriptors[source], start, end - start, os.POSIX_FADV_DONTNEED)
            if not 0 <= end - start < DROP_BYTES:
                dropped[source] = end
            return values

        def checkpoint(finished: int, sha256: str) -> None:
            # The bytes have to reach the disk in any case; begun here, that overlaps.
            os.fdatasync(out.fileno())
            if not is_kept:
                os.posix_fadvise(out.fileno(), 0, file.end_of(finished), os.POSIX_FADV_DONTNEED)
            _note(journal, file, finished, sha256)

        def write(pieces: list[torch.Tensor], finished: int | None, name: str) -> None:
            nonlocal noted_bytes, note
            for piece in pieces:
                view = memoryview(piece.contiguous().view(-1).view(torch.uint8).numpy())
                hasher.update(view)
                while len(view):
                    view = view[out.write(view) :]
                said(piece.nbytes, name)
            if finished is None or file.end_of(finished) - noted_bytes < CHECKPOINT_BYTES:
                return
            if note is not None:
                note.result()
            noted_bytes = file.end_of(finished)
            note = syncer.submit(checkpoint, finished, hasher.hexdigest())

        if first == 0:
            writer.submit(out.write, file.header).result()
            hasher.update(file.header)
        # Memory is used again and again: fresh pages cost more than what is done in them. A buffer
        # is read into, computed in and written from; the oldest one written is the next one read.
        largest = max((block.num_elements for block in _blocks_of(file, first)), default=0)
        free = [torch.empty(8 * largest, dtype=torch.uint8) for _ in range(2 * BLOCKS_AHEAD + 1)]
        scratch = torch.empty(largest)
        reads: deque[tuple[Block, torch.Tensor, Future[torch.Tensor]]] = deque()
        writes: deque[tuple[torch.Tensor, Future[None]]] = deque()
        rows: list[RowFunction] = []
        scales: list[torch.Tensor] = []

        def compute() -> None:
            nonlocal rows, scales
            block, buffer, stored = reads.popleft()
            output = block.output
            if block.start == 0:
                rows = [change.load(_rounding(output)) for change in output.changes]
                scales = []
            pieces = _compute(block, stored.result(), scratch, rows, scales)
            finished = block.index + 1 if block.is_last else None
            name = output.written[0].name
            writes.append((buffer, writer.submit(write, pieces, finished, name)))

        for block in _blocks_of(file, first):
            if free:
                buffer = free.pop()
            else:
                buffer, written = writes.popleft()
                written.result()
            reads.append((block, buffer, reader.submit(read, block, buffer)))
            if len(reads) > BLOCKS_AHEAD:
                compute()
        while reads:
            compute()
        for _, written in writes:
            written.result()
        if note is not None:
            note.result()
    return str(hasher.hexdigest())


def _rounding(output: Output) -> torch.dtype:
    """What a change may round to on its way: nothing coarser than float32 where the result is of
    another format than the base, as it is then rounded once, at the end."""
    if output.dtype == output.source.entry.dtype:
        return TORCH_DTYPES.get(output.dtype, torch.float32)
    return torch.float32


def _compute(
    block: Block,
    stored: torch.Tensor,
    scratch: torch.Tensor,
    rows: list[RowFunction],
    scales: list[torch.Tensor],
) -> list[torch.Tensor]:
    """What is written for one block; the scales of a quantized tensor follow its last block."""
    output = block.output
    if output.is_raw:
        return [stored]
    dtype = TORCH_DTYPES[output.dtype]
    result = stored
    if rows:
        values = scratch[: block.num_elements].copy_(stored)
        values = values.view(block.stop - block.start, block.num_columns)
        for change in rows:
            values = change(values, block.start, block.stop)
        result = values.reshape(-1)
    if dtype != stored.dtype:
        result = result.to(dtype, copy=True)  # the scratch is used again before this is written
    elif rows:
        result = stored.copy_(result)
    if not is_finite(result):
        raise ArtifactError(
            f"{output.source.file.path}: {output.written[0].name}: "
            f"{'is merged to' if rows else 'holds'} NaN or infinity ({output.dtype})"
        )
    if output.scheme is None:
        return [result]
    values = result.reshape(block.stop - block.start, block.num_columns)
    codes, scale = quantize_rows(values, output.scheme)
    scales.append(scale)
    if not block.is_last:
        return [codes]
    extra = [torch.tensor(output.source.shape)] if len(output.written) > 2 else []
    return [codes, torch.cat(scales), *extra]


def _blocks_of(file: OutputFile, first: int) -> Iterator[Block]:
    for index, output in enumerate(file.outputs[first:], start=first):
        shape = output.source.shape
        num_rows, num_columns = math.prod(shape), 1
        if output.is_raw:
            num_rows = output.source.entry.num_bytes
        elif len(shape) > 1 and (output.changes or output.scheme):
            num_rows, num_columns = math.prod(shape[:-1]), shape[-1]
        blocks = block_rows(num_rows, num_columns) or [(0, 0)]
        for start, stop in blocks:
            yield Block(index, output, start, stop, num_columns, stop == num_rows)


def block_rows(num_rows: int, num_columns: int) -> list[tuple[int, int]]:
    """Nearly equal ranges of rows, none of them small unless the tensor is."""
    most = max(2 * MIN_PRODUCT_ROWS, BLOCK_BYTES // (4 * max(num_columns, 1)))
    count = math.ceil(num_rows / most)
    bounds = [num_rows * index // count for index in range(count + 1)] if count else [0]
    return list(itertools.pairwise(bounds))


def _read(descriptor: int, block: Block, buffer: torch.Tensor) -> tuple[torch.Tensor, int]:
    """A block's values, in the buffer, and where in the file they end."""
    stored = block.output.source
    dtype = torch.uint8 if block.output.is_raw else TORCH_DTYPES[stored.entry.dtype]
    values = buffer.view(dtype)[: block.num_elements]
    offset = len(stored.file.header) + stored.entry.begin
    offset += block.start * block.num_columns * values.element_size()
    view = memoryview(values.view(torch.uint8).numpy())
    read_bytes(descriptor, stored.file.path, stored.name, offset, view)
    return values, offset + len(view)


@contextmanager
def _one_thread() -> Iterator[None]:
    """The arithmetic is small beside the disk; where cores are shared, threads that wait for one
    another cost six times the CPU time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _note(journal: Path, file: OutputFile, finished: int, sha256: str) -> None:
    line = {"file": file.name, "outputs": finished, "sha256": sha256}
    with journal.open("a", encoding="utf-8") as opened:
        opened.write(json.dumps(line) + "\n")
        opened.flush()
        os.fsync(opened.fileno())


def _read_journal(journal: Path) -> dict[str, list[tuple[int, str]]]:
    """By file, how many outputs were finished and the SHA-256 of the file up to there; a line that
    was being written when the run was killed counts for nothing."""
    noted: dict[str, list[tuple[int, str]]] = {}
    for line in journal.read_text(encoding="utf-8", errors="replace").splitlines()[1:]:
        try:
            note = json.loads(line)
            noted.setdefault(note["file"], []).append((int(note["outputs"]), note["sha256"]))
        except (json.JSONDecodeError, KeyError, TypeError, ValueError):
            continue
    return noted


def _finished(file: OutputFile, path: Path, noted: list[tuple[int, str]]) -> tuple[int, Any]:
    """How many outputs of a file are on the disk as they should be, and the hash up to there.

    What comes after them is cut off. The bytes are read, not trusted: a disk that lost power may
    hold less than was written.
    """
    good, hasher = 0, hashlib.sha256()
    running = hashlib.sha256()
    position = 0
    if path.exists():
        with path.open("r+b") as opened:
            if opened.read(len(file.header)) == file.header:
                opened.seek(0)
                for count, sha256 in sorted(noted):
                    end = file.end_of(count) if 0 < count <= len(file.outputs) else -1
                    if not _hash_to(running, opened, end - position):
                        break
                    position = end
                    # A note that differs may be of a run whose bytes were thrown away since.
                    if running.hexdigest() == sha256:
                        good, hasher = count, running.copy()
            opened.truncate(file.end_of(good) if good else 0)
            if noted and not good:
                logger.info(
                    "  %s: what was left of it is not what was noted; begun anew", path.name
                )
    return good, hasher


def _hash_to(hasher: Any, opened: Any, num_bytes: int) -> bool:
    """Hash so many bytes more; whether the file has them."""
    while num_bytes > 0:
        chunk = opened.read(min(num_bytes, 2**20))
        if not chunk:
            return False
        hasher.update(chunk)
        num_bytes -= len(chunk)
    return num_bytes == 0
