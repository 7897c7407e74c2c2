"""TLS without a socket."""

import ssl
from pathlib import Path

import pytest

from loadtest.calibration.certificate import write_certificate
from loadtest.calibration.start import known_server
from loadtest.client.tls import TlsStream


@pytest.fixture
def ends(tmp_path: Path) -> tuple[TlsStream, TlsStream]:
    """A client and a server that have shaken hands."""
    certificate, key = write_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    client = TlsStream(ssl.create_default_context(cafile=str(certificate)), "127.0.0.1")
    server = TlsStream(context)
    done, data = client.shake_hands()
    while not done:
        _, data = server.shake_hands(data)
        done, data = client.shake_hands(data)
    done, tickets = server.shake_hands(data)
    assert done
    assert client.decrypt(tickets) == (b"", False)
    return client, server


def test_bytes_that_were_changed_on_their_way_are_an_error(
    ends: tuple[TlsStream, TlsStream],
) -> None:
    client, server = ends
    assert client.decrypt(server.encrypt(b"whole")) == (b"whole", False)
    broken = bytearray(server.encrypt(b"changed"))
    broken[-1] ^= 1
    with pytest.raises(ssl.SSLError):
        client.decrypt(bytes(broken))


def test_a_good_record_before_a_broken_one_is_delivered(ends: tuple[TlsStream, TlsStream]) -> None:
    client, server = ends
    good, broken = server.encrypt(b"good"), bytearray(server.encrypt(b"bad"))
    broken[-1] ^= 1
    assert client.decrypt(good + broken) == (b"good", True)


def test_a_record_may_come_in_parts(ends: tuple[TlsStream, TlsStream]) -> None:
    client, server = ends
    data = server.encrypt(b"x" * 40_000)  # more than one record holds
    found = [client.decrypt(data[begin : begin + 999])[0] for begin in range(0, len(data), 999)]
    assert b"".join(found) == b"x" * 40_000


def test_the_private_key_is_gone_when_the_server_is_up() -> None:
    with known_server(tls=True) as server:
        assert server.ca_file is not None
        assert [path.name for path in Path(server.ca_file).parent.iterdir()] == ["certificate.pem"]
