"""Token servers that behave badly, and the environment of the requests to them."""

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from oauth_relay import USER, grants, outcome_of, relay_of
from rabbitmq import until
from token_server import CLIENT, REFRESH_TOKEN, SCOPE, TokenServer

from otp_stream.core.outcome import Accepted, Unavailable
from otp_stream.relay import OAuthConfig, RelayConfig, token_server
from otp_stream.relay.access_token import TokenError
from otp_stream.relay.handshake import Handshake
from otp_stream.relay.protocol import RelayUnavailableError, SmtpProtocol


@pytest.fixture
def server() -> Iterator[TokenServer]:
    with TokenServer() as server:
        yield server


@pytest.mark.parametrize("life", [0, 1, 10**400, "soon", "3600.5", float("nan"), None, [], {}])
async def test_a_token_of_a_life_that_is_no_number_is_used(server: TokenServer, life: object) -> None:
    server.answers.append(grants(expires_in=life))
    server.granted_as("opaque-0123456789")
    async with relay_of(server) as relay:
        assert isinstance(await outcome_of(server, relay), Accepted)


@pytest.mark.parametrize(
    "answer",
    [
        grants(access_token="a\r\nQUIT"), grants(access_token="a\0b"), grants(access_token="a\1\1b"),
        grants(access_token="é"), grants(token_type="mac"), (200, b"[" * 60_000), (200, b" " * 70_000 + b"{}"),
    ],
)  # fmt: skip
async def test_a_token_that_no_login_can_carry_is_not_shown_to_the_relay(
    server: TokenServer, answer: tuple[int, bytes]
) -> None:
    server.answers.append(answer)
    async with relay_of(server) as relay:
        outcome = await outcome_of(server, relay)
        assert isinstance(outcome, Unavailable)
        assert "the answer of 127.0.0.1 holds " in outcome.error
        assert relay.connections == 0


async def test_a_long_token_is_sent_as_the_answer_to_a_challenge(server: TokenServer) -> None:
    server.answers.append(grants(access_token="a" * 20_000))
    server.granted_as("a" * 20_000)
    async with relay_of(server) as relay:
        assert isinstance(await outcome_of(server, relay), Accepted)
        assert "AUTH XOAUTH2" in [line for _, line in relay.log]


async def test_nothing_is_asked_for_a_login_without_tls_to_another_host(server: TokenServer) -> None:
    source = OAuthConfig(USER, server.url, scope=SCOPE, **CLIENT)
    config = RelayConfig("relay.example", 25, USER, tls="none", user=USER, oauth=source)
    with pytest.raises(RelayUnavailableError, match="SMTP_TLS=none"):
        await Handshake(config).open(SmtpProtocol)
    assert server.requests == []


@asynccontextmanager
async def raw_server(answer: bytes, *, drips: bool = False) -> AsyncIterator[str]:
    """Answer each request with these bytes, one by one if it `drips`, then close. Yields the URL."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            for piece in [answer[at : at + 1] for at in range(len(answer))] if drips else [answer]:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0.05 if drips else 0)
        except OSError:
            pass
        finally:
            writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1")
    try:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/"
    finally:
        listening.close()


HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"", "does not answer (ConnectionError)"),
        (HEAD, "holds no access token"),
        (HEAD + b"content-length: 900\r\n\r\n" + b'{"access_token": "a', "answers 200 (ConnectionError)"),
        (HEAD + b"content-length: 100000000\r\n\r\n" + b" " * 1_000_000, "holds no access token"),
    ],
)
async def test_an_answer_that_breaks_off_or_is_long_is_named(server: TokenServer, answer: bytes, words: str) -> None:
    async with relay_of(server) as relay, raw_server(answer) as url:
        outcome = await outcome_of(server, relay, token_url=url)
        assert isinstance(outcome, Unavailable)
        assert words in outcome.error


async def test_an_answer_that_comes_byte_by_byte_is_not_waited_for(
    server: TokenServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_server, "_TOTAL_S", 1.0)
    async with relay_of(server) as relay, raw_server(HEAD + b"x: y\r\n" * 1_000, drips=True) as url:
        outcome = await outcome_of(server, relay, token_url=url)  # within its time limit: all would take five minutes
        assert isinstance(outcome, Unavailable)
        assert "the token server 127.0.0.1 does not answer within 1 s" in outcome.error


async def test_a_server_is_not_asked_again_while_it_answers_slowly_and_its_thread_ends(
    server: TokenServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_server, "_TOTAL_S", 2.0)
    async with raw_server(HEAD + b"\r\n" + b" " * 60_000, drips=True) as url:
        source = token_server.TokenServer(lambda: OAuthConfig(USER, url, scope=SCOPE, **CLIENT))
        first = asyncio.create_task(source.fetch())

        async def is_asked() -> bool:
            return source._asks.locked()

        async def has_ended() -> bool:
            return not [it for it in threading.enumerate() if it.name == "access token"]

        await until(is_asked, "a request")
        with pytest.raises(TokenError, match="still answers an earlier request"):
            await source.fetch()
        with pytest.raises(TokenError, match="does not answer within 2 s"):
            await first
        await until(has_ended, "end of the thread")


@pytest.mark.parametrize("replaced", [{"a": 1}, ["x"], 123, True, "", "unknown-to-the-server"])
async def test_a_wrong_refresh_token_in_an_answer_stops_no_later_request(server: TokenServer, replaced: object) -> None:
    source = token_server.TokenServer(
        lambda: OAuthConfig(USER, server.url, scope=SCOPE, **CLIENT, refresh_token=REFRESH_TOKEN)
    )
    server.answers.append(grants(refresh_token=replaced))
    assert (await source.fetch()).value == "opaque-0123456789"
    for _ in range(2):
        assert (await source.fetch()).value != "opaque-0123456789"


async def test_a_request_without_tls_stays_on_this_machine(
    server: TokenServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as proxy:
        proxy.bind(("127.0.0.1", 0))  # refuses connections
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.getsockname()[1]}")
        async with relay_of(server) as relay:
            assert isinstance(await outcome_of(server, relay), Accepted)


@pytest.mark.parametrize("by_key", [False, True])
async def test_a_password_of_netrc_is_not_sent_to_the_token_server(
    server: TokenServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, by_key: bool
) -> None:
    (tmp_path / "netrc").write_text("default login someone password of-another-service\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (tmp_path / "key").write_text(server.service_account())
    changes = {"token_url": None, "key_file": tmp_path / "key"} if by_key else {}
    monkeypatch.setattr(
        token_server, "urlsplit", lambda _: type("Https", (), {"scheme": "https", "hostname": "h", "query": ""})
    )
    async with relay_of(server) as relay:
        assert isinstance(await outcome_of(server, relay, **changes), Accepted)
    assert "authorization" not in {name.lower() for headers in server.headers for name in headers}


@pytest.mark.parametrize(
    ("url", "variables", "words"),
    [
        ("https://127.0.0.1:1/", {"HTTPS_PROXY": "http://127.0.0.1:1"}, "check HTTPS_PROXY and NO_PROXY"),
        ("https://127.0.0.1:1/", {"HTTPS_PROXY": "odd://127.0.0.1:1"}, "check HTTPS_PROXY and NO_PROXY"),
        ("https://127.0.0.1:1/", {"REQUESTS_CA_BUNDLE": "/nowhere"}, "(OSError); check REQUESTS_CA_BUNDLE"),
        ("{server}", {}, "SSLError"),
    ],
)
async def test_the_environment_that_prevents_a_request_is_named(
    server: TokenServer, monkeypatch: pytest.MonkeyPatch, url: str, variables: dict[str, str], words: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    url = url.format(server=server.url.replace("http:", "https:"))
    async with relay_of(server) as relay:
        outcome = await outcome_of(server, relay, token_url=url)
        assert isinstance(outcome, Unavailable)
        assert words in outcome.error
        assert outcome.reason == "unreachable"


async def test_a_key_is_sent_over_tls_only(server: TokenServer, tmp_path: Path) -> None:
    account = json.loads(server.service_account()) | {"token_uri": "http://login.example/token"}
    (tmp_path / "key").write_text(json.dumps(account))
    async with relay_of(server) as relay:
        outcome = await outcome_of(server, relay, token_url=None, key_file=tmp_path / "key")
        assert isinstance(outcome, Unavailable)
        assert "SMTP_OAUTH_KEY_FILE has a token_uri that does not start with https://" in outcome.error


async def test_an_assertion_or_a_secret_that_a_token_server_quotes_is_not_shown(
    server: TokenServer, tmp_path: Path
) -> None:
    (tmp_path / "key").write_text(server.service_account())
    async with relay_of(server) as relay:
        for changes in ({"scope": "x", "token_url": None, "key_file": tmp_path / "key"}, {"scope": "x"}):
            server.quotes_body = True
            outcome = await outcome_of(server, relay, **changes)
            assert isinstance(outcome, Unavailable)
            assert "AADSTS7000" in outcome.error
            assert not [it for it in ("eyJ", "s3cret", "of%2Bthe") if it in outcome.error], outcome.error


async def test_a_key_in_the_query_of_the_url_is_not_shown_if_a_token_server_quotes_it(server: TokenServer) -> None:
    server.quotes_path = True
    async with relay_of(server) as relay:
        outcome = await outcome_of(server, relay, token_url=f"{server.url}?api-version=2&key=c29tZSBrZXk%3D", scope="x")
        assert isinstance(outcome, Unavailable)
        assert "AADSTS7000" in outcome.error
        assert "api-version=2" in outcome.error
        assert not [it for it in ("c29tZSBrZXk", "29tZSBr") if it in outcome.error], outcome.error
