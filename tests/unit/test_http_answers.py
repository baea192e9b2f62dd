"""Status and headers of every HTTP path, as monitors, browsers and proxies depend on them."""

import asyncio
from collections.abc import MutableMapping
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from otp_stream import asgi
from otp_stream.app import app
from otp_stream.asgi import POLICY, SecureApp
from otp_stream.web import stream
from otp_stream.web.session import Sessions

SECURE = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}
HTML, JSON, TEXT = "text/html; charset=utf-8", "application/json", "text/plain"


async def fetch(
    method: str, path: str, body: bytes = b"", *, kind: str = "http", to: ASGIApp = app, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """Return status, headers and body of one request. A stream ends after its first chunk."""
    sent: list[MutableMapping[str, Any]] = []
    messages: list[MutableMapping[str, Any]] = [{"type": "http.request", "body": body}]

    async def receive() -> MutableMapping[str, Any]:
        if not messages:
            await asyncio.Event().wait()  # the client stays connected
        return messages.pop()

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    path, _, query = path.partition("?")
    scope = {
        "type": kind, "method": method, "path": path, "query_string": query.encode(), "scheme": "http",
        "headers": [(name.encode(), value.encode()) for name, value in ({"host": "localhost:8000"} | headers).items()],
        "client": ("192.0.2.7", 1), "root_path": "", "extensions": {"websocket.http.response": {}},
    }  # fmt: skip
    await to(scope, receive, send)
    start, *rest = sent
    prefix = "websocket." if kind == "websocket" else ""
    assert {it["type"] for it in sent} == {f"{prefix}http.response.start", f"{prefix}http.response.body"}
    names = [name.decode() for name, _ in start["headers"]]
    assert len(set(names)) == len(names)
    found = dict(zip(names, (value.decode() for _, value in start["headers"]), strict=True))
    return start["status"], found, b"".join(it.get("body", b"") for it in rest)


@pytest.mark.parametrize(
    ("path", "content_type"),
    [
        ("/", HTML), ("/dead", HTML), ("/asyncapi", HTML),
        ("/livez", JSON), ("/readyz", JSON), ("/health", JSON), ("/asyncapi.json", JSON),
        ("/asyncapi.yaml", "application/yaml"), ("/metrics", "text/plain; version=0.0.4; charset=utf-8"),
        ("/page.css", "text/css; charset=utf-8"), ("/page.js", "text/javascript; charset=utf-8"),
        ("/favicon.svg", "image/svg+xml"),
    ],
)  # fmt: skip
async def test_a_page_has_security_headers_and_is_not_cached(path: str, content_type: str) -> None:
    status, headers, body = await fetch("GET", path)
    assert status == 200
    assert headers == SECURE | {"content-type": content_type, "content-length": str(len(body))}
    head_status, head_headers, _ = await fetch("HEAD", path)
    assert (head_status, head_headers.keys()) == (200, headers.keys())
    assert (await fetch("POST", path))[1]["allow"] == "GET, HEAD"


@pytest.mark.parametrize(
    ("method", "path", "host", "status", "text", "more"),
    [
        ("PUT", "/dead", "", 405, "method not allowed: use GET or HEAD\n", {"allow": "GET, HEAD"}),
        ("POST", "/livez", "", 405, "method not allowed: use GET or HEAD\n", {"allow": "GET, HEAD"}),
        ("GET", "/replay", "", 405, "method not allowed: use POST\n", {"allow": "POST"}),
        ("HEAD", "/login", "", 405, "method not allowed: use POST\n", {"allow": "POST"}),
        ("POST", "/live", "", 405, "method not allowed: use GET\n", {"allow": "GET"}),
        ("GET", "/nowhere", "", 404, "not found\n", {}),
        ("POST", "/dead/", "", 404, "not found\n", {}),
        ("GET", "", "", 404, "not found\n", {}),
        ("GET", "/dead", "attacker.example", 421, "unknown host name: add it to HTTP_HOSTS\n", {}),
        ("GET", "/nowhere", "attacker.example", 421, "unknown host name: add it to HTTP_HOSTS\n", {}),
        ("GET", "/livez", "attacker.example", 200, '{"status": "alive"}', {"content-type": JSON}),
    ],
)
async def test_a_refusal_names_the_fix_and_has_security_headers(
    method: str, path: str, host: str, status: int, text: str, more: dict[str, str]
) -> None:
    found, headers, body = await fetch(method, path, host=host or "localhost")
    assert (found, body.decode()) == (status, text)
    assert headers == SECURE | {"content-type": TEXT, "content-length": str(len(body))} | more


async def test_a_response_of_any_application_gets_the_headers_that_it_has_not_set() -> None:
    mounted = Response(b"x", headers={"content-security-policy": "default-src *", "content-type": "x/y"})
    for _ in range(2):  # the response is not changed
        _, headers, _ = await fetch("GET", "/mounted", to=SecureApp(mounted, ()))
        expected = {"content-security-policy": "default-src *", "content-type": "x/y", "content-length": "1"}
        assert headers == SECURE | expected


async def test_a_websocket_is_refused() -> None:
    for host in ("localhost", "attacker.example"):
        status, headers, body = await fetch("GET", "/live", kind="websocket", host=host)
        assert (status, headers["content-type"], body) == (404, TEXT, b"not found\n")


async def test_a_form_is_refused_without_a_session_and_too_large_ones_are_not_read() -> None:
    for path in ("/replay", "/logout", "/probe"):
        status, headers, body = await fetch("POST", path, b"reason=rejected&key=forged")
        assert (status, headers["content-type"]) == (403, HTML)
        assert headers.items() >= SECURE.items()
        assert b"Not done" in body
    for body in (b"a" * 10_001, b"&".join(b"a=%d" % number for number in range(21))):
        status, headers, text = await fetch("POST", "/replay", body)
        assert (status, headers["content-type"], text) == (413, TEXT, b"too large\n")
    status, headers, text = await fetch("POST", "/replay", b"reason=rejected", authorization="Bearer guess")
    assert (status, headers["content-type"]) == (403, "text/plain; charset=utf-8")
    assert text == b"log in with HTTP_TOKEN first\n"


async def test_the_stream_of_events_is_not_buffered_by_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "_LIFETIME_S", 0)
    status, headers, body = await fetch("GET", "/live")
    assert (status, body) == (200, b"retry: 1000\n\n")
    assert headers == SECURE | {"content-type": "text/event-stream", "x-accel-buffering": "no"}


@pytest.mark.parametrize(("scheme", "last"), [("http", "Max-Age=28800"), ("https", "Secure")])
async def test_the_cookie_of_a_session_is_out_of_reach_of_scripts_and_other_sites(scheme: str, last: str) -> None:
    request = Request({"type": "http", "scheme": scheme, "headers": []})
    value, *flags = str(await Sessions("t0k3n").open("t0k3n", request)).split("; ")
    assert value.startswith("otp_session=")
    assert flags[:4] == ["Path=/", "HttpOnly", "SameSite=Strict", "Max-Age=28800"]
    assert flags[-1] == last
    redirect = asgi.redirect("dead", cookie="a=b; Path=/")
    assert (redirect.status_code, redirect.body) == (303, b"")
    expected = {"content-type": TEXT, "content-length": "0", "location": "dead", "set-cookie": "a=b; Path=/"}
    assert dict(redirect.headers) == expected
