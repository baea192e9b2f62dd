"""Replies of a server that is not Redis, or that another program has written to."""

import pytest

from otp_stream.tables.reply_reader import ReplyReader


def read(*pieces: bytes) -> tuple[list[bytes], list[str]]:
    replies: list[bytes] = []
    failures: list[str] = []
    reader = ReplyReader(replies.append, failures.append)
    for piece in pieces:
        reader.data_received(piece)
    return replies, failures


def test_replies_are_read_in_any_pieces() -> None:
    stream = b"$3\r\na\r\n\r\n$0\r\n\r\n$5\r\n1 2 3\r\n"
    for cut in range(len(stream)):
        assert read(stream[:cut], stream[cut:]) == ([b"a\r\n", b"", b"1 2 3"], [])


@pytest.mark.parametrize(
    "size",
    ["-7", "-1", "-08", "", "abc", "+3", " 3", "1_0", "0x3", "1e3", "\u0663", "5000000", "99999999", "9" * 5_000],
)
def test_a_reply_of_an_impossible_size_ends_the_connection(size: str) -> None:
    replies, failures = read(f"${size}\r\nabc\r\n".encode())
    assert not replies
    assert len(failures) == 1
    assert len(failures[0]) < 100


def test_a_reply_without_an_end_ends_the_connection() -> None:
    assert read(b"$" + b"1" * 100_000) == ([], ["a reply without an end of line; is it Redis?"])
