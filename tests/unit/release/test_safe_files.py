"""Files that would run code when they are loaded have a reason; ordinary files have none."""

import bz2
import gzip
import io
import json
import lzma
import pickle
import posixpath
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuneline.release.gates.safe_files import _reason
from tuneline.release.licenses import License, _known
from tuneline.release.pickles import is_pickle


def zipped(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tarred(mode: str, **members: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def saved(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, array)
    return buffer.getvalue()


def torch_saved(value: object, *, as_zip: bool) -> bytes:
    import torch

    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=as_zip)
    return buffer.getvalue()


def safetensors_of(header_bytes: int) -> bytes:
    """Return a file whose first bytes, the length of its header, are chosen."""
    header = b'{"__metadata__":{}}'
    return header_bytes.to_bytes(8, "little") + header.ljust(header_bytes) + bytes(64)


class Harmless:
    """Is pickled as a call, of a function that only splits a path."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return posixpath.split, ("a/b",)


OLDEST = pickle.dumps([1, "two"], protocol=0)
CALL = pickle.dumps(Harmless(), protocol=0)
LATEST = pickle.dumps([1], protocol=5)
AFTER_A_LONG_TEXT = b"V" + b"x" * 300_000 + b"\n0" + CALL
AFTER_MANY_OPCODES = b"N0" * 60_000 + CALL
NESTED = zipped(a=zipped(b=zipped(c=zipped(d=zipped(e=zipped(f=b"text"))))))


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("weights.BIN", b"x", "has the name of a pickle"),
        ("lib.so.1", b"x", "is code"),
        ("tool.PY", b"x", "is code"),
        *(
            (f"protocol {protocol}.dat", pickle.dumps({"a": [1.5]}, protocol), "is a pickle")
            for protocol in range(6)
        ),
        *(
            (f"call {protocol}.txt", pickle.dumps(Harmless(), protocol), "is a pickle")
            for protocol in range(6)
        ),
        ("model.safetensors", CALL, "is a pickle"),
        ("never ends.txt", CALL.removesuffix(b"."), "is a pickle"),
        ("goes on.txt", CALL + b" and more text", "is a pickle"),
        ("goes on.dat", LATEST + bytes(1000), "is a pickle"),
        ("long.txt", AFTER_A_LONG_TEXT, "is a pickle"),
        ("many.txt", AFTER_MANY_OPCODES, "is a pickle"),
        ("legacy.pt", torch_saved([1], as_zip=False), "is a pickle"),
        ("model.pt", torch_saved([1], as_zip=True), "data.pkl has the name of a pickle"),
        (
            "rows.npz",
            saved(np.array([{"a": 1}], dtype=object)),
            "archive whose arr_0.npy holds Python objects",
        ),
        (
            "fields.npz",
            saved(np.zeros(1, dtype=[(f"field {i}", "f8") for i in range(90)] + [("o", "O")])),
            "holds Python objects",
        ),
        ("a.json", zipped(model=LATEST), "archive whose model is a pickle"),
        ("a.txt", zipped(model=OLDEST), "archive whose model is a pickle"),
        ("b.txt", b"text before it" + zipped(model=CALL), "archive whose model is a pickle"),
        ("inner.zip", zipped(a=zipped(b=CALL)), "whose a is an archive whose b is a pickle"),
        ("code.zip", zipped(**{"tool.py": b"x"}), "archive whose tool.py is code"),
        ("deep.zip", NESTED, "is an archive inside 4 others"),
        ("a.tar", tarred("w:", model=OLDEST), "archive whose model is a pickle"),
        ("a.tgz", tarred("w:gz", model=CALL), "archive whose model is a pickle"),
        ("a.gz", gzip.compress(CALL, mtime=0), "archive whose content is a pickle"),
        ("a.bz2", bz2.compress(CALL), "archive whose content is a pickle"),
        ("a.xz", lzma.compress(CALL), "archive whose content is a pickle"),
        ("a.z", zlib.compress(CALL), "archive whose content is a pickle"),
        ("a.zst", b"\x28\xb5\x2f\xfd" + bytes(20), "is a zstd archive"),
        ("cut.zip", zipped(model=b"text" * 100)[:-30], "is an archive that cannot be read"),
        ("config.json", b'{"text_config": {"auto_map": {"AutoModel": "x.Y"}}}', "auto_map"),
        ("processor_config.json", b'{"parts": [{"auto_map": {"a": "b"}}]}', "auto_map"),
        ("generation_config.json", b"{", "is not JSON"),
    ],
)
def test_a_file_that_may_run_code_has_a_reason(
    tmp_path: Path, name: str, content: bytes, reason: str
) -> None:
    (tmp_path / name).write_bytes(content)
    assert reason in (_reason(tmp_path / name) or "")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("records.npz", saved(np.arange(3))),
        ("config.json", json.dumps({"model_type": "llama", "auto_map": {}}).encode()),
        ("model.safetensors", b"\x08" + bytes(7) + b"{}      "),
        # The length of a header may begin like a pickle: 640 is 80 02, 1152 is 80 04.
        *((f"{size}.safetensors", safetensors_of(size)) for size in (640, 896, 1152, 1408)),
        ("README.md", b"text"),
        ("empty", b""),
        ("zeros", bytes(4096)),
        ("notes.txt", b"config\nvalue\nred\n"),
        ("numbers.txt", b"0.5\n1.5\n"),
        ("names.txt", b"Various\nnames.\n"),
        ("x.txt", b"x^2 + 1"),
        ("clean.tar", tarred("w:", model=b"text")),
        ("clean.gz", gzip.compress(b"text", mtime=0)),
        ("clean.zip", zipped(a=zipped(b=b"text"))),
    ],
)
def test_an_ordinary_file_has_none(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert _reason(tmp_path / name) is None


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=20,
)


@given(value=PLAIN, protocol=st.integers(0, 5))
@settings(max_examples=150, derandomize=True, deadline=None)
def test_every_pickle_of_plain_values_is_found(value: object, protocol: int) -> None:
    assert is_pickle(io.BytesIO(pickle.dumps(value, protocol)))


class ImportsNothing(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        raise pickle.UnpicklingError(module, name)


def test_all_that_an_unpickler_takes_is_found() -> None:
    num_taken = 0

    @given(
        value=PLAIN, protocol=st.integers(0, 5),
        changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=3),
    )  # fmt: skip
    @settings(max_examples=300, derandomize=True, deadline=None)
    def try_one(value: object, protocol: int, changes: list[tuple[int, int]]) -> None:
        nonlocal num_taken
        content = bytearray(pickle.dumps(value, protocol))
        for place, byte in changes:
            content[place % len(content)] = byte
        file = io.BytesIO(bytes(content))
        try:
            ImportsNothing(file).load()
        except Exception:  # noqa: BLE001 (an unpickler raises anything for damaged opcodes)
            return
        if file.tell() == len(content):
            num_taken += 1
            assert is_pickle(io.BytesIO(bytes(content)))

    try_one()
    assert num_taken > 50


EXAMPLES = Path(__file__).parents[3] / "examples"
ORDINARY = [path for path in EXAMPLES.rglob("*") if path.is_file() and path.suffix != ".py"]


def test_no_file_of_the_examples_has_a_reason() -> None:
    assert len(ORDINARY) > 10
    assert {path.name: reason for path in ORDINARY if (reason := _reason(path))} == {}


@pytest.mark.parametrize("name", ["", "unknown", "Other", "NOASSERTION"])
def test_a_name_that_says_nothing_is_not_a_licence(name: str) -> None:
    assert _known(License(name, "README.md")) is None


def test_a_licence_with_a_name_is_known() -> None:
    found = License("Apache-2.0", "README.md")
    assert _known(found) == found
