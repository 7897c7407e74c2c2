"""`tuneline` as it is typed, in this process."""

import contextlib
import io
import signal
import subprocess
import sys

from tuneline import cli


def tuneline_here(*args: str) -> subprocess.CompletedProcess[str]:
    """Run the command line where torch and transformers are imported already.

    Use it to test what a command answers, prints and exits with. A test of signals, imports or time
    needs a process of its own.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    argv, sys.argv = sys.argv, ["tuneline", *args]
    stdout, stderr = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            cli.main()
    except SystemExit as ended:
        code = ended.code
    finally:
        sys.argv = argv
        for number, handler in before.items():
            signal.signal(number, handler)
    assert isinstance(code, int)
    return subprocess.CompletedProcess(sys.argv, code, stdout.getvalue(), stderr.getvalue())
