"""ASGI routes and responses, with headers that keep a browser from loading anything from other sites."""

import asyncio
import ipaddress
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Container, Mapping, MutableMapping
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Route = Callable[[Scope, Receive, Send], Awaitable[None]]
Fields = Mapping[str, str]
"""The fields of a form."""

POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
"""The Content-Security-Policy of our pages: everything from this worker, nothing from other sites."""
FRAME_POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'self'; sandbox"
"""The policy of an e-mail in a frame of our pages: no scripts and no requests, as in a mail client."""
_SECURE = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
]


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete response."""

    body: bytes
    content_type: str
    status: int = 200
    policy: str = POLICY
    headers: tuple[tuple[bytes, bytes], ...] = ()


def as_json(content: object, status: int = 200) -> Answer:
    """Return `content` as JSON."""
    return Answer(json.dumps(content, ensure_ascii=False).encode(), "application/json", status)


def redirect(to: str, *, cookie: str | None = None) -> Answer:
    """Redirect a browser after a form. `to` is relative, so that it is right behind a proxy with a path prefix, too."""
    headers = ((b"location", to.encode()), *(((b"set-cookie", cookie.encode()),) if cookie else ()))
    return Answer(b"", "text/plain", 303, headers=headers)


def get_route(view: Callable[[Scope], Awaitable[Answer]]) -> Route:
    """Return an ASGI route for GET and HEAD."""

    async def route(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001 - ASGI's signature
        allowed = scope["method"] in {"GET", "HEAD"}
        answer = await view(scope) if allowed else _method_not_allowed("GET, HEAD")
        await _send(send, answer, head=scope["method"] == "HEAD")

    return route


def stream_route(
    make_chunks: Callable[[], AsyncGenerator[bytes]], content_type: str, *, has_room: Callable[[], bool]
) -> Route:
    """Return an ASGI route that sends chunks until there are no more, or until the client disconnects.

    Unless there `has_room` for another client, the answer is 503. A client that reads slowly counts until its
    connection ends, so that the limit holds for open connections.
    """

    async def route(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "GET":
            await _send(send, _method_not_allowed("GET"))
            return
        if not has_room():
            await _send(send, _BUSY)
            return
        # without this header, nginx buffers the response until it is complete
        headers = _headers(Answer(b"", content_type, headers=((b"x-accel-buffering", b"no"),)))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        disconnected = asyncio.create_task(_wait_for_disconnect(receive))
        chunks = make_chunks()
        try:
            async with aclosing(chunks):
                async for chunk in chunks:
                    if disconnected.done():
                        break
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            disconnected.cancel()

    return route


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def form_route(submit: Callable[[Scope, Fields], Awaitable[Answer]]) -> Route:
    """Return an ASGI route for a form, sent by POST."""

    async def route(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST":
            await _send(send, _method_not_allowed("POST"))
            return
        try:
            async with asyncio.timeout(_FORM_TIMEOUT_S):
                fields = await _read_form(receive)
        except TimeoutError:
            await _send(send, _TOO_SLOW)
            return
        except ConnectionAbortedError:
            return
        await _send(send, _TOO_LARGE if fields is None else await submit(scope, fields))

    return route


async def _read_form(receive: Receive) -> Fields | None:
    """Return the fields, `None` if they are too large. Raises `ConnectionAbortedError` if the client disconnects."""
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            # an incomplete form could mean more than was requested: every relay instead of one
            raise ConnectionAbortedError
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > _FORM_LIMIT:
            return None
    try:
        # an empty field is kept: `domain=` selects the dead letters without a recipient, not those of every domain
        return dict(parse_qsl(body.decode(errors="replace"), keep_blank_values=True, max_num_fields=20))
    except ValueError:
        return None


async def _send(send: Send, answer: Answer, *, head: bool = False) -> None:
    headers = [*_headers(answer), (b"content-length", str(len(answer.body)).encode())]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if head else answer.body})


def _headers(answer: Answer) -> list[tuple[bytes, bytes]]:
    return [
        (b"content-type", answer.content_type.encode()),
        (b"content-security-policy", answer.policy.encode()),
        *_SECURE,
        *answer.headers,
    ]


def _method_not_allowed(allowed: str) -> Answer:
    text = f"method not allowed: use {allowed.replace(', ', ' or ')}\n"
    return Answer(text.encode(), "text/plain", 405, headers=((b"allow", allowed.encode()),))


_ANY_HOST = ("/livez", "/readyz")
_NOT_PUBLIC = (".internal", ".lan", ".local", ".localhost", ".svc", ".home.arpa")
_MISDIRECTED = Answer(b"unknown host name: add it to HTTP_HOSTS\n", "text/plain", 421)
_NOT_FOUND = Answer(b"not found\n", "text/plain", 404)


async def refuse(scope: Scope, send: Send, paths: Container[str], hosts: Container[str]) -> bool:
    """Answer a request for an unknown path or host name, or for a WebSocket, and return whether it was one."""
    if scope["type"] == "websocket":
        await _refuse_websocket(scope, send)
    elif scope["path"] not in _ANY_HOST and not is_own_host(header(scope, b"host"), hosts):
        await _send(send, _MISDIRECTED)
    elif scope["path"] not in paths:
        await _send(send, _NOT_FOUND)
    else:
        return False
    return True


async def _refuse_websocket(scope: Scope, send: Send) -> None:
    if "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": 1000})  # the server answers 403
        return

    async def reply(message: MutableMapping[str, Any]) -> None:
        await send({**message, "type": f"websocket.{message['type']}"})

    await _send(reply, _NOT_FOUND)


def is_own_host(host: str, hosts: Container[str]) -> bool:
    """Whether a `Host` can only mean this worker: an address, a name that no one can register, or one of `hosts`.

    Otherwise a page of another site could read ours through its domain name, if that resolves to this worker (DNS
    rebinding).
    """
    name = host.lower()
    name = name.partition("]")[0][1:] if name.startswith("[") else name.partition(":")[0]
    name = name.removesuffix(".")
    if "." not in name or name.endswith(_NOT_PUBLIC) or name in hosts or "*" in hosts:
        return True
    with suppress(ValueError):
        return bool(ipaddress.ip_address(name))
    return False


_FORM_LIMIT = 10_000
_FORM_TIMEOUT_S = 10.0
_TOO_SLOW = Answer(b"the request did not arrive in time\n", "text/plain", 408, headers=((b"connection", b"close"),))
_TOO_LARGE = Answer(b"too large\n", "text/plain", 413)
_BUSY = Answer(b"too many viewers: try again later\n", "text/plain", 503, headers=((b"retry-after", b"5"),))


def header(scope: Scope, name: bytes) -> str:
    """Return a request header, or an empty string."""
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), "")
