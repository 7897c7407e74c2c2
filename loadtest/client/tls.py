"""TLS over bytes that the caller carries, so that the kernel's time of each read is not lost."""

from __future__ import annotations

import ssl


class TlsStream:
    """One end of a TLS connection, without a socket.

    Args:
        context: The client's or the server's context.
        server_hostname: The name that the certificate must have; None for a server.
    """

    def __init__(self, context: ssl.SSLContext, server_hostname: str | None = None) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._object = context.wrap_bio(
            self._incoming,
            self._outgoing,
            server_side=server_hostname is None,
            server_hostname=server_hostname,
        )

    def shake_hands(self, data: bytes = b"") -> tuple[bool, bytes]:
        """Take bytes of the handshake that have come.

        Returns:
            Whether it is done, and the bytes to send.

        Raises:
            ssl.SSLError: It fails; the certificate is not trusted, for example.
        """
        self._incoming.write(data)
        try:
            self._object.do_handshake()
        except ssl.SSLWantReadError:
            return False, self._outgoing.read()
        return True, self._outgoing.read()

    def encrypt(self, data: bytes) -> bytes:
        rest = memoryview(data)
        while rest:
            rest = rest[self._object.write(rest) :]
        return self._outgoing.read()

    def decrypt(self, data: bytes) -> tuple[bytes, bool]:
        """Return the decrypted bytes, and whether the stream has ended: by the peer, or because the
        rest is broken.

        Raises:
            ssl.SSLError: The first bytes are not TLS, or were changed on their way.
        """
        self._incoming.write(data)
        pieces = []
        try:
            while piece := self._object.read(65536):
                pieces.append(piece)
        except ssl.SSLWantReadError:
            return b"".join(pieces), False
        except ssl.SSLZeroReturnError:
            pass
        except ssl.SSLError:
            if not pieces:
                raise
        return b"".join(pieces), True
