"""The access token of a relay: fetched once for all, renewed before it ends, kept while it cannot be renewed."""

import asyncio
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from otp_stream.relay import OAuthConfig, oauth, token_sources
from otp_stream.relay.access_token import Token, TokenError
from otp_stream.relay.oauth import AccessTokens, access_tokens
from otp_stream.tasks import in_thread


@asynccontextmanager
async def tokens_from(fetch: Callable[[], Token]) -> AsyncIterator[AccessTokens]:
    tokens = AccessTokens(lambda: in_thread(fetch, "test"))
    try:
        yield tokens
    finally:
        await tokens.close()


def numbered(life_s: float) -> Iterator[Token]:
    number = 0
    while True:
        number += 1
        yield Token(f"token-{number}", life_s)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():  # noqa: ASYNC110 - what it waits for sets no event
            await asyncio.sleep(0.01)


async def test_all_connections_that_wait_get_the_token_of_one_request() -> None:
    release, calls = threading.Event(), 0

    def fetch() -> Token:
        nonlocal calls
        calls += 1
        release.wait(10)
        return Token("token", 60)

    async with tokens_from(fetch) as tokens:
        waiting = [asyncio.create_task(tokens.get()) for _ in range(5)]
        await asyncio.sleep(0)
        waiting[0].cancel()  # a cancelled one ends the request of no other
        release.set()
        assert await asyncio.gather(*waiting[1:]) == ["token"] * 4
        assert await tokens.get() == "token"
        assert calls == 1


async def test_it_is_renewed_before_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    source = numbered(1.5)
    async with tokens_from(lambda: next(source)) as tokens:
        assert await tokens.get() == "token-1"
        loop = asyncio.get_running_loop()
        ends = loop.time() + 1.5
        while await tokens.get() == "token-1":
            assert tokens.valid_s
            await asyncio.sleep(0.01)
        assert loop.time() < ends


async def test_it_is_renewed_while_no_one_asks_until_it_is_closed() -> None:
    asked = 0

    def fetch() -> Token:
        nonlocal asked
        asked += 1
        return Token("token", 1.1)

    async with tokens_from(fetch) as tokens:
        await tokens.get()
        await until(lambda: asked == 2)
    await asyncio.sleep(1.2)
    assert asked == 2


async def test_while_it_cannot_be_renewed_the_old_one_is_used_until_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oauth, "_PAUSES_S", (0.1,))
    answers = [Token("token-1", 1.6), TokenError("unreachable", "no access token: away")]

    def fetch() -> Token:
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, TokenError):
            raise answer
        return answer

    with capture_logs() as logs:
        async with tokens_from(fetch) as tokens:
            await tokens.get()
            await until(lambda: bool(logs))
            assert await tokens.get() == "token-1"
            await until(lambda: not tokens.valid_s)
            with pytest.raises(TokenError, match="away"):
                await tokens.get()
            answers[:] = [Token("token-2", 60)]
            assert tokens.failures
            assert await tokens.get() == "token-2"
            assert not tokens.failures
    (line,) = logs
    assert (line["event"], line["log_level"]) == ("the access token was not renewed", "warning")
    assert line["error"] == "no access token: away"


async def test_a_refused_token_is_replaced_once_and_only_if_it_is_not_new(monkeypatch: pytest.MonkeyPatch) -> None:
    source = numbered(3600)
    async with tokens_from(lambda: next(source)) as tokens:
        first = await tokens.get()
        assert not await tokens.replace(first)  # a new one is refused: another would be, too
        monkeypatch.setattr(oauth, "_REFUSED_S", 0)
        assert await asyncio.gather(*(tokens.replace(first) for _ in range(5))) == [True] * 5
        assert await tokens.get() == "token-2"


async def test_one_that_cannot_be_replaced_stays_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oauth, "_REFUSED_S", 0)
    answers = iter([Token("token-1", 60)])

    def fetch() -> Token:
        for answer in answers:
            return answer
        raise TokenError("unreachable", "away")

    async with tokens_from(fetch) as tokens:
        assert not await tokens.replace(await tokens.get())


@pytest.mark.parametrize(
    ("content", "token", "life_s"),
    [
        ("ya29.a0\n", "ya29.a0", 300),
        ('{"access_token": "ya29.a0", "expires_in": 3599}', "ya29.a0", 3599),
        ('{"access_token": "ya29.a0", "expires_in": "3599"}', "ya29.a0", 3599),
        ('{"access_token": "ya29.a0", "expires_in": null}', "ya29.a0", 300),
        ('{"access_token": "ya29.a0", "expires_in": -1}', "ya29.a0", 300),
        ('{"access_token": "ya29.a0", "expires_in": "NaN"}', "ya29.a0", 300),
    ],
)
async def test_a_token_is_read_from_a_file(tmp_path: Path, content: str, token: str, life_s: float) -> None:
    (tmp_path / "token").write_text(content)
    tokens = access_tokens(OAuthConfig("otp@example.com", token_file=tmp_path / "token"))
    assert await tokens.get() == token
    assert life_s - 5 < tokens.valid_s <= life_s
    await tokens.close()


@pytest.mark.parametrize(
    "content", ["", " \n", "two words", "tök", "{", '{"access_token": ""}', '{"error": "x"}', "[]x y"]
)
async def test_a_file_without_a_token_is_named_and_not_quoted(tmp_path: Path, content: str) -> None:
    (tmp_path / "token").write_text(content)
    tokens = access_tokens(OAuthConfig("otp@example.com", token_file=tmp_path / "token"))
    with pytest.raises(TokenError, match="SMTP_OAUTH_TOKEN_FILE holds no") as raised:
        await tokens.get()
    assert "two words" not in str(raised.value)


async def test_a_missing_file_is_named(tmp_path: Path) -> None:
    tokens = access_tokens(OAuthConfig("otp@example.com", token_file=tmp_path / "none"))
    with pytest.raises(TokenError, match=r"SMTP_OAUTH_TOKEN_FILE cannot be read \(No such file or directory\)"):
        await tokens.get()


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("print('ya29.a0')", None),
        ("""print('{"access_token": "ya29.a0", "expires_in": 60}')""", None),
        ("import sys; sys.exit('secret')", "exits with 1; run it by hand"),
        ("print('secret secret')", "holds no token"),
        ("import sys; sys.stdout.buffer.write(b'\\xff')", "holds no token"),
    ],
)
async def test_a_command_prints_a_token(code: str, text: str | None) -> None:
    tokens = access_tokens(OAuthConfig("otp@example.com", token_command=(sys.executable, "-S", "-c", code)))
    if text is None:
        assert await tokens.get() == "ya29.a0"
    else:
        with pytest.raises(TokenError, match=text) as raised:
            await tokens.get()
        assert "secret" not in str(raised.value)
    await tokens.close()


async def test_a_command_that_does_not_exist_or_end_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TokenError, match=r"SMTP_OAUTH_TOKEN_COMMAND \(nowhere\) cannot be read"):
        await access_tokens(OAuthConfig("otp@example.com", token_command=("/nowhere", "secret"))).get()
    monkeypatch.setattr(token_sources, "_COMMAND_S", 0.1)
    with pytest.raises(TokenError, match="does not end within"):
        await access_tokens(OAuthConfig("otp@example.com", token_command=("sleep", "20"))).get()
