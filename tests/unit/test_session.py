"""Authorization: wrong tokens are limited, and a closed session is refused."""

import hmac
from typing import Any

import pytest
from starlette.requests import Request

from otp_stream.web import session
from otp_stream.web.session import COOKIE, Sessions, is_program

TOKEN = "f1d5a8c0327b46e9"


def request(client: str = "192.0.2.1", scheme: str = "http", **headers: str) -> Request:
    scope: dict[str, Any] = {
        "type": "http",
        "scheme": scheme,
        "client": (client, 50_000),
        "path": "/replay",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }
    return Request(scope)


async def test_wrong_bearer_tokens_are_limited_and_logged(capsys: pytest.CaptureFixture[str]) -> None:
    sessions = Sessions(TOKEN)
    for number in range(10):
        assert not sessions.is_blocked(request())
        assert not await sessions.is_authorized(request(authorization=f"Bearer guess-{number}"))
    assert sessions.is_blocked(request())
    assert not await sessions.is_authorized(request(authorization=f"Bearer {TOKEN}"))  # or it could keep guessing
    assert await sessions.is_authorized(request("192.0.2.2", authorization=f"Bearer {TOKEN}"))
    logged = capsys.readouterr().out
    assert logged.count("wrong HTTP_TOKEN") == 10
    assert "192.0.2.1" in logged
    assert "guess-" not in logged


async def test_basic_authorization_of_a_proxy_counts_neither_as_a_wrong_token_nor_as_a_program(
    capsys: pytest.CaptureFixture[str],
) -> None:
    sessions = Sessions(TOKEN)
    for _ in range(20):
        assert not await sessions.is_authorized(request(authorization="Basic dXNlcjpwYXNz"))
    assert not sessions.is_blocked(request())
    cookie = str(await sessions.open(TOKEN, request())).partition(";")[0]
    behind = request(cookie=cookie, authorization="Basic dXNlcjpwYXNz")
    assert await sessions.is_authorized(behind)
    assert not is_program(behind)
    assert is_program(request(authorization="bearer guess"))
    assert "wrong HTTP_TOKEN" not in capsys.readouterr().out


async def test_a_client_may_try_again_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_FAILED_LOGIN_DELAY_S", 0)
    sessions = Sessions(TOKEN)
    for _ in range(10):
        assert await sessions.open("guess", request()) is None
    assert sessions.is_blocked(request())
    monkeypatch.setattr(session, "_FAILURE_WINDOW_S", 0)
    assert await sessions.is_authorized(request(authorization=f"Bearer {TOKEN}"))


async def test_the_memory_for_many_clients_is_bounded() -> None:
    sessions = Sessions(TOKEN)
    for number in range(1_200):
        await sessions.is_authorized(request(f"client{number}", authorization="Bearer guess"))
    assert len(sessions._failures) == 1_000  # pyright: ignore[reportPrivateUsage]


async def test_the_cookie_of_a_closed_session_is_refused_and_others_are_not() -> None:
    sessions = Sessions(TOKEN)
    cookies = [str(await sessions.open(TOKEN, request())).partition(";")[0] for _ in range(2)]
    first, second = (request(cookie=cookie) for cookie in cookies)
    assert all(cookie.startswith(f"{COOKIE}=") for cookie in cookies)
    assert await sessions.is_authorized(first)
    assert await sessions.is_authorized(second)
    await sessions.close(first)
    assert not await sessions.is_authorized(first)
    assert await sessions.is_authorized(second)
    assert await Sessions(TOKEN).is_authorized(second)  # another worker


async def test_a_forged_cookie_is_refused() -> None:
    for cookie in ("", ".", "9999999999.0", "x-y.z", f"{'9' * 5000}.a"):
        assert not await Sessions(TOKEN).is_authorized(request(cookie=f"{COOKIE}={cookie}"))


class Redis:
    """Flags that all workers share."""

    def __init__(self) -> None:
        self.flags: dict[str, int] = {}
        self.unreachable = False

    async def set_flag(self, name: str, ttl_ms: int) -> bool:
        if not self.unreachable:
            self.flags[name] = ttl_ms
        return not self.unreachable

    async def has_flag(self, name: str) -> bool:
        return not self.unreachable and name in self.flags


async def test_a_logout_applies_to_every_worker_that_shares_the_redis(capsys: pytest.CaptureFixture[str]) -> None:
    redis = Redis()
    one, other = Sessions(TOKEN, redis), Sessions(TOKEN, redis)
    cookies = [str(await one.open(TOKEN, request())).partition(";")[0] for _ in range(2)]
    first, second = (request(cookie=cookie) for cookie in cookies)
    assert await other.is_authorized(first)
    await one.close(first)
    assert not await other.is_authorized(first)
    assert await other.is_authorized(second)
    [(flag, ttl_ms)] = redis.flags.items()
    assert cookies[0].partition("=")[2] not in flag
    assert 0 < ttl_ms <= 8 * 3600 * 1000
    redis.unreachable = True
    assert not await other.is_authorized(first)  # it remembers the logout
    assert "logout is known to this process only" not in capsys.readouterr().out


async def test_a_logout_that_cannot_be_shared_is_logged(capsys: pytest.CaptureFixture[str]) -> None:
    redis = Redis()
    redis.unreachable = True
    for flags in (redis, None):
        sessions = Sessions(TOKEN, flags)
        cookie = str(await sessions.open(TOKEN, request())).partition(";")[0]
        await sessions.close(request(cookie=cookie))
        assert not await sessions.is_authorized(request(cookie=cookie))
        assert "logout is known to this process only" in capsys.readouterr().out


async def test_closing_an_invalid_session_sets_no_flag() -> None:
    redis = Redis()
    await Sessions(TOKEN, redis).close(request(cookie=f"{COOKIE}=9999999999.0-forged"))
    no_token = Sessions(None, redis)
    signed_with_nothing = hmac.new(b"", b"session:9999999999.0", "sha256").hexdigest()
    await no_token.close(request(cookie=f"{COOKIE}=9999999999.0-{signed_with_nothing}"))
    assert redis.flags == {}
    assert not no_token.is_own_form(request(), hmac.new(b"", b"form:", "sha256").hexdigest())
