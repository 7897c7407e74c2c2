"""TLS over bytes that the caller carries, so that the kernel's time of each read is not lost."""

from __future__ import annotations

import ssl


class TlsStream:
    """One end of a TLS connection, without a socket.

    Args:
        context: Of the client or of the server.
        server_hostname: What the client holds the certificate against; None for a server.
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
        """What the bytes that have come hold, and whether nothing more can come: the peer has ended
        the stream, or what follows is broken.

        Raises:
            ssl.SSLError: They are no TLS, or were changed on their way, from the first on.
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
