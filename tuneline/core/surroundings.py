"""Errors of the machine around a command: a full disk, a folder that takes no file, a low limit.

A step that knows its path raises its own error. The command line asks here about an `OSError` that
no step expected, such as one of a library's temporary file, so that it does not end as a bug.
"""

from __future__ import annotations

import errno
import os
import resource
import tempfile

from tuneline.core.errors import ArtifactError, DiskFullError, MissingError, TunelineError

NO_TEMPORARY = "No usable temporary directory"
"""Words of Python's `tempfile`."""


def explain_os_error(error: OSError) -> TunelineError | None:
    """Return an error that names the cause and the next step; None for an error of another kind,
    which is a bug."""
    place = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        folder = tempfile.gettempdir()
        return DiskFullError(
            f"{place}the disk is full",
            hint=f"Free some space where the result goes, and in {folder} (TMPDIR); then run the "
            "same command again.",
        )
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM) and place:
        return ArtifactError(
            f"{place}{error.strerror}",
            hint="Check the permissions of the file and of its folder, or choose another folder.",
        )
    if error.errno in (errno.EMFILE, errno.ENFILE):
        most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return MissingError(
            f"{place}too many open files; this process may open {most}", hint="Try: ulimit -n 4096"
        )
    if error.errno == errno.ENOMEM:
        return MissingError(
            f"{place}the memory is full", hint="End other processes; then try again."
        )
    if NO_TEMPORARY in str(error):
        return MissingError(
            "no folder for temporary files can be written", hint="Try: export TMPDIR=$HOME/tmp"
        )
    return None
