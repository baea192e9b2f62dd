"""Answers over ASGI: GET and HEAD only, and nothing that a browser could run or load from elsewhere."""

import json
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Route = Callable[[Scope, Receive, Send], Awaitable[None]]

POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""What a page of ours may load and do: nothing from elsewhere."""
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


def as_json(content: object, status: int = 200) -> Answer:
    """Return `content` as JSON."""
    return Answer(json.dumps(content, ensure_ascii=False).encode(), "application/json", status)


def answering(make: Callable[[Scope], Awaitable[Answer]]) -> Route:
    """Return the ASGI route that gives this answer."""

    async def route(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001 - ASGI's face
        allowed = scope["method"] in {"GET", "HEAD"}
        answer = await make(scope) if allowed else Answer(b"only GET and HEAD\n", "text/plain", 405)
        headers = [
            (b"content-type", answer.content_type.encode()),
            (b"content-length", str(len(answer.body)).encode()),
            (b"content-security-policy", answer.policy.encode()),
            *_SECURE,
        ]
        if not allowed:
            headers.append((b"allow", b"GET, HEAD"))
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        body = b"" if scope["method"] == "HEAD" else answer.body
        await send({"type": "http.response.body", "body": body})

    return route


def header(scope: Scope, name: bytes) -> str:
    """Return a request header, empty where there is none."""
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), "")
