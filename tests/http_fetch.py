"""One HTTP request to the application, without a server."""

import asyncio
from collections.abc import MutableMapping
from typing import Any

from starlette.types import ASGIApp

from otp_stream.app import app


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
