"""The check of vLLM's flags for users without a home directory, and with a broken vLLM."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from serving.command import parser_check
from serving.command.parser_check import check_flags, flag_problems
from serving.config import ServingConfig
from tuneline.core.errors import ServerError


def no_home() -> Path:
    raise RuntimeError("Could not determine home directory.")


def test_a_user_without_a_home_directory_imports_and_checks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.setattr(parser_check, "vllm_version", lambda: "0.32.0")
    monkeypatch.setattr(parser_check, "flag_problems", lambda _: [])
    assert check_flags(ServingConfig()).startswith("vLLM 0.32.0 takes all ")
    code = (
        "import pathlib\n"
        "def no_home(): raise RuntimeError\n"
        "pathlib.Path.home = no_home\n"
        "import serving.command.parser_check\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=dict(os.environ))


def test_a_worker_that_dies_is_named_with_its_last_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = tmp_path / "python"
    worker.write_text("#!/bin/sh\necho first >&2\necho 'ImportError: libcuda.so' >&2\nexit 3\n")
    worker.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(worker))
    with pytest.raises(ServerError, match=r"status 3: ImportError: libcuda\.so\n") as caught:
        flag_problems([])
    assert "python -c" in str(caught.value.hint)
