"""The end of a response is found wherever the bytes are cut."""

import pytest

from loadtest.client.http1 import Framer, ProtocolError, size_line

CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX: y\r\n\r\n"
    b"5\r\nhello\r\n1;ext=1\r\n0\r\n7\r\n\r\n0\r\n\r\n\r\n0\r\nTrailer: 1\r\n\r\n"
)
LENGTH = b"HTTP/1.1 404 Not Found\r\nContent-Length: 5\r\n\r\nhello"
EMPTY = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n" + LENGTH


@pytest.mark.parametrize(
    ("response", "status", "body"),
    [
        (CHUNKED, 200, b"hello0\r\n0\r\n\r\n"),
        (LENGTH, 404, b"hello"),
        (EMPTY, 200, b""),
        (INTERIM, 404, b"hello"),
    ],
)
def test_every_cut_finds_the_same_end(response: bytes, status: int, body: bytes) -> None:
    num_cuts = 0
    for first in range(len(response) + 1):
        for second in range(first, min(first + 9, len(response)) + 1):
            framer, sink = Framer(), list[bytes]()
            pieces = [p for p in (response[:first], response[first:second], response[second:]) if p]
            for piece in pieces[:-1]:
                assert not framer.feed(piece, sink)
            assert framer.feed(pieces[-1], sink)
            assert (framer.status, b"".join(sink)) == (status, body)
            assert not framer.surplus
            num_cuts += 1
    assert num_cuts > 100


def test_a_body_without_length_ends_with_the_connection() -> None:
    framer, sink = Framer(), list[bytes]()
    assert not framer.feed(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nabc", sink)
    assert not framer.feed(b"def", sink)
    assert framer.close()
    assert b"".join(sink) == b"abcdef"
    assert not framer.keep_alive


def test_a_chunked_body_that_is_cut_is_not_whole() -> None:
    framer = Framer()
    framer.feed(CHUNKED[:-2])
    assert not framer.close()


@pytest.mark.parametrize("status", [204, 304])
def test_a_status_without_a_body_ends_with_its_head(status: int) -> None:
    framer = Framer()
    assert framer.feed(b"HTTP/1.1 %d X\r\nDate: now\r\n\r\n" % status)
    assert framer.status == status
    assert framer.keep_alive and not framer.surplus


def test_a_response_has_begun_with_its_first_byte() -> None:
    framer = Framer()
    assert not framer.begun
    framer.feed(INTERIM[:5])
    assert framer.begun
    framer.feed(INTERIM[5:25])
    assert not framer.begun  # the interim response is over
    framer.feed(LENGTH[:-5])
    assert framer.begun


def test_between_chunks_is_where_the_next_size_comes() -> None:
    framer = Framer()
    found = []
    for place in range(len(CHUNKED)):
        framer.feed(CHUNKED[place : place + 1])
        if framer.between_chunks:
            found.append(place + 1)
    head = CHUNKED.index(b"5\r\n")
    # After the head, and after each of the three chunks.
    assert found == [head, head + 10, head + 10 + 12, head + 10 + 12 + 12]


@pytest.mark.parametrize("size", [1, 9, 15, 16, 255, 256, 4095, 4096, 65535, 65536])
def test_a_chunk_is_told_by_its_size_line(size: int) -> None:
    line = b"%x\r\n" % size
    assert size_line(len(line) + size + 2) == line


# An empty chunk takes 5 bytes, and 0xf bytes 20. A chunk of 0x10 bytes takes 22.
@pytest.mark.parametrize("num_bytes", [0, 1, 5, 21])
def test_a_read_of_another_length_matches_no_size_line(num_bytes: int) -> None:
    assert len(size_line(num_bytes)) > num_bytes


def test_bytes_after_the_end_are_noticed() -> None:
    framer = Framer()
    assert framer.feed(CHUNKED + b"x")
    assert framer.surplus


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nbroken header\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n-5\r\nhello",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nabc",
        b"HTTP/1.1 200 " + b"x" * 70000,
    ],
)
def test_bytes_that_are_not_a_response_are_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        Framer().feed(data)
