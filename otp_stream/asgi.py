"""HTTP routes on Starlette, with headers that prevent browsers from loading anything from other sites."""

import asyncio
import ipaddress
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Container, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from urllib.parse import parse_qsl

import structlog
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import request_response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .core.audit import printable
from .request_body import Bodies, BodyTooLargeError, TooManyBodiesError
from .tasks import Turns, is_cancelled

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

Fields = Mapping[str, str]
"""The fields of a form."""

POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
"""The Content-Security-Policy of our pages, which load everything from this worker."""
PAGE_WITH_FRAMES = {"content-security-policy": f"{POLICY}; frame-src 'self'"}
FRAME = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'self'; sandbox",
}
"""For an e-mail in a frame of our pages, which must not run scripts or load anything."""
_DEFAULT_HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    # with no-referrer, browsers would send `Origin: null` with our forms, as with those of any other site
    (b"referrer-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)


def text(body: str, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return a plain-text response, for programs and probes."""
    return Response(body, status, {"content-type": "text/plain"} | dict(headers or {}))


def json_response(content: object, status: int = 200) -> Response:
    """Return `content` as JSON, with a space after each colon, which some monitors expect."""
    return Response(json.dumps(content, ensure_ascii=False), status, media_type="application/json")


def redirect(to: str, *, cookie: str | None = None) -> Response:
    """Redirect a browser after a form. `to` is relative, so that it also works behind a proxy with a path prefix."""
    return text("", 303, {"location": to} | ({"set-cookie": cookie} if cookie else {}))


NOT_FOUND = text("not found\n", 404)
_MISDIRECTED = text("unknown host name: add it to HTTP_HOSTS\n", 421)
_TWO_LENGTHS = text("Content-Length with Transfer-Encoding: send one of them\n", 400, {"connection": "close"})
_TOO_SLOW = text("the request did not arrive in time\n", 408, {"connection": "close"})
_CROSS_SITE = text("this form is from another site: open the page of this worker, and send its form\n", 403)
_TOO_MANY_BODIES = text(
    "too many requests wait for their bodies: try again\n", 503, {"retry-after": "1", "connection": "close"}
)
_TOO_LARGE = text("too large\n", 413)
_INCOMPLETE = text("the request is incomplete\n", 400)
_STOPPING = text("this worker is stopping\n", 503, {"retry-after": "1", "connection": "close"})
_BUSY = text("too many viewers: try again later\n", 503, {"retry-after": "5"})
MAX_HEADERS = 100
"""Headers of a request, of which browsers and proxies send about thirty. Each costs the event loop microseconds."""
_MAX_QUERY = 2048
"""Bytes of a query: twice the longest of our pages, which has names of a tenant and a template, percent-encoded."""
TOO_MANY_HEADERS = f"too many headers: at most {MAX_HEADERS}\n"
_MANY_HEADERS = text(TOO_MANY_HEADERS, 431, {"connection": "close"})
_LONG_QUERY = text(f"the query is too long: at most {_MAX_QUERY} bytes\n", 414, {"connection": "close"})
_FORM_LIMIT = 10_000
_FORM_TIMEOUT_S = 10.0
_ANY_HOST = ("/livez", "/readyz")
INTAKE_PREFIX = "/v1/"
_NOT_PUBLIC = (".internal", ".lan", ".local", ".localhost", ".svc", ".home.arpa")


def client_of(request: Request) -> str:
    """Return the client's IP address."""
    host = request.client.host if request.client else "unknown"
    with suppress(ValueError):
        host = str(ipaddress.ip_address(host))
    return printable(host)  # a proxy that is trusted may pass on anything, also as the zone of an IPv6 address


def is_forwarded(request: Request) -> bool:
    """Return whether the client's address is from a header, in which a client can write anything."""
    host = request.client.host if request.client else ""
    return bool(host) and any(host in value for value in request.headers.getlist("x-forwarded-for"))


def get_route(view: Callable[[Request], Awaitable[Response]]) -> ASGIApp:
    """Return an ASGI route for GET and HEAD. The server omits the body of a response to HEAD."""
    return _route(view, "GET", "HEAD")


def stream_route(
    make_chunks: Callable[[Request], AsyncGenerator[bytes]],
    content_type: str,
    *,
    has_room: Callable[[Request], Awaitable[bool]],
) -> ASGIApp:
    """Return an ASGI route that sends chunks until there are no more or the client disconnects.

    If `has_room` returns false, the response is 503. A slow client counts until its connection ends, so that the limit
    applies to open connections.
    """

    async def stream(request: Request) -> Response:
        # without x-accel-buffering, nginx buffers the response until it is complete
        headers = {"content-type": content_type, "x-accel-buffering": "no"}
        return _Stream(make_chunks(request), headers) if await has_room(request) else _BUSY

    return _route(stream, "GET")


def form_route(submit: Callable[[Request, Fields], Awaitable[Response]], bodies: Bodies) -> ASGIApp:
    """Return an ASGI route for a form, sent by POST. A browser may send it from our own pages only."""

    async def receive_form(request: Request) -> Response:
        if _is_cross_site(request.headers):
            return _CROSS_SITE
        try:
            body = await bodies.read(request, most_bytes=_FORM_LIMIT, timeout_s=_FORM_TIMEOUT_S)
        except TimeoutError:
            return _TOO_SLOW
        except TooManyBodiesError:
            return _TOO_MANY_BODIES
        except BodyTooLargeError:
            return _TOO_LARGE
        except ClientDisconnect:
            # an incomplete form could select more than was requested, such as every relay instead of one
            return _INCOMPLETE
        fields = _fields(body)
        return _TOO_LARGE if fields is None else await submit(request, fields)

    return _route(receive_form, "POST")


def _is_cross_site(headers: Headers) -> bool:
    """Return whether a page of another site sends the form: to log a browser in, or to have wrong tokens counted.

    Browsers send `Sec-Fetch-Site` to HTTPS and localhost only.
    """
    if (site := headers.get("sec-fetch-site")) is not None:
        return site not in {"same-origin", "none"}
    origin = headers.get("origin")
    return origin is not None and _name(origin.rpartition("/")[2]) != _name(headers.get("host", ""))


def _route(endpoint: Callable[[Request], Awaitable[Response]], *methods: str) -> ASGIApp:
    allowed = text(f"method not allowed: use {' or '.join(methods)}\n", 405, {"allow": ", ".join(methods)})
    app = request_response(endpoint)

    async def route(scope: Scope, receive: Receive, send: Send) -> None:
        await (app if scope["method"] in methods else allowed)(scope, receive, send)

    return route


class _Stream(StreamingResponse):
    """Closes its source at the end. Otherwise a disconnected client would count until garbage collection."""

    def __init__(self, chunks: AsyncGenerator[bytes], headers: Mapping[str, str]) -> None:
        super().__init__(chunks, headers=headers)
        self._chunks = chunks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._chunks):
            await super().__call__(scope, receive, send)


def _fields(body: bytes) -> Fields | None:
    """Return the fields, or `None` if they are too many."""
    try:
        # empty fields are kept, because `domain=` selects dead letters without a recipient, not those of every domain
        return dict(parse_qsl(body.decode(errors="replace"), keep_blank_values=True, max_num_fields=20))
    except ValueError:
        return None


class _UntrustedProxy:
    """Reports once that a proxy is not in `FORWARDED_ALLOW_IPS`: its clients get each other's limits."""

    def __init__(self) -> None:
        self._is_logged = False

    def check(self, scope: Scope, headers: Headers) -> None:
        """Report it if the request has addresses that are not used. uvicorn has replaced the client by a used one."""
        forwarded = headers.get("x-forwarded-for")
        if self._is_logged or forwarded is None:
            return
        peer = scope["client"][0] if scope.get("client") else "a Unix socket"
        if peer not in forwarded:
            self._is_logged = True
            _log.warning(
                "X-Forwarded-For is not used: its sender is not in FORWARDED_ALLOW_IPS, its clients count as one",
                peer=peer,
                fix="if it is your proxy, set FORWARDED_ALLOW_IPS to its address (with --uds: to *)",
            )


@dataclass(frozen=True, slots=True)
class SecureApp:
    """Middleware that refuses requests for unknown host names, and adds security headers to every response."""

    app: ASGIApp
    hosts: Container[str]
    """Names of this worker that others could also have."""
    _turns: Turns = field(default_factory=Turns)
    """Otherwise, what clients pipeline on many connections would be handled in one iteration of the event loop."""
    _separate_turns: Mapping[str, Turns] = field(
        default_factory=lambda: {it: Turns() for it in (*_ANY_HOST, INTAKE_PREFIX)}
    )
    """Those of each probe, and of the intake: they wait neither behind requests for pages nor behind each other's."""
    _untrusted_proxy: _UntrustedProxy = field(default_factory=_UntrustedProxy)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Respond to HTTP requests and WebSocket handshakes."""
        # behind a proxy that serves us below a path (--root-path), uvicorn prepends that path to each path
        scope = {**scope, "path": scope["path"].removeprefix(scope.get("root_path", ""))}

        has_begun = False

        async def send_secured(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            if "headers" in message:
                present = {name for name, _ in message["headers"]}
                added = [header for header in _DEFAULT_HEADERS if header[0] not in present]
                message = {**message, "headers": [*message["headers"], *added]}
            await send(message)

        if refusal := _costly(scope):
            await refusal(scope, receive, send_secured)  # at once, because its headers would fill the memory
            return
        await self._turns_of(scope["path"]).next()
        known = scope["type"] == "websocket" or scope["path"] in _ANY_HOST
        headers = Headers(scope=scope)
        self._untrusted_proxy.check(scope, headers)
        known = known or is_own_host(headers.get("host", ""), self.hosts)
        app = self.app if known else _MISDIRECTED
        if "transfer-encoding" in headers and "content-length" in headers:
            # a proxy that uses the other one would take the rest of the body for a request of another client
            app = _TWO_LENGTHS
        try:
            await app(scope, receive, send_secured)
        except asyncio.CancelledError:
            if not is_cancelled():
                raise
            # uvicorn cancels requests when the worker stops, and would log a traceback for each
            if not has_begun:
                await _STOPPING(scope, receive, send_secured)

    def _turns_of(self, path: str) -> Turns:
        return self._separate_turns.get(INTAKE_PREFIX if path.startswith(INTAKE_PREFIX) else path, self._turns)


def _costly(scope: Scope) -> Response | None:
    """Return the refusal of a request that would keep the event loop busy for milliseconds; else `None`."""
    if len(scope["headers"]) > MAX_HEADERS:
        return _MANY_HEADERS
    return _LONG_QUERY if len(scope.get("query_string", b"")) > _MAX_QUERY else None


def _name(host: str) -> str:
    """Return a `Host` without its port, which some proxies remove."""
    name = host.lower()
    name = name.partition("]")[0][1:] if name.startswith("[") else name.partition(":")[0]
    return name.removesuffix(".")


def is_own_host(host: str, hosts: Container[str]) -> bool:
    """Return whether a `Host` is an address, a name that no one can register, or one of `hosts`.

    With any other name, a page of another site could read our pages, if the name resolves to this worker (DNS
    rebinding).
    """
    name = _name(host)
    if "." not in name or name.endswith(_NOT_PUBLIC) or name in hosts or "*" in hosts:
        return True
    with suppress(ValueError):
        return bool(ipaddress.ip_address(name))
    return False
