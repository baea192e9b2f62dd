"""Status and headers of every HTTP path, as monitors, browsers and proxies depend on them."""

import pytest
from access import access
from http_fetch import fetch
from starlette.requests import Request
from starlette.responses import Response

from otp_stream import asgi
from otp_stream.asgi import POLICY, Fields, SecureApp, form_route, get_route
from otp_stream.request_body import Bodies
from otp_stream.web import stream

SECURE = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cache-control": "no-store",
}
HTML, JSON, TEXT = "text/html; charset=utf-8", "application/json", "text/plain"


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
    assert text == b"log in with a token first\n"


async def test_the_stream_of_events_is_not_buffered_by_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "_LIFETIME_S", 0)
    status, headers, body = await fetch("GET", "/live")
    assert (status, body) == (200, b"retry: 1000\n\n")
    assert headers == SECURE | {"content-type": "text/event-stream", "x-accel-buffering": "no"}


SAME_SITE_ONLY = [
    ({"sec-fetch-site": "cross-site"}, True),
    ({"sec-fetch-site": "same-site", "origin": "http://localhost:8000"}, True),
    ({"sec-fetch-site": "same-origin", "origin": "https://elsewhere.example"}, False),  # a proxy changes Host
    ({"sec-fetch-site": "none"}, False),
    ({"origin": "https://elsewhere.example"}, True),
    ({"origin": "null"}, True),
    ({"origin": "http://localhost:8000"}, False),
    ({"origin": "http://LOCALHOST"}, False),
    ({"origin": "http://[::1]:8000", "host": "[::1]:8000"}, False),
    ({}, False),
]


@pytest.mark.parametrize(("headers", "refused"), SAME_SITE_ONLY)
async def test_a_form_of_another_site_is_refused_before_it_is_read(headers: dict[str, str], *, refused: bool) -> None:
    read: list[Fields] = []

    async def submit(_: Request, fields: Fields) -> Response:
        read.append(fields)
        return Response()

    to = SecureApp(form_route(submit, Bodies()), ())
    status, _, body = await fetch("POST", "/login", b"token=guess", to=to, **headers)
    assert (status, read) == ((403, []) if refused else (200, [{"token": "guess"}]))
    assert (b"from another site" in body) is refused


async def test_a_proxy_that_is_not_trusted_is_logged_once(capsys: pytest.CaptureFixture[str]) -> None:
    to = SecureApp(get_route(_respond), ())
    # a client that uvicorn took from the header
    await fetch("GET", "/", to=to, **{"x-forwarded-for": "198.51.100.1, 192.0.2.7"})
    assert "FORWARDED_ALLOW_IPS" not in capsys.readouterr().out
    for _ in range(3):
        await fetch("GET", "/", to=to, **{"x-forwarded-for": "198.51.100.1"})
    logged = capsys.readouterr().out
    assert logged.count("X-Forwarded-For is not used") == 1
    assert "192.0.2.7" in logged


async def _respond(_: Request) -> Response:
    return Response()


@pytest.mark.parametrize(("scheme", "last"), [("http", "Max-Age=28800"), ("https", "Secure")])
async def test_the_cookie_of_a_session_is_out_of_reach_of_scripts_and_other_sites(scheme: str, last: str) -> None:
    request = Request({"type": "http", "scheme": scheme, "headers": []})
    value, *flags = str(await access("t0k3n").log_in(request, "t0k3n")).split("; ")
    assert value.startswith("otp_session=")
    assert flags[:4] == ["Path=/", "HttpOnly", "SameSite=Strict", "Max-Age=28800"]
    assert flags[-1] == last
    redirect = asgi.redirect("dead", cookie="a=b; Path=/")
    assert (redirect.status_code, redirect.body) == (303, b"")
    expected = {"content-type": TEXT, "content-length": "0", "location": "dead", "set-cookie": "a=b; Path=/"}
    assert dict(redirect.headers) == expected


@pytest.mark.parametrize("path", ["/login", "/livez", "/unknown"])
async def test_a_request_with_two_lengths_is_refused_and_ends_its_connection(path: str) -> None:
    lengths = {"content-length": "4", "transfer-encoding": "chunked"}
    status, headers, body = await fetch("POST", path, b"token=x", **lengths)
    assert (status, headers["connection"]) == (400, "close")
    assert body == b"Content-Length with Transfer-Encoding: send one of them\n"


@pytest.mark.parametrize("path", ["/templates", "/livez", "/v1/jobs", "/unknown"])
async def test_a_long_query_and_many_headers_are_refused_before_they_are_read(path: str) -> None:
    read: list[str] = []

    async def respond(request: Request) -> Response:
        read.append(str(request.query_params))
        return Response()

    to = SecureApp(get_route(respond), ())
    many = {f"x-{number}": "" for number in range(99)}  # with the host: 100
    # the longest that our page of templates makes
    query = f"?tenant={'%F0%9F%90%99' * 64}&name={'a' * 64}&language=en-{'a' * 32}"
    assert (await fetch("GET", path + query, to=to, **many))[0] == 200
    assert len(read) == 1
    for refused, more in ((414, {}), (431, many | {"x-99": ""})):
        status, headers, _ = await fetch("GET", f"{path}?{'a' * (2049 if refused == 414 else 1)}", to=to, **more)
        assert (status, headers["connection"]) == (refused, "close")
        assert headers.items() >= SECURE.items()
    assert len(read) == 1
