from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otp_stream.relay.parser import MAX_LINE, GarbageError, ReplyParser

STREAM = (
    b"220 relay.example ESMTP\r\n"
    b"250-relay.example\r\n250-PIPELINING\r\n250 SMTPUTF8\r\n"
    b"354\r\n"
    b"451 4.3.0 gr\xc3\xbcn\r\n"
    b"550-5.1.1 no\r\n550 5.1.1 such user\r\n"
)
ANSWERS = [
    (220, "relay.example ESMTP"),
    (250, "relay.example\nPIPELINING\nSMTPUTF8"),
    (354, ""),
    (451, "4.3.0 grün"),
    (550, "5.1.1 no\n5.1.1 such user"),
]


def read(*pieces: bytes) -> list[tuple[int, str]]:
    parser = ReplyParser()
    answers = [answer for piece in pieces for answer in parser.feed(piece)]
    assert not parser.pending
    return answers


def test_replies_cut_at_every_byte_are_the_same():
    for at in range(len(STREAM)):
        assert read(STREAM[:at], STREAM[at:]) == ANSWERS


@given(st.lists(st.integers(0, len(STREAM)), max_size=20))
def test_replies_in_any_pieces_are_the_same(cuts: list[int]):
    edges = [0, *sorted(cuts), len(STREAM)]
    assert read(*(STREAM[start:end] for start, end in pairwise(edges))) == ANSWERS


def test_bare_line_feeds_are_accepted():
    assert read(b"250-a\n250 b\n") == [(250, "a\nb")]


def test_half_a_reply_is_pending():
    for half in (b"25", b"250-more\r\n"):
        parser = ReplyParser()
        assert parser.feed(half) == []
        assert parser.pending


@pytest.mark.parametrize(
    "garbage",
    [
        b"hello\r\n",
        b"25\n",
        b"25 ok\r\n",
        b"250ok\r\n",
        b"250_ok\r\n",
        b"150 no\r\n",
        b"999 no\r\n",
        b"\r\n",
        b"250-a\r\n251 b\r\n",
        b"HTTP/1.1 400 Bad Request\r\n",
        b"\x15\x03\x01\x00\x02\x02\x46\n",
        b"250 " + b"x" * MAX_LINE + b"\r\n",
        b"2" * (MAX_LINE + 1),
        b"250-" + b"x" * 4000 + b"\r\n" + (b"250-" + b"x" * 4000 + b"\r\n") * 20,
        b"250-\r\n" * 1_001,
    ],
)
def test_bytes_that_are_no_reply_are_refused(garbage: bytes):
    with pytest.raises(GarbageError):
        ReplyParser().feed(garbage)


@given(st.binary(max_size=300))
def test_any_bytes_are_parsed_or_refused(data: bytes):
    try:
        answers = ReplyParser().feed(data)
    except GarbageError:
        return
    assert all(200 <= code < 600 for code, _ in answers)
