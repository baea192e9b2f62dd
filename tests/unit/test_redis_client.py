"""What a server in place of Redis cannot do to a command."""

import pytest
from http_answers import server

from otp_stream.tables import inspect, redis_client
from otp_stream.tables.redis_client import connected
from otp_stream.tables.redis_pipeline import RedisUnavailableError


def url(http: str) -> str:
    return http.replace("http://", "redis://")


@pytest.mark.parametrize(
    ("head", "piece"),
    [(b"$2000000000\r\n", b"x" * 65_536), (b"*2000000\r\n", b"$9\r\n123456789\r\n" * 4_096), (b"+", b"x" * 65_536)],
    ids=["text", "list", "line"],
)
def test_a_reply_without_end_is_not_read(head: bytes, piece: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_client, "_MAX_REPLY", 1_000_000)
    with (
        server(head, piece) as (http, _),
        pytest.raises(RedisUnavailableError, match="a reply without end"),
        connected(url(http)) as client,
    ):
        client.execute("TIME")


def test_a_reply_that_comes_slowly_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_client, "_REPLY_S", 0.1)
    with (
        server(b"$1000\r\n", b"x", 0.01) as (http, _),
        pytest.raises(RedisUnavailableError, match="a reply without end"),
        connected(url(http)) as client,
    ):
        client.execute("TIME")


@pytest.mark.parametrize(
    "reply", [b":1\r\n", b"*0\r\n", b"$-1\r\n", b"*2\r\n$1\r\nx\r\n$1\r\ny\r\n", b"*4000000000\r\n:1\r\n"]
)
def test_a_reply_that_redis_does_not_send_ends_the_command(reply: bytes) -> None:
    with (
        server(reply, reply, 0.05) as (http, _),
        pytest.raises(RedisUnavailableError),
        connected(url(http)) as client,
    ):
        inspect.read_tables(client, "{otp}:")
