"""A process that has imported the tests, from which the workers of `pytest -n` are forked.

The import of all tests and their libraries takes 45 s of CPU time, which each worker of xdist would
spend anew. Here the controller of a run starts a template, and gives xdist the program
`forked_worker.py` as the Python of its workers. That program hands its pipes to the template, which
forks a worker on them.

Workers share what an import has made outside of its process. One that overwrites a file of another
breaks tests far from the cause, so the template refuses such tests, by `shared_state`.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import select
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

READY = "ready"
NAME = "TUNELINE_TESTS_TEMPLATE"
"""The variable with the name of the template's socket, in its forks."""
ROOT = Path(__file__).parents[1]
BOOTSTRAP = "import sys;exec(eval(sys.stdin.readline()))"
"""The program of execnet's workers: it runs the text that is the first line of stdin."""


def fork_workers(specs: Sequence[Any], paths: Sequence[str]) -> subprocess.Popen[str] | None:
    """Start a template of the tests in `paths`, and let xdist fork the workers of `specs` from it.

    Workers on a machine with a GPU start as usual: a forked process cannot use CUDA if its parent
    has used it.

    Returns:
        The template, which ends when its stdin is closed.

    Raises:
        pytest.UsageError: an import of the tests makes something that workers would share.
    """
    if shutil.which("nvidia-smi") is not None:
        return None
    name = f"tuneline-tests-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0{name}")
        listener.listen()
        template = subprocess.Popen(
            [sys.executable, __file__, str(listener.fileno()), *paths],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            pass_fds=[listener.fileno()],
        )  # fmt: skip
    assert template.stdout is not None
    if (answer := template.stdout.read()) != READY:
        raise pytest.UsageError(answer or "the process that imports the tests has ended")
    for spec in specs:
        if spec.popen and not spec.python:
            spec.python = shlex.join(_client(name))
    return template


def _client(name: str) -> list[str]:
    return [sys.executable, "-I", "-S", str(Path(__file__).with_name("forked_worker.py")), name]


def start_python(program: str, **options: Any) -> subprocess.Popen[str]:
    """Start a program in a fork of the template, or in a new process if there is no template.

    Use it for a program that imports torch and transformers. The process that is returned ends with
    the program and has its exit status; a signal to it does not reach the program. The program
    reads what is written to `stdin` next.
    """
    name = os.environ.get(NAME)
    command = [sys.executable, "-c", BOOTSTRAP] if name is None else _client(name)
    process = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, **options)
    setting = (
        f"import os, sys; os.chdir({str(ROOT)!r}); sys.path.insert(0, {str(ROOT)!r}); "
        f"os.environ.clear(); os.environ.update({dict(os.environ)!r})\n"
    )
    assert process.stdin is not None
    process.stdin.write(repr(setting + program) + "\n")
    process.stdin.flush()
    return process


@contextlib.contextmanager
def shared_state() -> Iterator[list[str]]:
    """Fill a list with what the block leaves behind and forked processes would share.

    A thread is in the list too: it is in the process only and not in its forks.
    """
    found: list[str] = []
    files, threads = _open_files(), set(threading.enumerate())
    with _temporary_paths() as paths:
        yield found
    found += [f"the temporary path {path}" for path in paths if Path(path).exists()]
    found += [f"the open file {name}" for name in sorted(_open_files() - files)]
    found += [f"the thread {one.name}" for one in set(threading.enumerate()) - threads]


@contextlib.contextmanager
def _temporary_paths() -> Iterator[list[str]]:
    """Fill a list with the paths that `tempfile` makes in the block."""
    made: list[str] = []

    def recorded(make: Callable[..., Any]) -> Callable[..., Any]:
        def recording(*args: Any, **options: Any) -> Any:
            result = make(*args, **options)
            made.append(result if isinstance(result, str) else result[1])
            return result

        return recording

    with pytest.MonkeyPatch.context() as patch:
        for name in ("mkdtemp", "_mkstemp_inner"):
            patch.setattr(tempfile, name, recorded(getattr(tempfile, name)))
        yield made


def _open_files() -> set[str]:
    """Return the targets of this process's descriptors. The one that lists them is gone by then."""
    found = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found.add(str(descriptor.readlink()))
    return found


def _serve(listener: socket.socket, paths: list[str]) -> None:
    """Import the tests, say whether they can be shared, and then fork a worker for each connection
    until stdin ends."""
    with os.fdopen(os.dup(1), "w") as answer:
        os.dup2(2, 1)
        with (
            shared_state() as shared,
            Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere),
        ):  # fmt: skip
            pytest.main(
                ["--collect-only", "-qq", "-p", "no:cacheprovider", "-p", "no:xdist", *paths]
            )
        if shared:
            answer.write("the import of the tests makes what their workers would share: ")
            answer.write("; ".join(shared) + ". Try: make it in a fixture")
        else:
            answer.write(READY)
    if shared:
        os._exit(1)
    gc.freeze()
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in ready:
            os._exit(0)  # without the reports of libraries about objects that the tests still hold
        connection, _ = listener.accept()
        _, descriptors, _, _ = socket.recv_fds(connection, 1, 3)
        if os.fork() == 0:
            os.environ[NAME] = listener.getsockname()[1:].decode()
            listener.close()
            _become_worker(descriptors, connection)
        for one in descriptors:
            os.close(one)
        connection.close()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(-1, os.WNOHANG)


def _become_worker(descriptors: list[int], connection: socket.socket) -> None:
    """Do what `python -c BOOTSTRAP` does, on these pipes, and send the exit status at its end."""
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
    status = 0
    try:
        exec(BOOTSTRAP, vars(main))  # noqa: S102
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:  # noqa: BLE001 (as the interpreter does)
        traceback.print_exc()
        status = 1
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    connection.send(bytes([status]))
    os._exit(status)  # without the reports, as above


if __name__ == "__main__":
    del sys.path[0]  # this folder, whose modules have common names
    _serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:])
