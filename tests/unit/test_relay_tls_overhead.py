import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from otp_stream.relay.tls_overhead import TlsOverhead

HANDSHAKE, FREE = b"h" * 5_000, b"t" * 32_768


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    with ExitStack() as stack:
        listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        ours = stack.enter_context(socket.create_connection(listening.getsockname()))
        theirs = stack.enter_context(listening.accept()[0])
        yield ours, theirs


def exchange(pair: tuple[socket.socket, socket.socket], data: bytes) -> None:
    ours, theirs = pair
    theirs.sendall(data)
    while data:
        data = data[len(ours.recv(len(data))) :]


def test_bytes_after_the_handshake_that_are_no_reply_are_limited(pair: tuple[socket.socket, socket.socket]) -> None:
    exchange(pair, HANDSHAKE)
    overhead = TlsOverhead(pair[0])
    exchange(pair, FREE)
    assert not overhead.is_excessive(1)
    exchange(pair, b"t")
    assert overhead.is_excessive(2)


def test_each_reply_may_have_the_overhead_of_its_records(pair: tuple[socket.socket, socket.socket]) -> None:
    overhead = TlsOverhead(pair[0])
    for now in range(1000):  # as many as a connection takes mails
        exchange(pair, b"x" * 85)
        overhead.replied(8, 1)
        assert not overhead.is_excessive(now)


def test_it_is_checked_a_few_times_a_second(pair: tuple[socket.socket, socket.socket]) -> None:
    overhead = TlsOverhead(pair[0])
    assert not overhead.is_excessive(1)
    exchange(pair, FREE + b"t")
    assert not overhead.is_excessive(1.2)
    assert overhead.is_excessive(1.3)


def test_a_connection_that_is_closed_has_no_overhead(pair: tuple[socket.socket, socket.socket]) -> None:
    overhead = TlsOverhead(pair[0])
    exchange(pair, FREE + b"t")
    pair[0].close()
    assert not overhead.is_excessive(1)


def test_other_systems_than_linux_do_not_count_the_bytes(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    overhead = TlsOverhead(pair[0])
    exchange(pair, FREE + b"t")
    assert not overhead.is_excessive(1)
