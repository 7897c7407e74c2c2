"""Our reading and writing of safetensors against the library's own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from export.weights.tensor_file import (
    TensorEntry,
    make_header,
    read_elements,
    read_tensor,
    read_tensor_file,
)
from tuneline.core.errors import ArtifactError

TENSORS = {
    "a": torch.arange(12, dtype=torch.float32).reshape(3, 4),
    "b": torch.arange(5, dtype=torch.int64),
    "c": torch.linspace(-1, 1, 6, dtype=torch.bfloat16).reshape(2, 3),
    "empty": torch.empty(0, 7, dtype=torch.float16),
    "scalar": torch.tensor(2.5),
    "ü": torch.tensor([True, False]),
}


def test_a_file_of_the_library_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file(TENSORS, path, metadata={"format": "pt"})
    file = read_tensor_file(path)
    assert {entry.name: entry.shape for entry in file.entries} == {
        name: tuple(value.shape) for name, value in TENSORS.items()
    }
    assert file.metadata == {"format": "pt"}
    assert file.size_bytes == path.stat().st_size
    floats = [entry for entry in file.entries if TENSORS[entry.name].is_floating_point()]
    assert len(floats) == 4
    for entry in floats:
        assert torch.equal(read_tensor(file, entry), TENSORS[entry.name].float())


def test_a_piece_of_a_tensor_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file(TENSORS, path)
    file = read_tensor_file(path)
    (entry,) = (entry for entry in file.entries if entry.name == "a")
    piece = torch.empty(5)
    with path.open("rb") as opened:
        read_elements(opened.fileno(), file, entry, 4, piece)
    assert piece.tolist() == [4, 5, 6, 7, 8]


def test_the_library_reads_what_we_write(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    values = {"x": torch.arange(6.0).reshape(2, 3), "ü": torch.tensor([1.5, 2.5])}
    entries = [TensorEntry("x", "F32", (2, 3), 0, 24), TensorEntry("ü", "F32", (2,), 24, 32)]
    header = make_header(entries, {"format": "pt"})
    assert len(header) % 8 == 0
    path.write_bytes(header + b"".join(values[entry.name].numpy().tobytes() for entry in entries))
    found = load_file(path)
    assert found.keys() == values.keys()
    assert all(torch.equal(found[name], values[name]) for name in values)
    with safe_open(path, "pt") as opened:
        assert opened.metadata() == {"format": "pt"}


def test_a_name_that_appears_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    entry = b'"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}'
    header = b"{" + entry + b"," + entry + b"}"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"1")
    with pytest.raises(ArtifactError, match="the key 'x' appears twice"):
        read_tensor_file(path)


def test_a_file_that_shrinks_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.ones(1000)}, path)
    file = read_tensor_file(path)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ArtifactError, match="the file ends early"):
        read_tensor(file, file.entries[0])
