"""Pruning by magnitude: the smallest weights of each matrix become zero, tensor by tensor.

In each matrix, the given share of smallest magnitudes becomes zero (unstructured), or two of each
four consecutive inputs of every output (2:4, the pattern of sparse tensor cores). Embeddings, the
output layer, routers, norms and biases stay. The files keep their size, because a zero takes as
much space as any number. The result is a model folder, but not the trained model: `tuneline prove`
measures the difference.
"""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO

import torch

from export.config import PruneConfig
from export.weights.blocks import BLOCK_BYTES
from export.weights.families import is_conv1d, is_in_text_half, is_router
from export.weights.model_folder import ModelFolder, read_base, write_model_config
from export.weights.tensor_file import (
    TORCH_DTYPES,
    TensorEntry,
    TensorFile,
    is_finite,
    read_bytes,
    read_elements,
)
from export.weights.writer import COMPANION_BYTES
from tuneline.core.artifact import Artifact, new_artifact, open_artifact
from tuneline.core.disk import require_disk_space
from tuneline.core.errors import ArtifactError
from tuneline.core.progress import progress
from tuneline.models.companion_files import check_companions, copy_companions
from tuneline.models.folder import INDEX
from tuneline.models.source import ModelSource

IN_NUMBERED_BLOCK = re.compile(r"(^|\.)\d+\.")
"""Matches weights inside a block. Embeddings and output layers are outside, under any name."""


def prune_model(config: PruneConfig, model: ModelSource, out: Path) -> Artifact:
    """Set the smallest weights of a model folder to zero.

    Memory is bounded by a few copies of the largest matrix. If magnitudes are equal, the first
    stored weight becomes zero first, so the result is always the same.

    Args:
        config: `sparsity`, or `pattern` `2:4`.
        model: A model folder, not quantized.

    Returns:
        An artifact of kind `model`; `sparsity` in its metrics is the share of zeros in the pruned
        matrices.

    Raises:
        ArtifactError: The folder is corrupt or quantized, has no matrix to prune, a matrix does not
            divide into fours, or a tensor holds NaN or infinity.
        DiskFullError: Too little space for the result.
    """
    opened = read_base(model.path)
    # A proof on text does not see a loss in other tensors, so they stay.
    targets = {
        name: entry
        for name, entry in opened.tensors.items()
        if is_pruned(entry) and is_in_text_half(opened.config, name)
    }
    if not targets:
        raise ArtifactError(
            f"{model.path}: has no matrix to prune: its tensors are embeddings, norms and biases, "
            "or have another shape than (out, in)"
        )
    num_bytes = sum(shard.size_bytes for shard in opened.shards)
    require_disk_space(out, num_bytes + COMPANION_BYTES)
    check_companions(model.path, model.path)
    num_zeros = 0
    inputs = [model.as_input("model")]
    with new_artifact(out, "model", config=config.model_dump(), inputs=inputs) as draft:
        with progress("prune", len(opened.tensors), "tensors") as advance:
            done = 0
            for shard in opened.shards:
                for entry, zeros in _write_pruned(config, opened, shard, targets, draft.dir):
                    num_zeros += zeros
                    done += 1
                    advance(done, entry.name)
        write_model_config(opened, draft.dir, {})
        if opened.index is not None:
            shutil.copyfile(model.path / INDEX, draft.dir / INDEX)
        copy_companions(model.path, model.path, draft.dir)
        draft.metrics.update(
            num_tensors=len(opened.tensors),
            num_changed_tensors=len(targets),
            size_bytes=num_bytes,
            sparsity=num_zeros / sum(entry.num_elements for entry in targets.values()),
        )
    return open_artifact(out, kind="model")


def _write_pruned(
    config: PruneConfig,
    model: ModelFolder,
    shard: TensorFile,
    targets: Collection[str],
    out: Path,
) -> Iterator[tuple[TensorEntry, int]]:
    """Write one shard, tensor by tensor; yield each tensor and the zeros of a pruned one.

    Raises:
        ArtifactError: A tensor holds NaN or infinity, or cannot be pruned as configured.
    """
    with shard.path.open("rb") as source, (out / shard.path.name).open("wb") as written:
        written.write(shard.header)
        for entry in shard.entries:
            if entry.name not in targets:
                _copy_tensor(shard, entry, source.fileno(), written)
                yield entry, 0
                continue
            pruned = _pruned(config, model, shard, entry, source.fileno())
            written.write(memoryview(pruned.view(torch.uint8).numpy()))
            yield entry, int((pruned == 0).sum())


def _copy_tensor(
    shard: TensorFile, entry: TensorEntry, descriptor: int, written: IO[bytes]
) -> None:
    """Copy a tensor in blocks.

    Raises:
        ArtifactError: The tensor holds NaN or infinity.
    """
    for start in range(0, entry.num_bytes, BLOCK_BYTES):
        chunk = bytearray(min(BLOCK_BYTES, entry.num_bytes - start))
        offset = len(shard.header) + entry.begin + start
        read_bytes(descriptor, shard.path, entry.name, offset, memoryview(chunk))
        if entry.dtype in TORCH_DTYPES:
            values = torch.frombuffer(chunk, dtype=TORCH_DTYPES[entry.dtype])
            _check_finite(values, shard, entry)
        written.write(chunk)


def is_pruned(entry: TensorEntry) -> bool:
    """Return whether a tensor is the weight of a linear layer inside a block, or of several experts
    (3-D)."""
    experts = len(entry.shape) == 3 and "experts" in entry.name
    # A state space model also has matrices that no linear layer multiplies by, such as `A_log`.
    linear = len(entry.shape) == 2 and entry.name.endswith(".weight")
    return (
        (linear or experts)
        and entry.dtype in TORCH_DTYPES
        and not entry.name.endswith("bias")
        and IN_NUMBERED_BLOCK.search(entry.name) is not None
        and not is_router(entry.name)
        and 0 not in entry.shape
    )


def zero_smallest(weights: torch.Tensor, share: float) -> None:
    """Set the `floor(share · n)` smallest magnitudes to zero, in place; the first of equal ones."""
    flat = weights.view(-1)
    count = math.floor(share * flat.numel())
    if count == 0:
        return
    magnitudes = flat.abs()
    threshold = torch.kthvalue(magnitudes, count).values
    below = magnitudes < threshold
    equal = (magnitudes == threshold).nonzero().view(-1)
    flat[below] = 0
    flat[equal[: count - int(below.sum())]] = 0


def zero_two_of_four(weights: torch.Tensor) -> None:
    """Set the two smallest magnitudes of each four consecutive values of the last dimension to
    zero, in place; the first of equal ones."""
    groups = weights.view(-1, 4)
    order = groups.abs().sort(dim=1, stable=True).indices[:, :2]
    groups.scatter_(1, order, 0)


def _check_finite(values: torch.Tensor, shard: TensorFile, entry: TensorEntry) -> None:
    if not is_finite(values):
        raise ArtifactError(f"{shard.path}: {entry.name}: holds NaN or infinity")


def _pruned(
    config: PruneConfig, model: ModelFolder, shard: TensorFile, entry: TensorEntry, descriptor: int
) -> torch.Tensor:
    """Return the tensor's new values, flat, in its own number format."""
    dtype = TORCH_DTYPES[entry.dtype]
    stored = torch.empty(entry.num_elements, dtype=dtype)
    read_elements(descriptor, shard, entry, 0, stored)
    # float32 represents bfloat16 and float16 exactly, so the order of magnitudes is the file's.
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    weights = stored.reshape(entry.shape).to(exact, copy=True)
    _check_finite(weights, shard, entry)
    if config.sparsity is not None:
        zero_smallest(weights, config.sparsity)
        return weights.reshape(-1).to(dtype)
    if len(entry.shape) == 3:
        raise ArtifactError(
            f"{shard.path}: {entry.name}: holds several experts, whose inputs may be either "
            "dimension; the pattern 2:4 is not supported for it",
            hint="Prune it with --sparsity 0.5 instead.",
        )
    transposed = is_conv1d(model.config, entry.name.removesuffix(".weight"))
    if transposed:
        weights = weights.transpose(-1, -2).contiguous()
    if weights.shape[-1] % 4:
        raise ArtifactError(
            f"{shard.path}: {entry.name}: has {weights.shape[-1]} inputs, which do not divide into "
            "fours",
            hint="Prune it with --sparsity 0.5 instead.",
        )
    zero_two_of_four(weights)
    if transposed:
        weights = weights.transpose(-1, -2).contiguous()
    return weights.reshape(-1).to(dtype)
