"""Why a connection did not come about, as a class of failure. Pure."""

from __future__ import annotations

import errno

OUT_OF_SOCKETS = (
    errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.ENOBUFS, errno.ENOMEM, errno.ENOSPC,
)  # fmt: skip
"""The client's own machine has no file, port or memory left for a connection."""


def failure_of(error: OSError) -> tuple[str, str]:
    """Return the class of failure and its message."""
    if isinstance(error, TimeoutError):
        return "connect_timeout", "no connection in time"
    if isinstance(error, ConnectionRefusedError):
        return "connection_refused", str(error)
    if isinstance(error, ConnectionResetError):
        return "connection_reset", str(error)
    is_ours = error.errno in OUT_OF_SOCKETS
    return "client_exhausted" if is_ours else "connection_failed", str(error)
