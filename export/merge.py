"""Merging an adapter into its base by streaming the base's safetensors.

Bytes flow from the base's shards to the output's through one fixed buffer: untouched tensors as
they are, changed ones in blocks of rows that are computed in float32 and rounded once. Memory is
bounded by one module's adapter matrices and that buffer, whatever the size of the model or of its
shards. Shards, tensor names and their order are the base's own.
"""

from __future__ import annotations

import itertools
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import FileIO
from pathlib import Path

import torch

from export.adapter import (
    MIN_PRODUCT_ROWS,
    Adapter,
    Change,
    is_finite,
    plan_changes,
    read_adapter,
)
from export.config import MergeConfig
from export.model_folder import (
    CONFIG,
    INDEX,
    BaseModel,
    copy_companions,
    max_token_id,
    read_base,
    write_json,
)
from export.tensor_file import (
    DTYPE_BITS,
    SAFETENSORS_DTYPES,
    TORCH_DTYPES,
    TensorEntry,
    TensorFile,
    make_header,
    read_bytes,
    read_elements,
    read_tensor_file,
)
from tuneline.core.artifact import (
    MANIFEST,
    Artifact,
    Input,
    new_artifact,
    open_artifact,
    require_disk_space,
)
from tuneline.core.errors import ArtifactError
from tuneline.core.model_source import ModelSource, folder_digest
from tuneline.core.progress import logger, progress

BLOCK_BYTES = 8 * 2**20
"""Of one block in float32; a few of these are held at a time. Larger gains no speed."""

COMPANION_BYTES = 64 * 2**20
"""Left free on the disk for tokenizer and configuration files."""

SaidBytes = Callable[[int, str], None]
"""`said(count, tensor)`: so many bytes more are written."""


@dataclass(frozen=True)
class Shard:
    """One file to be written: where its tensors come from, and where they go."""

    source: TensorFile
    header: bytes
    entries: tuple[tuple[TensorEntry, TensorEntry], ...]
    """Each tensor in the base's file and in the output's, in the order of the output's bytes."""

    @property
    def size_bytes(self) -> int:
        return len(self.header) + sum(written.num_bytes for _, written in self.entries)


def merge(config: MergeConfig, base: ModelSource, adapter: Path | Artifact, out: Path) -> Artifact:
    """Merge a LoRA adapter into its base and write a model folder.

    Args:
        config: The number format of the result.
        base: The model that the adapter was trained on, not quantized.
        adapter: An artifact of kind `adapter` or any PEFT LoRA folder.
        out: The directory to write; it must not exist.

    Returns:
        An artifact of kind `model`. With dtype `auto` or `float32` its weights have the bits that
        PEFT's `merge_and_unload` gives on the same base.

    Raises:
        ArtifactError: The base or the adapter is corrupt, is of a form that is not supported, does
            not fit the other, or holds or makes values that are not finite.
        MissingError: There is no such base.
        DiskFullError: Too little space for the result; checked before anything is written.
    """
    if base.kind == "adapter":
        raise ArtifactError(f"{base.path}: is an adapter; expected the base model")
    folder, adapter_input = _open_adapter(adapter, base)
    opened = read_adapter(folder)
    model = read_base(base.path)
    changes = plan_changes(opened, model)
    _check_vocabulary(folder, model)
    shards = [_plan_shard(shard, config) for shard in model.shards]
    total_bytes = sum(shard.size_bytes for shard in shards)
    require_disk_space(out, total_bytes + COMPANION_BYTES)

    inputs = [base.as_input("base"), adapter_input]
    with new_artifact(out, "model", config=config.model_dump(), inputs=inputs) as draft:
        with _one_thread(), progress("merge", total_bytes / 2**20, "MiB") as advance:
            done_bytes = 0

            def said(count: int, tensor: str) -> None:
                nonlocal done_bytes
                done_bytes += count
                advance(round(done_bytes / 2**20), tensor)

            for shard in shards:
                _write_shard(shard, changes, opened, draft.dir / shard.source.path.name, said)
        _write_config(model, config, shards, draft.dir)
        copy_companions(model.path, folder, draft.dir)
        _check_keys(model, draft.dir)
        draft.metrics.update(
            num_tensors=len(model.tensors), num_changed_tensors=len(changes), size_bytes=total_bytes
        )
    logger.debug("merged %d of %d tensors into %s", len(changes), len(model.tensors), out)
    return open_artifact(out, kind="model")


def _open_adapter(adapter: Path | Artifact, base: ModelSource) -> tuple[Path, Input]:
    if isinstance(adapter, Path):
        if not (adapter / MANIFEST).is_file():
            if not adapter.is_dir():
                raise ArtifactError(f"{adapter}: no such folder; expected a PEFT adapter folder")
            digest = folder_digest(adapter)
            return adapter, Input(role="adapter", kind="peft-adapter", digest=digest)
        adapter = open_artifact(adapter, kind="adapter")
    if adapter.kind != "adapter":
        raise ArtifactError(f"{adapter.path}: is of kind {adapter.kind!r}; expected an adapter")
    for recorded in adapter.manifest.inputs:
        if recorded.role == "base" and recorded.digest != base.digest:
            raise ArtifactError(
                f"{adapter.path}: was trained on a base with digest {recorded.digest[:19]}…; "
                f"{base.name} has {base.digest[:19]}…",
                hint="Merge into the base that the adapter was trained on.",
            )
    return adapter.path, adapter.as_input("adapter")


def _check_vocabulary(adapter: Path, base: BaseModel) -> None:
    """A tokenizer with more ids than the embedding has rows makes a model that fails in use."""
    highest, rows = max_token_id(adapter), base.config.get("vocab_size")
    if highest is not None and isinstance(rows, int) and highest >= rows:
        raise ArtifactError(
            f"{adapter}: its tokenizer gives ids up to {highest}, the base {base.path} has rows "
            f"for {rows}: the vocabulary was resized, which the merge does not support"
        )


def _plan_shard(source: TensorFile, config: MergeConfig) -> Shard:
    """The output's header: the base's own, byte for byte, unless the number format changes."""
    dtypes = [_output_dtype(entry, config) for entry in source.entries]
    if all(dtype == entry.dtype for dtype, entry in zip(dtypes, source.entries, strict=True)):
        return Shard(source, source.header, tuple((entry, entry) for entry in source.entries))
    # Widest first, as the library writes them, so that every tensor is aligned to its own width.
    order = sorted(zip(dtypes, source.entries, strict=True), key=lambda pair: -DTYPE_BITS[pair[0]])
    position = 0
    entries = []
    for dtype, entry in order:
        num_bytes = entry.num_elements * DTYPE_BITS[dtype] // 8
        written = replace(entry, dtype=dtype, begin=position, end=position + num_bytes)
        entries.append((entry, written))
        position = written.end
    header = make_header([written for _, written in entries], source.metadata)
    return Shard(source, header, tuple(entries))


def _output_dtype(entry: TensorEntry, config: MergeConfig) -> str:
    if config.dtype == "auto" or entry.dtype not in TORCH_DTYPES:
        return entry.dtype
    return SAFETENSORS_DTYPES[getattr(torch, config.dtype)]


def _write_shard(
    shard: Shard, changes: dict[str, list[Change]], adapter: Adapter, path: Path, said: SaidBytes
) -> None:
    with shard.source.path.open("rb") as source, path.open("wb", buffering=0) as out:
        _write(out, memoryview(shard.header))
        for entry, written in shard.entries:
            if entry.dtype not in TORCH_DTYPES:
                _copy(source.fileno(), shard.source, entry, out, said)
                continue
            rows = [change.load(adapter.weights) for change in changes.get(entry.name, [])]
            num_rows, num_columns = entry.num_elements, 1
            if rows and len(entry.shape) > 1:
                num_rows, num_columns = entry.shape[0], math.prod(entry.shape[1:])
            blocks = _blocks(num_rows, num_columns)
            largest = max((stop - start for start, stop in blocks), default=0)
            buffer = torch.empty(largest * num_columns, dtype=TORCH_DTYPES[entry.dtype])
            for start, stop in blocks:
                stored = buffer[: (stop - start) * num_columns]
                read_elements(source.fileno(), shard.source, entry, start * num_columns, stored)
                block = stored
                if rows:
                    block = stored.float().reshape(stop - start, num_columns)
                for change in rows:
                    block = change(block, start, stop)
                result = block.reshape(-1).to(TORCH_DTYPES[written.dtype])
                if not is_finite(result):
                    raise ArtifactError(
                        f"{shard.source.path}: {entry.name}: "
                        f"{'is merged to' if rows else 'holds'} NaN or infinity ({written.dtype})"
                    )
                _write(out, memoryview(result.view(torch.uint8).numpy()))
                said(result.nbytes, entry.name)


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


def _blocks(num_rows: int, num_columns: int) -> list[tuple[int, int]]:
    """Nearly equal ranges of rows, none of them small unless the tensor is."""
    most = max(2 * MIN_PRODUCT_ROWS, BLOCK_BYTES // (4 * max(num_columns, 1)))
    count = math.ceil(num_rows / most)
    bounds = [num_rows * index // count for index in range(count + 1)] if count else [0]
    return list(itertools.pairwise(bounds))


def _copy(source: int, file: TensorFile, entry: TensorEntry, out: FileIO, said: SaidBytes) -> None:
    for start in range(0, entry.num_bytes, BLOCK_BYTES):
        chunk = memoryview(bytearray(min(BLOCK_BYTES, entry.num_bytes - start)))
        read_bytes(source, file.path, entry.name, len(file.header) + entry.begin + start, chunk)
        _write(out, chunk)
        said(len(chunk), entry.name)


def _write(out: FileIO, data: memoryview) -> None:
    while len(data):
        data = data[out.write(data) :]


def _write_config(base: BaseModel, config: MergeConfig, shards: list[Shard], out: Path) -> None:
    """config.json, and the index of a model in several files, told of a changed number format."""
    if config.dtype == "auto":
        shutil.copyfile(base.path / CONFIG, out / CONFIG)
        if base.index is not None:
            shutil.copyfile(base.path / INDEX, out / INDEX)
        return
    model_config = {name: value for name, value in base.config.items() if name != "torch_dtype"}
    write_json(out / CONFIG, {**model_config, "dtype": config.dtype})
    if base.index is not None:
        total_size = sum(shard.size_bytes - len(shard.header) for shard in shards)
        metadata = {**base.index.get("metadata", {}), "total_size": total_size}
        write_json(out / INDEX, {**base.index, "metadata": metadata})


def _check_keys(base: BaseModel, out: Path) -> None:
    """The written files are read again: their tensors must be the base's, name by name."""
    written = {
        entry.name: entry.shape
        for shard in base.shards
        for entry in read_tensor_file(out / shard.path.name).entries
    }
    expected = {name: entry.shape for name, entry in base.tensors.items()}
    if written != expected:
        names = sorted(written.items() ^ expected.items())
        raise ArtifactError(f"{out}: the merged tensors are not the base's: {names[:5]}")
