"""Authorization: wrong tokens are limited, and a closed session is refused."""

import hmac
import re
import shlex
import time
from pathlib import Path
from typing import Any, get_args

import pytest
from access import KEY, access, form_key, log_in, token
from starlette.requests import Request
from starlette.responses import Response

from otp_stream import guess_limit
from otp_stream.core.audit import Action, Result
from otp_stream.core.http_token import HttpToken, digest_of
from otp_stream.web import access as access_module
from otp_stream.web import session as session_module
from otp_stream.web.access import Access, is_program
from otp_stream.web.session import COOKIE, Sessions, User

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
    sessions = access(TOKEN)
    for number in range(10):
        assert not sessions.is_blocked(request())
        assert not await sessions.user(request(authorization=f"Bearer guess-{number}"))
    assert sessions.is_blocked(request())
    assert not await sessions.user(request(authorization=f"Bearer {TOKEN}"))  # or it could keep guessing
    assert await sessions.user(request("192.0.2.2", authorization=f"Bearer {TOKEN}"))
    logged = capsys.readouterr().out
    assert logged.count("action=token.refused") == 10
    assert "192.0.2.1" in logged
    assert "guess-" not in logged


async def test_basic_authorization_of_a_proxy_counts_neither_as_a_wrong_token_nor_as_a_program(
    capsys: pytest.CaptureFixture[str],
) -> None:
    sessions = access(TOKEN)
    for _ in range(20):
        assert not await sessions.user(request(authorization="Basic dXNlcjpwYXNz"))
    assert not sessions.is_blocked(request())
    cookie = await log_in(sessions, TOKEN, request())
    behind = request(cookie=cookie, authorization="Basic dXNlcjpwYXNz")
    assert await sessions.user(behind)
    assert not is_program(behind)
    assert is_program(request(authorization="bearer guess"))
    assert "token.refused" not in capsys.readouterr().out


async def test_a_client_may_try_again_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access_module, "_FAILED_LOGIN_DELAY_S", 0)
    sessions = access(TOKEN)
    for _ in range(10):
        assert await sessions.log_in(request(), "guess") is None
    assert sessions.is_blocked(request())
    monkeypatch.setattr(guess_limit, "WINDOW_S", 0)
    assert await sessions.user(request(authorization=f"Bearer {TOKEN}"))


async def test_the_memory_for_many_clients_is_bounded() -> None:
    sessions = access(TOKEN)
    for number in range(1_200):
        await sessions.user(request(f"client{number}", authorization="Bearer guess"))
    assert len(sessions.guesses._failures) == 1_000  # pyright: ignore[reportPrivateUsage]


async def test_the_cookie_of_a_closed_session_is_refused_and_others_are_not() -> None:
    sessions = access(TOKEN)
    cookies = [await log_in(sessions, TOKEN, request()) for _ in range(2)]
    first, second = (request(cookie=cookie) for cookie in cookies)
    assert all(cookie.startswith(f"{COOKIE}=") for cookie in cookies)
    assert await sessions.user(first)
    assert await sessions.user(second)
    await sessions.sessions.close(first)
    assert not await sessions.user(first)
    assert await sessions.user(second)
    assert await access(TOKEN).user(second)  # another worker


async def test_a_forged_cookie_is_refused() -> None:
    for cookie in ("", ".", "9999999999.0", "x-y.z", f"{'9' * 5000}.a"):
        assert not await access(TOKEN).user(request(cookie=f"{COOKIE}={cookie}"))


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
    one, other = access(TOKEN, flags=redis), access(TOKEN, flags=redis)
    cookies = [await log_in(one, TOKEN, request()) for _ in range(2)]
    first, second = (request(cookie=cookie) for cookie in cookies)
    assert await other.user(first)
    await one.sessions.close(first)
    assert not await other.user(first)
    assert await other.user(second)
    [(flag, ttl_ms)] = redis.flags.items()
    assert cookies[0].partition("=")[2] not in flag
    assert 0 < ttl_ms <= 8 * 3600 * 1000
    redis.unreachable = True
    assert not await other.user(first)  # it remembers the logout
    assert "logout is known to this process only" not in capsys.readouterr().out


async def test_a_logout_that_cannot_be_shared_is_logged(capsys: pytest.CaptureFixture[str]) -> None:
    redis = Redis()
    redis.unreachable = True
    for flags in (redis, None):
        sessions = access(TOKEN, flags=flags)
        cookie = await log_in(sessions, TOKEN, request())
        await sessions.sessions.close(request(cookie=cookie))
        assert not await sessions.user(request(cookie=cookie))
        assert "logout is known to this process only" in capsys.readouterr().out


async def test_a_closed_session_stays_closed_whatever_is_closed_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    it = access(*BOTH)
    closed = request(cookie=await log_in(it, OPERATOR, request()))
    await it.sessions.close(closed)
    for _ in range(1_100):
        cookie = await it.sessions.open(BOTH[1], request())
        await it.sessions.close(request(cookie=cookie.partition(";")[0]))
    assert await it.user(closed) is None
    later = time.time() + 9 * 3600
    monkeypatch.setattr(session_module.time, "time", lambda: later)
    await it.sessions.close(request(cookie=await log_in(it, OPERATOR, request())))
    assert len(it.sessions._closed) == 1  # pyright: ignore[reportPrivateUsage]


async def test_the_log_ins_with_one_token_are_limited_and_those_with_others_are_not() -> None:
    redis = Redis()
    it = access(*BOTH, flags=redis)
    last = request()
    for _ in range(30):
        if cookie := await log_in(it, VIEWER, last):
            last = request(cookie=cookie)
    assert len(redis.flags) == 9
    refused = await it.log_in(last, VIEWER)
    assert isinstance(refused, Response)
    assert refused.status_code == 429
    assert await it.user(last)
    assert await log_in(it, OPERATOR, request())


async def test_an_empty_token_is_no_ones() -> None:
    it = access(token(""))
    assert await it.log_in(request(), "") is None
    assert await it.user(request(authorization="Bearer ")) is None


async def test_closing_an_invalid_session_sets_no_flag() -> None:
    redis = Redis()
    await access(TOKEN, flags=redis).sessions.close(request(cookie=f"{COOKIE}=9999999999.0-forged"))
    no_token = access(flags=redis)
    signed_with_nothing = hmac.new(b"", b"session:9999999999.0", "sha256").hexdigest()
    await no_token.sessions.close(request(cookie=f"{COOKIE}=9999999999.0-{signed_with_nothing}"))
    assert redis.flags == {}
    assert await no_token.log_out(request(), {"key": hmac.new(b"", b"form:", "sha256").hexdigest()}) is None


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, str]]:
    """Return the fields of the audit lines since the last call."""
    found = [line for line in capsys.readouterr().out.splitlines() if "] audit " in line]
    return [dict(word.partition("=")[::2] for word in shlex.split(line) if "=" in word) for line in found]


OPERATOR, VIEWER = "0e6a1fb7c9d24835", "7c1d93e5a80b264f"
BOTH = (token(OPERATOR, "ada"), token(VIEWER, "vic", "viewer"))


async def no_page(_: Request, reason: str, status: int) -> Response:
    return Response(reason, status)


async def test_a_log_in_a_refused_one_and_a_log_out_are_recorded_with_who_and_from_where(
    capsys: pytest.CaptureFixture[str],
) -> None:
    it = access(*BOTH)
    session = request(cookie=await log_in(it, VIEWER, request()))
    assert await log_in(it, "guess", request("192.0.2.2")) == ""
    assert await it.log_out(session, {"key": await form_key(it, session)})
    assert await it.user(session) is None
    assert lines(capsys) == [
        {"action": "session.log_in", "result": "done", "by": "vic", "role": "viewer", "source": "192.0.2.1"},
        {"action": "session.log_in", "result": "refused", "by": "-", "source": "192.0.2.2"},
        {"action": "session.log_out", "result": "done", "by": "vic", "role": "viewer", "source": "192.0.2.1"},
    ]


async def test_a_viewer_may_not_do_what_an_operator_may(capsys: pytest.CaptureFixture[str]) -> None:
    it = access(*BOTH)
    session = request(cookie=await log_in(it, VIEWER, request()))
    fields = {"key": await form_key(it, session)}
    for viewer in (session, request(authorization=f"Bearer {VIEWER}")):
        refused = await it.operator(viewer, fields, no_page, "dead.replay", "reason=rejected")
        assert isinstance(refused, Response)
        assert (refused.status_code, b"only an operator may do this" in refused.body) == (403, True)
        line = lines(capsys)[-1]
        assert (line["action"], line["result"], line["by"], line["target"]) == (
            "dead.replay", "refused", "vic", "reason=rejected",
        )  # fmt: skip
    user = await it.operator(request(authorization=f"Bearer {OPERATOR}"), {}, no_page, "dead.replay")
    assert isinstance(user, User)
    assert (user.name, user.role) == ("ada", "operator")


@pytest.mark.parametrize(
    "after",
    [
        (),
        (token(VIEWER, "ada"),),
        (token(OPERATOR, "ada", "viewer"),),
        (token(OPERATOR, "bob"),),
        (token(OPERATOR, "ada", expires_ms=1),),
    ],
    ids=["removed", "another token", "another role", "another name", "expired"],
)
async def test_a_session_ends_when_its_token_is_removed_or_changed(after: tuple[HttpToken, ...]) -> None:
    tokens = [token(OPERATOR, "ada")]
    it = Access(Sessions(lambda: tokens, [KEY]))
    session = request(cookie=await log_in(it, OPERATOR, request()))
    assert await it.user(session)
    tokens[:] = after
    assert await it.user(session) is None


async def test_a_session_outlives_a_change_of_the_key_and_cannot_be_made_without_it() -> None:
    tokens = [token(OPERATOR, "ada")]
    old = Access(Sessions(lambda: tokens, [KEY]))
    session = request(cookie=await log_in(old, OPERATOR, request()))
    new = Access(Sessions(lambda: tokens, [b"n" * 32, KEY]))
    assert await new.user(session)
    assert await new.log_out(session, {"key": await form_key(new, session)})
    assert await Access(Sessions(lambda: tokens, [b"n" * 32])).user(session) is None


async def test_a_log_in_gives_a_new_session_and_closes_the_one_before() -> None:
    it = access(*BOTH)
    first = request(cookie=await log_in(it, VIEWER, request()))
    second = request(cookie=await log_in(it, OPERATOR, first))
    assert await it.user(first) is None
    user = await it.user(second)
    assert user
    assert user.name == "ada"


async def test_a_cookie_of_another_deployment_at_a_shorter_path_hides_no_session() -> None:
    it = access(TOKEN)
    own, other = (
        await log_in(it, TOKEN, request()),
        await log_in(access("another-token-9e3f"), "another-token-9e3f", request()),
    )
    assert await it.user(request(cookie=f"theme=dark; {own}; {other}"))
    assert not await it.user(request(cookie=f"{other}; {own}"))
    assert not await it.user(request(cookie=f"x{own}"))


async def test_the_cookie_belongs_to_the_path_of_the_pages() -> None:
    behind = Request({"type": "http", "root_path": "/otp", "headers": [], "client": ("192.0.2.1", 1)})
    assert "; Path=/otp;" in str(await access(TOKEN).log_in(behind, TOKEN))


async def test_many_clients_may_send_one_wrong_token_each_and_the_right_one_at_any_time() -> None:
    it = access(TOKEN)
    for number in range(100):
        assert not await it.user(request(f"198.51.100.{number}", authorization="Bearer guess"))
    wrong = request("203.0.113.1", authorization="Bearer guess")
    assert not it.is_blocked(wrong)
    assert not await it.user(wrong)
    assert it.is_blocked(wrong)
    assert await it.user(request("203.0.113.2", authorization=f"Bearer {TOKEN}"))
    assert await log_in(it, TOKEN, request("203.0.113.3"))


async def test_the_addresses_of_one_ipv6_network_are_one_client_and_an_ipv4_address_has_one_form() -> None:
    it = access(TOKEN)
    for number in range(10):
        await it.user(request(f"2001:db8::{number:x}", authorization="Bearer guess"))
        await it.user(request("::ffff:192.0.2.9", authorization="Bearer guess"))
    assert it.is_blocked(request("2001:db8::ffff"))
    assert not it.is_blocked(request("2001:db8:0:1::1"))
    assert it.is_blocked(request("192.0.2.9"))


async def test_a_session_stays_open_while_its_address_is_blocked() -> None:
    it = access(TOKEN)
    session = request(cookie=await log_in(it, TOKEN, request()))
    for _ in range(10):
        await it.user(request(authorization="Bearer guess"))
    assert it.is_blocked(session)
    assert await it.user(session)


async def test_requests_without_a_token_cannot_flood_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    it = access(TOKEN)
    for _ in range(30):
        refused = await it.operator(request(), {}, no_page, "dead.replay")
        assert isinstance(refused, Response)
        assert refused.status_code == 403
    assert len(lines(capsys)) == 10
    assert not it.is_blocked(request())  # nor lock out anyone


async def test_clients_with_thousands_of_addresses_cannot_flood_the_log(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access_module, "_FAILED_LOGIN_DELAY_S", 0)
    clock = [1000.0]
    monkeypatch.setattr(access_module.time, "monotonic", lambda: clock[0])
    it = access(*BOTH)
    for number in range(300):
        client = f"2001:db8:0:{number:x}::1"
        await it.operator(request(client), {}, no_page, "dead.replay")
        await it.user(request(client, authorization="Bearer guess"))
        await it.log_in(request(client), "guess")
    assert len(lines(capsys)) == 100
    for number in range(300):  # a viewer leaves no more lines, but its own are not lost among those of others
        viewer = request(f"2001:db8:1:{number:x}::1", authorization=f"Bearer {VIEWER}")
        await it.operator(viewer, {}, no_page, "dead.replay")
    assert [line["by"] for line in lines(capsys)] == ["vic"] * 100
    clock[0] += 61
    await it.operator(request("192.0.2.9"), {}, no_page, "dead.replay")
    assert lines(capsys)[0]["left_out"] == "800"


async def test_an_address_from_a_header_is_marked_and_cannot_forge_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    it = access(TOKEN)
    forged = "192.0.2.1\x1b[2K action=x" + "y" * 500
    for host in ("203.0.113.5", forged, forged.replace("192.0.2.1", "fe80::1%")):
        headers = {"x-forwarded-for": host.encode("latin-1").decode("latin-1")}
        await log_in(it, TOKEN, request(host, **headers))
    await log_in(it, TOKEN, request("203.0.113.5"))
    text = capsys.readouterr().out
    assert "\x1b" not in text
    assert [line.count("forwarded=True") for line in text.splitlines()] == [1, 1, 1, 0]
    assert max(map(len, text.splitlines())) < 450


async def test_a_proxy_names_the_user_and_its_browsers_need_the_key_of_a_form() -> None:
    sso = HttpToken("sso", "operator", digest_of(TOKEN), None, "X-Forwarded-User")
    it = access(sso, token(OPERATOR, "ada"))
    named = {"authorization": f"Bearer {TOKEN}", "x-forwarded-user": "eve@example.com x\n"}
    browser = request(**named, **{"sec-fetch-site": "cross-site"})
    user = await it.user(browser)
    assert user
    assert (user.name, user.via) == ("sso:eve@example.com?x?", "proxy")
    refused = await it.operator(browser, {}, no_page, "dead.replay")
    assert isinstance(refused, Response)
    assert b"this form is from another site" in refused.body
    assert isinstance(await it.operator(browser, {"key": await form_key(it, browser)}, no_page, "dead.replay"), User)
    of_another = await form_key(it, request(**named | {"x-forwarded-user": "former@example.com"}))
    assert isinstance(await it.operator(browser, {"key": of_another}, no_page, "dead.replay"), Response)
    older = request(**named, origin="https://elsewhere.example")
    assert isinstance(await it.operator(older, {"key": ""}, no_page, "dead.replay"), Response)
    program = await it.operator(request(**named), {}, no_page, "dead.replay")
    assert isinstance(program, User)
    other = await it.user(request(**named | {"authorization": f"Bearer {OPERATOR}"}))
    assert other
    assert other.name == "ada"  # only the token of the proxy may name a user


def test_every_action_and_result_is_in_the_table_of_the_documents() -> None:
    text = (Path(__file__).parents[2] / "docs" / "access.md").read_text().partition("## Audit lines")[2]
    rows = "".join(line.split("|")[1] for line in text.splitlines() if line.startswith("| `"))
    assert sorted(re.findall(r"`([^`]+)`", rows)) == sorted(get_args(Action))
    assert all(f"`{result}`" in text for result in get_args(Result))
