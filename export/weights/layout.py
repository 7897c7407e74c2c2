"""The layout of the files to write: every tensor of the result and its place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from export.quantize.schemes import Scheme, stored_tensors
from export.weights.blocks import Change
from export.weights.tensor_file import (
    DTYPE_BITS,
    TORCH_DTYPES,
    Stored,
    TensorEntry,
    TensorFile,
    make_header,
    num_bytes,
)


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of the result, before its place in a file is known."""

    name: str
    source: Stored
    changes: tuple[Change, ...]
    dtype: str


@dataclass(frozen=True)
class Output:
    """One tensor of the result: the source of its bytes, their changes and the tensors written.

    Of a quantized tensor, `written` lists its codes, its scales and whatever else the scheme
    stores.
    """

    source: Stored
    changes: tuple[Change, ...]
    dtype: str
    """The number format that the result is rounded to, before it is quantized."""
    written: tuple[TensorEntry, ...]
    scheme: Scheme | None = None

    @property
    def is_raw(self) -> bool:
        """Whether the tensor has a number format that this package does not compute in."""
        return self.source.entry.dtype not in TORCH_DTYPES


@dataclass(frozen=True)
class OutputFile:
    """One file to write; its outputs are in the order of its bytes."""

    name: str
    header: bytes
    outputs: tuple[Output, ...]

    @property
    def size_bytes(self) -> int:
        return self.end_of(len(self.outputs))

    def end_of(self, count: int) -> int:
        """Return the position in the file where the first `count` outputs end."""
        return len(self.header) + (self.outputs[count - 1].written[-1].end if count else 0)


def lay_out(
    name: str, tensors: Sequence[PlannedTensor], source: TensorFile, schemes: Mapping[str, Scheme]
) -> OutputFile:
    """Give each tensor its place in a file.

    Tensors keep the order of `tensors`, but wide number formats come before narrow ones, so that
    each tensor is aligned to its own width, and quantized tensors come last. A file that holds the
    same tensors as `source` keeps its header, byte for byte.
    """
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
