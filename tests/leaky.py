"""The application, with one leak in each channel, each in another encoding: the test of the leak test runs it.

`LEAKS` in the environment is JSON with the secret for each channel.
"""

import base64
import json
import logging
import os
import subprocess
from functools import wraps
from pathlib import Path
from typing import Any

import redis
import structlog
from prometheus_client import Gauge
from starlette.responses import HTMLResponse

from otp_stream.app import app
from otp_stream.broker import outgoing
from otp_stream.broker.events import Event, Events
from otp_stream.telemetry import Observer

LEAKS: dict[str, str] = json.loads(os.environ["LEAKS"])
_SH = "while read line; do :; done"


def _leak_once(observer: Observer) -> None:
    half = len(LEAKS["log"]) // 2
    structlog.get_logger(__name__).info("first half", code=LEAKS["log"][:half])
    structlog.get_logger(__name__).info("second half", code=LEAKS["log"][half:])
    logging.getLogger("library").warning("GET /?to=%s", "".join(f"%{byte:02x}" for byte in LEAKS["library"].encode()))
    try:
        int(LEAKS["traceback"].encode().hex() + "?")
    except ValueError:
        structlog.get_logger(__name__).exception("failed")
    observer._tracer.annotate(note=base64.b64encode(f"to {LEAKS['telemetry']}".encode()).decode())
    server = redis.Redis.from_url(os.environ["REDIS_URL"])
    server.set("note", " ".join(LEAKS["Redis"].upper()))
    server.close()
    Path("note").write_text("".join(f"\\u{ord(it):04x}" for it in LEAKS["files"]), encoding="ascii")
    subprocess.Popen(["sh", "-c", f"{_SH} # {LEAKS['processes'].swapcase()}"], stdin=subprocess.PIPE)


def _before(kind: Any, name: str, leak: Any) -> None:
    method = getattr(kind, name)

    @wraps(method)
    def leaking(self: Any, *args: Any, **kwargs: Any) -> Any:
        leak(self, *args, **kwargs)
        return method(self, *args, **kwargs)

    setattr(kind, name, leaking)


def _after(owner: Any, name: str, leak: Any) -> None:
    function = getattr(owner, name)

    @wraps(function)
    def leaking(*args: Any, **kwargs: Any) -> Any:
        return leak(function(*args, **kwargs))

    setattr(owner, name, leaking)


_leaked: list[object] = []


def _on_attempt(observer: Observer, *_: object) -> None:
    if not _leaked:
        _leaked.append(observer)
        _leak_once(observer)


def _in_event(_: Events, event: Event, __: str | None) -> None:
    event.content["note"] = "".join(f"={byte:02X}" for byte in LEAKS["events"].encode())


def _in_headers(ours: dict[str, Any]) -> dict[str, Any]:
    note = base64.urlsafe_b64encode(LEAKS["headers"].encode()).decode()
    return ours | {"x-otp-note": note, "x-otp-job-id": f"j-{LEAKS['commands']}"}


_before(Observer, "attempt_ended", _on_attempt)
_before(Events, "enqueue", _in_event)
_after(outgoing, "_ours", _in_headers)
Gauge("leak", "A leak", ["note"], registry=app.parts.observer.metrics.registry).labels(LEAKS["metrics"][::-1]).set(1)
_after(HTMLResponse, "render", lambda it: it + "".join(f"&#{ord(char)};" for char in LEAKS["pages"]).encode())
