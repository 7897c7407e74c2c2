"""A compile cache is checked before it is used, and never stops a server."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serving.kernels.cache import MOST_KEPT, CompileCache, open_cache

KEY = {"vllm": "0.32.0", "flags": ["--dtype=float32"]}


@pytest.fixture
def warm(tmp_path: Path) -> Path:
    """Return the root of a cache with two kernels that a server recorded and left."""
    cache = opened(tmp_path)
    write(cache, "torchinductor/ab/kernel.so", b"\x7fELF one")
    write(cache, "vllm/modelinfos/llama.json", b"{}")
    write(cache, "torchinductor/locks/kernel.lock", b"")
    cache.record()
    cache.close()
    return tmp_path


def opened(root: Path, key: dict[str, Any] | None = None) -> CompileCache:
    cache = open_cache(key or KEY, root)
    cache.check()
    return cache


def write(cache: CompileCache, name: str, content: bytes) -> Path:
    path = cache.files / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def kernels(cache: CompileCache) -> list[str]:
    return [entry.path for entry in cache.entries()]


def test_the_second_server_of_a_key_is_warm(warm: Path) -> None:
    cache = opened(warm)
    assert cache.is_warm
    assert kernels(cache) == ["torchinductor/ab/kernel.so", "vllm/modelinfos/llama.json"]
    env = cache.env({"TRITON_CACHE_DIR": "/mine"})
    assert env == {
        "VLLM_CACHE_ROOT": str(cache.files / "vllm"),
        "TORCHINDUCTOR_CACHE_DIR": str(cache.files / "torchinductor"),
    }
    cache.close()
    assert not opened(warm, {**KEY, "vllm": "0.33.0"}).is_warm


def test_only_the_user_may_write_to_the_folder(warm: Path) -> None:
    cache = open_cache(KEY, warm)
    assert cache.folder.stat().st_mode & 0o077 == 0
    cache.close()
    cache.folder.chmod(0o777)
    other = open_cache(KEY, warm)
    assert not other.is_kept, "another user may have put a kernel there"
    other.close()


@pytest.mark.parametrize("change", ["byte", "record", "link"])
def test_a_cache_that_lies_is_emptied_with_a_warning(
    warm: Path, change: str, caplog: pytest.LogCaptureFixture
) -> None:
    cache = open_cache(KEY, warm)
    kernel = cache.files / "torchinductor/ab/kernel.so"
    if change == "byte":
        kernel.write_bytes(b"\x7fELF 0ne")
    elif change == "record":
        (cache.folder / "record.json").write_text('{"key": {}, "files"')
    else:
        kernel.unlink()
        kernel.symlink_to(cache.files / "vllm/modelinfos/llama.json")
    with caplog.at_level(logging.WARNING, "tuneline"):
        cache.check()
    assert not kernel.exists()
    if change == "byte":
        assert not cache.is_warm
        assert "1 files differ from record.json (torchinductor/ab/kernel.so)" in caplog.text
        assert "vLLM compiles again" in caplog.text
    cache.close()


def test_files_of_a_killed_server_are_removed(warm: Path) -> None:
    cache = opened(warm)
    half = write(cache, "torchinductor/cd/half.so", b"\x7fEL")
    cache.close()  # without a record
    again = opened(warm)
    assert not half.exists()
    assert again.is_warm
    again.close()


def test_a_cache_in_use_is_left_as_it_is(warm: Path) -> None:
    first = opened(warm)
    new = write(first, "torchinductor/cd/new.so", b"\x7fELF two")
    second = opened(warm)
    assert second.is_warm
    assert new.exists(), "the first server may be writing it"
    first.record()
    first.close()
    second.close()
    third = opened(warm)
    assert "torchinductor/cd/new.so" in kernels(third)
    third.close()


def test_of_two_servers_that_start_together_one_checks(
    warm: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = open_cache(KEY, warm), open_cache(KEY, warm)
    kernel = first.files / "torchinductor/ab/kernel.so"
    kernel.write_bytes(b"\x7fELF 0ne")
    with caplog.at_level(logging.WARNING, "tuneline"):
        second.check()
    assert "1 files differ from record.json" in caplog.text
    assert not kernel.exists()
    new = write(second, "torchinductor/cd/new.so", b"\x7fELF two")
    first.check()
    assert new.exists(), "the second server may be writing it"
    first.close()
    second.close()


def test_a_server_waits_while_another_fills_the_cache(tmp_path: Path) -> None:
    first, second = open_cache(KEY, tmp_path), open_cache(KEY, tmp_path)
    fills, goes_on = threading.Event(), threading.Event()

    def fill() -> None:
        fills.set()
        assert goes_on.wait(30)
        write(first, "vllm/a.so", b"whole")

    filled_again: list[str] = []
    one = threading.Thread(target=first.check, args=(fill,))
    one.start()
    assert fills.wait(30)
    other = threading.Thread(target=second.check, args=(lambda: filled_again.append("again"),))
    other.start()
    other.join(0.2)
    assert other.is_alive(), "it would read files that are half-written"
    goes_on.set()
    for thread in (one, other):
        thread.join(30)
    assert first.is_warm and second.is_warm
    assert filled_again == []
    first.close()
    second.close()


def test_a_cache_that_cannot_be_checked_is_emptied(
    warm: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (record,) = warm.glob("*/record.json")
    record.unlink()
    record.mkdir()
    with caplog.at_level(logging.WARNING, "tuneline"):
        cache = opened(warm)
    assert "the compile cache cannot be checked" in caplog.text
    assert not cache.is_warm
    cache.close()


def test_a_full_disk_gives_way_to_a_temporary_folder(
    small_disk: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "tuneline"):
        cache = open_cache(KEY, small_disk("1m") / "kernels")
    assert "No space left on device; vLLM compiles for this start only" in caplog.text
    assert not cache.is_kept
    cache.check()
    assert not cache.is_warm
    write(cache, "vllm/a", b"1")
    cache.record()
    folder = cache.folder
    cache.close()
    assert not folder.exists()


def test_a_root_that_is_a_file_gives_way_to_a_temporary_folder(tmp_path: Path) -> None:
    (tmp_path / "kernels").write_text("")
    cache = open_cache(KEY, tmp_path / "kernels")
    assert not cache.is_kept
    cache.close()


def test_old_caches_are_removed_unless_a_server_uses_them(tmp_path: Path) -> None:
    used = open_cache({"number": 0}, tmp_path)
    os.utime(used.folder, (0, 0))
    for number in range(1, MOST_KEPT + 3):
        cache = open_cache({"number": number}, tmp_path)
        os.utime(cache.folder, (number, number))
        cache.close()
    left = sorted(tmp_path.iterdir())
    assert used.folder in left
    assert len(left) <= MOST_KEPT + 1
    used.close()


def test_the_record_is_json_for_people(warm: Path) -> None:
    (record,) = warm.glob("*/record.json")
    document = json.loads(record.read_text())
    assert document["key"] == KEY
    assert [entry["size_bytes"] for entry in document["files"]] == [8, 2]
