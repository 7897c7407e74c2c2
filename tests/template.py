"""A process that has imported the tests, from which the workers of `pytest -n` are forked.

The import of all tests and their libraries takes 45 s of CPU time, which each worker of xdist would
spend anew. Here the controller of a run starts a template, and gives xdist the program
`forked_worker.py` as the Python of its workers. That program hands its pipes to the template, which
forks a worker on them.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import shutil
import socket
import subprocess
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def fork_workers(specs: Sequence[Any], paths: Sequence[str]) -> subprocess.Popen[bytes] | None:
    """Start a template of the tests in `paths`, and let xdist fork the workers of `specs` from it.

    Workers on a machine with a GPU start as usual: a forked process cannot use CUDA if its parent
    has used it.

    Returns:
        The template, which ends when its stdin is closed.
    """
    if shutil.which("nvidia-smi") is not None:
        return None
    name = f"tuneline-tests-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0{name}")
        listener.listen()
        template = subprocess.Popen(
            [sys.executable, __file__, str(listener.fileno()), *paths],
            stdin=subprocess.PIPE, pass_fds=[listener.fileno()],
        )  # fmt: skip
    client = Path(__file__).with_name("forked_worker.py")
    for spec in specs:
        if spec.popen and not spec.python:
            spec.python = f"'{sys.executable}' -I -S '{client}' {name}"
    return template


def _serve(listener: socket.socket, paths: list[str]) -> None:
    """Import the tests, then fork a worker for each connection until stdin ends."""
    import pytest

    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        pytest.main(["--collect-only", "-qq", "-p", "no:cacheprovider", *paths])
    gc.freeze()
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in ready:
            os._exit(0)  # without the reports of libraries about objects that the tests still hold
        connection, _ = listener.accept()
        _, descriptors, _, _ = socket.recv_fds(connection, 1, 3)
        if os.fork() == 0:
            listener.close()
            _become_worker(descriptors)
        for one in descriptors:
            os.close(one)
        connection.close()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(-1, os.WNOHANG)


def _become_worker(descriptors: list[int]) -> None:
    """Do what execnet's `python -c` does, on these pipes. The connection closes when it ends."""
    for number, one in enumerate(descriptors):
        os.dup2(one, number)
        os.close(one)
    sys.stdin, sys.stdout, sys.stderr = (
        os.fdopen(number, mode, buffering=1, closefd=False)
        for number, mode in ((0, "r"), (1, "w"), (2, "w"))
    )
    sys.argv = ["-c"]
    # A process that multiprocessing spawns would import the file of __main__.
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    exec("import sys;exec(eval(sys.stdin.readline()))", vars(main))  # noqa: S102
    sys.exit()


if __name__ == "__main__":
    del sys.path[0]  # this folder, whose modules have common names
    _serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:])
