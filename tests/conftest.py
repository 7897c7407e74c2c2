"""For all tests."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tuneline.core.progress import logger


@pytest.fixture(autouse=True)
def _no_handler_of_another_test() -> Iterator[None]:
    """A command that ran in this process logs to the stderr of its own test, closed by now."""
    yield
    logger.handlers = []
    logger.propagate = True


@pytest.fixture
def small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Path]]:
    """A real file system of a few KiB, which is said to have room: what is filled is filled by the
    writing itself. It needs the right to mount one."""
    mounted: list[Path] = []

    def mount(size: str) -> Path:
        disk = tmp_path / "disk"
        disk.mkdir()
        options = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
        if os.geteuid() != 0 or subprocess.run(options, check=False).returncode:
            pytest.skip("may not mount a file system")
        mounted.append(disk)
        plenty = shutil.disk_usage(tmp_path)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: plenty)
        return disk

    yield mount
    for disk in mounted:
        # A writer that failed may still hold a file open.
        subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.fixture(scope="session")
def calibration() -> Path:
    """llm-compressor's own environment, made on first use."""
    from export.quantize.calibration_environment import install_calibration
    from tuneline.core.errors import MissingError

    try:
        return install_calibration()
    except MissingError as error:
        pytest.skip(f"llm-compressor cannot be installed here: {error.message}")
