"""Writing safetensors files tensor by tensor, in memory that does not depend on the model's size.

Four threads let disk and processor work at the same time: one reads ahead, this one computes in
blocks of rows, one writes and hashes, one waits for the disk. A journal notes the finished tensors;
after a kill, the next run hashes the files on the disk and goes on after the last tensor that
agrees with the journal.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from export.quantize.schemes import quantize_rows
from export.weights.blocks import RowFunction, block_rows
from export.weights.journal import find_finished, note_finished, read_journal
from export.weights.layout import Output, OutputFile
from export.weights.tensor_file import TORCH_DTYPES, is_finite, read_bytes
from tuneline.core.artifact import partial_dir
from tuneline.core.disk import require_disk_space
from tuneline.core.errors import ArtifactError
from tuneline.core.progress import Advance, logger

BLOCKS_AHEAD = 4
"""How many blocks are read ahead, and how many may wait to be written."""

DROP_BYTES = 16 * 2**20
"""After this many bytes are read, they are dropped from the page cache."""

KEPT_BYTES = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4
"""A result up to this size stays in the page cache for its next reader. The bytes of a larger one
are dropped once they are on the disk: reclaiming them later slows down the next writes."""

CHECKPOINT_BYTES = 64 * 2**20
"""At least this many bytes are written between two notes in the journal."""

COMPANION_BYTES = 64 * 2**20
"""Space that is left free on the disk for tokenizer and configuration files."""

SaidBytes = Callable[[int, str], None]
"""`said(count, tensor)`: `count` more bytes are written, of this tensor."""


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


def require_free(out: Path, size_bytes: int) -> None:
    """Refuse a result that does not fit on the disk; the bytes of an earlier run count as free.

    Raises:
        DiskFullError: The disk has too little space.
    """
    partial = partial_dir(out)
    left = sum(file.stat().st_size for file in partial.rglob("*")) if partial.is_dir() else 0
    require_disk_space(out, size_bytes + COMPANION_BYTES - left)


def in_mib(advance: Advance) -> SaidBytes:
    """Return a function that turns counts of bytes into progress in MiB."""
    done_bytes = 0

    def said(count: int, tensor: str) -> None:
        nonlocal done_bytes
        done_bytes += count
        advance(round(done_bytes / 2**20), tensor)

    return said


def write_files(
    files: Sequence[OutputFile], out: Path, journal: Path, said: SaidBytes
) -> tuple[dict[str, str], int]:
    """Write all files into `out`; go on from what an earlier run left there.

    Returns:
        Each file's SHA-256, and the number of bytes that were finished before.

    Raises:
        ArtifactError: A value is NaN or infinite, or a source file ends early.
    """
    noted = read_journal(journal)
    hashes = {}
    resumed_bytes = 0
    is_kept = sum(file.size_bytes for file in files) <= KEPT_BYTES
    with _one_thread():
        for file in files:
            path = out / file.name
            count, hasher = find_finished(file, path, noted.get(file.name, []))
            if count:
                resumed_bytes += file.end_of(count)
                said(file.end_of(count), "finished before")
            with path.open("ab", buffering=0) as opened, ThreadPoolExecutor(1) as syncer:
                sink = _Sink(file, opened, count, hasher, journal, said, is_kept, syncer)
                _write_file(file, count, sink)
                hashes[file.name] = sink.finish()
    if resumed_bytes:
        logger.info("  went on after %d MiB that were finished before", resumed_bytes // 2**20)
    return hashes, resumed_bytes


def _write_file(file: OutputFile, first: int, sink: _Sink) -> None:
    """Write the outputs from number `first` on; the file ends just before them."""
    with ExitStack() as stack:
        # The threads end before the files that they use are closed.
        source = _Source(stack.enter_context(ExitStack()))
        reader = stack.enter_context(ThreadPoolExecutor(1))
        writer = stack.enter_context(ThreadPoolExecutor(1))
        if first == 0:
            writer.submit(sink.write_header).result()
        # Memory is reused: fresh pages cost more than the work that is done in them. A block is
        # read into a buffer, computed in it and written from it; then the buffer is free again.
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
            if block.start == 0:
                rows = [change.load(_rounding(block.output)) for change in block.output.changes]
                scales = []
            pieces = compute_block(block, stored.result(), scratch, rows, scales)
            writes.append((buffer, writer.submit(sink.write, block, pieces)))

        for block in _blocks_of(file, first):
            if free:
                buffer = free.pop()
            else:
                buffer, written = writes.popleft()
                written.result()
            reads.append((block, buffer, reader.submit(source.read, block, buffer)))
            if len(reads) > BLOCKS_AHEAD:
                compute()
        while reads:
            compute()
        for _, written in writes:
            written.result()


class _Source:
    """The files that blocks are read from, opened on first use."""

    def __init__(self, opened: ExitStack) -> None:
        self.opened = opened
        self.descriptors: dict[Path, int] = {}
        self.dropped: dict[Path, int] = {}

    def read(self, block: Block, buffer: torch.Tensor) -> torch.Tensor:
        """Return a block's values, in the buffer."""
        stored = block.output.source
        path = stored.file.path
        if path not in self.descriptors:
            self.descriptors[path] = self.opened.enter_context(path.open("rb")).fileno()
        dtype = torch.uint8 if block.output.is_raw else TORCH_DTYPES[stored.entry.dtype]
        values = buffer.view(dtype)[: block.num_elements]
        offset = len(stored.file.header) + stored.entry.begin
        offset += block.start * block.num_columns * values.element_size()
        view = memoryview(values.view(torch.uint8).numpy())
        read_bytes(self.descriptors[path], path, stored.name, offset, view)
        self._drop(path, offset + len(view))
        return values

    def _drop(self, path: Path, end: int) -> None:
        """Drop read bytes from the page cache. Nothing reads them again, and reclaiming them for
        the bytes that are written costs several times the reading."""
        start = self.dropped.setdefault(path, 0)
        if end - start >= DROP_BYTES:
            os.posix_fadvise(self.descriptors[path], start, end - start, os.POSIX_FADV_DONTNEED)
        if not 0 <= end - start < DROP_BYTES:
            self.dropped[path] = end


class _Sink:
    """The file that is written: hashed as it grows, and noted in the journal tensor by tensor."""

    def __init__(
        self,
        file: OutputFile,
        opened: Any,
        first: int,
        hasher: Any,
        journal: Path,
        said: SaidBytes,
        is_kept: bool,
        syncer: ThreadPoolExecutor,
    ) -> None:
        self.file, self.opened, self.hasher = file, opened, hasher
        self.journal, self.said, self.is_kept = journal, said, is_kept
        self.syncer = syncer
        self.noted_bytes = file.end_of(first)
        self.note: Future[None] | None = None

    def write_header(self) -> None:
        self.opened.write(self.file.header)
        self.hasher.update(self.file.header)

    def write(self, block: Block, pieces: list[torch.Tensor]) -> None:
        """Write one block; after the last block of an output, note what is finished."""
        for piece in pieces:
            view = memoryview(piece.contiguous().view(-1).view(torch.uint8).numpy())
            self.hasher.update(view)
            while len(view):
                view = view[self.opened.write(view) :]
            self.said(piece.nbytes, block.output.written[0].name)
        finished = block.index + 1
        end = self.file.end_of(finished)
        if not block.is_last or end - self.noted_bytes < CHECKPOINT_BYTES:
            return
        if self.note is not None:
            self.note.result()
        self.noted_bytes = end
        self.note = self.syncer.submit(self._sync, finished, self.hasher.hexdigest())

    def _sync(self, finished: int, sha256: str) -> None:
        # The bytes have to reach the disk in any case; the wait overlaps with the work from here.
        os.fdatasync(self.opened.fileno())
        if not self.is_kept:
            end = self.file.end_of(finished)
            os.posix_fadvise(self.opened.fileno(), 0, end, os.POSIX_FADV_DONTNEED)
        note_finished(self.journal, self.file, finished, sha256)

    def finish(self) -> str:
        """Wait for the last note; return the file's SHA-256."""
        if self.note is not None:
            self.note.result()
        return str(self.hasher.hexdigest())


def _rounding(output: Output) -> torch.dtype:
    """Return the number format that a change may round to on its way.

    Where the result has another format than the base, this is float32: the result is then rounded
    once, at the end.
    """
    if output.dtype == output.source.entry.dtype:
        return TORCH_DTYPES.get(output.dtype, torch.float32)
    return torch.float32


def compute_block(
    block: Block,
    stored: torch.Tensor,
    scratch: torch.Tensor,
    rows: list[RowFunction],
    scales: list[torch.Tensor],
) -> list[torch.Tensor]:
    """Return the tensors to write for one block; the last block of a quantized tensor brings the
    scales of all its blocks."""
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


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute with one thread. The arithmetic is small next to the disk's work, and if cores
    are shared, threads that wait for one another cost six times the processor time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
