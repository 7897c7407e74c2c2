"""A model folder's digest."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from tuneline.models.source import folder_digest


def test_a_folder_s_digest_is_over_names_and_contents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    folder = tmp_path / "model"
    folder.mkdir()
    # Longer than what is read, and dropped from the page cache, at once.
    contents = {"config.json": b"{}", "model.safetensors": os.urandom(37 * 2**20 + 5)}
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    (folder / "pytorch_model.bin").write_bytes(b"a pickle is never read")
    entries = [[name, hashlib.sha256(data).hexdigest()] for name, data in contents.items()]
    text = json.dumps(entries, separators=(",", ":"))
    expected = "sha256:" + hashlib.sha256(text.encode()).hexdigest()
    assert folder_digest(folder) == expected
    assert folder_digest(folder) == expected, "as it is remembered"
