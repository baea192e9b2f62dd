"""Answers over ASGI, with nothing in them that a browser could run or load from elsewhere."""

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
"""What a form brings."""

POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
"""What a page of ours may load and do: nothing from elsewhere."""
FRAME_POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'self'; sandbox"
"""What an e-mail may that is shown in a frame of ours: no more than in a mail reader."""
_SECURE = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
]


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole response."""

    body: bytes
    content_type: str
    status: int = 200
    policy: str = POLICY
    headers: tuple[tuple[bytes, bytes], ...] = ()


def as_json(content: object, status: int = 200) -> Answer:
    """Return `content` as JSON."""
    return Answer(json.dumps(content, ensure_ascii=False).encode(), "application/json", status)


def redirect(to: str, *, cookie: str | None = None) -> Answer:
    """Send a browser to another page after a form; `to` is relative, so that a path in front of ours does no harm."""
    headers = ((b"location", to.encode()), *(((b"set-cookie", cookie.encode()),) if cookie else ()))
    return Answer(b"", "text/plain", 303, headers=headers)


def answering(make: Callable[[Scope], Awaitable[Answer]]) -> Route:
    """Return the ASGI route that gives this answer to GET and HEAD."""

    async def route(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001 - ASGI's face
        allowed = scope["method"] in {"GET", "HEAD"}
        await _send(send, await make(scope) if allowed else _only("GET, HEAD"), head=scope["method"] == "HEAD")

    return route


def streaming(make: Callable[[], AsyncGenerator[bytes]], content_type: str, *, free: Callable[[], bool]) -> Route:
    """Return the ASGI route that goes on with its answer until its end, or until the one who asked is gone.

    Where there is no place `free`, the answer is 503. One who reads slowly is waited for, and so keeps the place as
    long as the connection: to give it to somebody else would let connections add up that nobody counts.
    """

    async def route(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "GET":
            await _send(send, _only("GET"))
            return
        if not free():
            await _send(send, _BUSY)
            return
        # what stands between would like to keep it until it is whole
        headers = _headers(Answer(b"", content_type, headers=((b"x-accel-buffering", b"no"),)))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        gone = asyncio.create_task(_gone(receive))
        chunks = make()
        try:
            async with aclosing(chunks):
                async for chunk in chunks:
                    if gone.done():
                        break
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            gone.cancel()

    return route


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def taking(make: Callable[[Scope, Fields], Awaitable[Answer]]) -> Route:
    """Return the ASGI route that takes a form by POST."""

    async def route(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST":
            await _send(send, _only("POST"))
            return
        try:
            async with asyncio.timeout(_FORM_S):
                fields = await _form(receive)
        except TimeoutError:
            await _send(send, _TOO_SLOW)
            return
        except ConnectionAbortedError:
            return
        await _send(send, _TOO_LARGE if fields is None else await make(scope, fields))

    return route


async def _form(receive: Receive) -> Fields | None:
    """Return the fields, `None` if they are too large. Raises `ConnectionAbortedError` if they do not arrive whole."""
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            # without its fields a request would mean more than was asked for: every relay instead of one
            raise ConnectionAbortedError
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > _FORM_LIMIT:
            return None
    try:
        # an empty field is kept: `domain=` are the dead letters without a recipient, not those of any domain
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


def _only(methods: str) -> Answer:
    told = f"method not allowed: use {methods.replace(', ', ' or ')}\n"
    return Answer(told.encode(), "text/plain", 405, headers=((b"allow", methods.encode()),))


_ANY_HOST = ("/livez", "/readyz")
_NOT_PUBLIC = (".internal", ".lan", ".local", ".localhost", ".svc", ".home.arpa")
_MISDIRECTED = Answer(b"unknown host name: add it to HTTP_HOSTS\n", "text/plain", 421)
_NOT_FOUND = Answer(b"not found\n", "text/plain", 404)


async def refuse(scope: Scope, send: Send, paths: Container[str], hosts: Container[str]) -> bool:
    """Answer a request that is for no path or no host name of ours, or for a WebSocket; whether it was one."""
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

    A page of another site could otherwise read ours through a name of its own that leads here (DNS rebinding).
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
_FORM_S = 10.0
_TOO_SLOW = Answer(b"the request did not arrive in time\n", "text/plain", 408, headers=((b"connection", b"close"),))
_TOO_LARGE = Answer(b"too large\n", "text/plain", 413)
_BUSY = Answer(b"too many look already\n", "text/plain", 503, headers=((b"retry-after", b"5"),))


def header(scope: Scope, name: bytes) -> str:
    """Return a request header, empty where there is none."""
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), "")
