"""`tuneline` as it is typed, in this process."""

import contextlib
import io
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tuneline import cli

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@contextlib.contextmanager
def kept_signals() -> Iterator[None]:
    """Put the handlers of signals back that the command line takes over."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def tuneline_here(
    *args: str, written_to: io.TextIOWrapper | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the command line where torch and transformers are imported already.

    Its stdout is in the answer, unless there is a file that it is written to.

    Use it to test what a command answers, prints and exits with. A test of signals needs
    `tuneline_forked`, and one of imports or time a process that starts anew.
    """
    argv, sys.argv = sys.argv, ["tuneline", *args]
    stdout, stderr = io.StringIO(), io.StringIO()
    try:
        to = written_to or stdout
        with (
            kept_signals(), contextlib.redirect_stdout(to), contextlib.redirect_stderr(stderr)
        ):  # fmt: skip
            cli.main()
    except SystemExit as ended:
        code = ended.code
    finally:
        sys.argv = argv
    assert isinstance(code, int)
    return subprocess.CompletedProcess(sys.argv, code, stdout.getvalue(), stderr.getvalue())


def tuneline_forked(log: Path, *args: str) -> BaseProcess:
    """Start the command line in a process of its own, which inherits torch and transformers.

    Use it for a command that a signal ends. Its output goes to `log`.
    """
    log.touch()
    process = multiprocessing.get_context("fork").Process(target=_run_forked, args=(log, args))
    process.start()
    return process


def _run_forked(log: Path, args: tuple[str, ...]) -> None:
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
    sys.argv = ["tuneline", *args]
    torch: Any = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)  # the threads of the parent's pool are not in this process
    cli.main()
