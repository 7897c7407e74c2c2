"""Files that would run code when they are loaded have a reason; ordinary files have none."""

import io
import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tuneline.release.gates.safe_files import _reason
from tuneline.release.licenses import License, _known


def zipped(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def saved(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, array)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("weights.BIN", b"x", "has the name of a pickle"),
        ("lib.so.1", b"x", "is code"),
        ("tool.PY", b"x", "is code"),
        ("data.dat", pickle.dumps([1], protocol=4), "is a pickle"),
        (
            "rows.npz",
            saved(np.array([{"a": 1}], dtype=object)),
            "archive with the pickle arr_0.npy",
        ),
        ("a.json", zipped(model=pickle.dumps([1], protocol=2)), "archive with the pickle model"),
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
        ("README.md", b"text"),
    ],
)
def test_an_ordinary_file_has_none(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert _reason(tmp_path / name) is None


@pytest.mark.parametrize("name", ["", "unknown", "Other", "NOASSERTION"])
def test_a_name_that_says_nothing_is_not_a_licence(name: str) -> None:
    assert _known(License(name, "README.md")) is None


def test_a_licence_with_a_name_is_known() -> None:
    found = License("Apache-2.0", "README.md")
    assert _known(found) == found
