"""The place of each tensor in a file."""

from __future__ import annotations

from pathlib import Path

from export.quantize.schemes import Scheme
from export.weights.layout import PlannedTensor, lay_out
from export.weights.tensor_file import Stored, TensorEntry, TensorFile

HEADER = b"the header of the source"
A = TensorEntry("a", "BF16", (2, 3), 0, 12)
B = TensorEntry("b", "F32", (4,), 12, 28)
C = TensorEntry("c", "U8", (5,), 28, 33)
SOURCE = TensorFile(Path("source.safetensors"), HEADER, {"format": "pt"}, (A, B, C))


def planned(entry: TensorEntry, dtype: str = "") -> PlannedTensor:
    return PlannedTensor(entry.name, Stored(SOURCE, entry), (), dtype or entry.dtype)


def test_a_file_of_the_same_tensors_keeps_its_header() -> None:
    file = lay_out("out", [planned(A), planned(B), planned(C)], SOURCE, {})
    assert file.header == HEADER
    assert [output.written for output in file.outputs] == [(A,), (B,), (C,)]
    assert file.size_bytes == len(HEADER) + 33
    assert [file.end_of(count) - len(HEADER) for count in range(4)] == [0, 12, 28, 33]
    assert [output.is_raw for output in file.outputs] == [False, False, True]


def test_wide_formats_come_before_narrow_ones() -> None:
    file = lay_out("out", [planned(A, "F16"), planned(C), planned(B)], SOURCE, {})
    written = [output.written[0] for output in file.outputs]
    assert [(one.name, one.dtype, one.begin, one.end) for one in written] == [
        ("b", "F32", 0, 16), ("a", "F16", 16, 28), ("c", "U8", 28, 33),
    ]  # fmt: skip
    assert b'"format":"pt"' in file.header
    assert len(file.header) % 8 == 0


def test_a_quantized_tensor_comes_last_with_its_scales() -> None:
    weight = TensorEntry("m.weight", "F32", (2, 8), 0, 64)
    tensors = [planned(weight), planned(B)]
    file = lay_out("out", tensors, SOURCE, {"m.weight": Scheme("int8")})
    written = [(one.name, one.dtype, one.shape) for out in file.outputs for one in out.written]
    assert written == [
        ("b", "F32", (4,)), ("m.weight", "I8", (2, 8)), ("m.weight_scale", "F32", (2, 1)),
    ]  # fmt: skip
    assert file.size_bytes == len(file.header) + 16 + 16 + 8


def test_an_added_tensor_gets_a_place_of_its_own() -> None:
    head = PlannedTensor("lm_head.weight", Stored(SOURCE, A), (), "BF16")
    file = lay_out("out", [planned(A), head, planned(B), planned(C)], SOURCE, {})
    names = [output.written[0].name for output in file.outputs]
    assert names == ["b", "a", "lm_head.weight", "c"]
    spans = [(output.written[0].begin, output.written[0].end) for output in file.outputs]
    assert spans == [(0, 16), (16, 28), (28, 40), (40, 45)]
