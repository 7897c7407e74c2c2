"""The server's port: held from before vLLM starts until after it has ended."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from tuneline.core.errors import ServerError


@contextmanager
def reserved_port(host: str, port: int | None) -> Iterator[int]:
    """Hold a port, or a free one for None, until the block ends.

    Linux lets a second socket bind and listen if the first only binds and both set SO_REUSEADDR,
    as vLLM does. Nobody is given the port in between, and a restart finds it again.

    Raises:
        ServerError: The port is taken or forbidden, or `host` is not an address of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            holder.bind((host, port or 0))
        except (OSError, OverflowError) as error:
            raise _bind_error(host, port, error) from None
        taken = holder.getsockname()[1]
        with _claimed(host, taken):
            yield taken


@contextmanager
def _claimed(host: str, port: int) -> Iterator[None]:
    """Keep a second supervisor off the port.

    Two supervisors can both bind a port that neither listens on, because both set SO_REUSEADDR. A
    name in Linux's abstract namespace has one owner, and the kernel frees it with its process.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as claim:
        try:
            claim.bind(f"\0tuneline-port-{port}")
        except OSError as error:
            raise _bind_error(host, port, error) from None
        yield


def _bind_error(host: str, port: int | None, error: Exception) -> ServerError:
    code = getattr(error, "errno", None)
    if code == errno.EADDRINUSE:
        return ServerError(
            f"port {port} on {host} is taken by another process",
            hint="Leave serving.port out for a free one, or choose another: --set serving.port="
            f"{(port or 8000) + 1}   (who holds it: ss -ltnp 'sport = :{port}')",
        )
    if code == errno.EACCES:
        return ServerError(
            f"port {port} on {host} may not be used by this user",
            hint="Choose one above 1023: --set serving.port=8000",
        )
    return ServerError(
        f"serving.host {host!r}: cannot listen there ({error})",
        hint="Give an address of this machine: 127.0.0.1, or 0.0.0.0 for all of them.",
    )


def reachable(host: str) -> str:
    """Return the address by which this machine reaches a server that listens on `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
