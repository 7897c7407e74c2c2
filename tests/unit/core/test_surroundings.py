"""Errors of the machine that no step expected end a command with a cause, not with a traceback."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from tuneline.core.surroundings import explain_os_error

WRITE = "with open('/dev/full', 'wb', buffering=0) as full: full.write(b'x')"
OPEN = (
    "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (12, 12)); "
    "kept = [open('/dev/null') for _ in range(20)]"
)
NO_TEMPORARY = (
    "import os, tempfile; os.chdir('/proc'); tempfile._candidate_tempdir_list = lambda: ['/proc']; "
    "tempfile.gettempdir()"
)


@pytest.mark.parametrize(
    ("cause", "code", "words"),
    [
        (WRITE, 4, "the disk is full"),
        (OPEN, 4, "/dev/null: too many open files; this process may open 12"),
        (NO_TEMPORARY, 4, "no folder for temporary files can be written"),
        ("raise PermissionError(13, 'Permission denied', 'a/b')", 3, "a/b: Permission denied"),
        ("raise OSError(5, 'Input/output error', 'a/b')", 1, "Traceback"),
    ],
    ids=["full", "files", "temporary", "permission", "other"],
)  # fmt: skip
def test_a_command_ends_with_the_cause(cause: str, code: int, words: str, tmp_path: Path) -> None:
    script = tmp_path / "main.py"
    script.write_text(
        "import tuneline.cli as cli\n"
        f"def app(**_: object) -> None:\n    {cause.replace('; ', chr(10) + '    ')}\n"
        "cli.app = app\ncli.main()\n"
    )
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert ("Traceback" in done.stderr) == (code == 1)


def test_an_error_without_a_path_may_be_a_bug() -> None:
    assert explain_os_error(PermissionError(errno.EACCES, "Permission denied")) is None
    assert explain_os_error(FileNotFoundError(errno.ENOENT, "No such file", "a")) is None
