"""Probes of a relay, requested on the operations page or by a program."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Protocol

import structlog

from otp_stream.asgi import Answer, Fields, Scope, as_json, redirect
from otp_stream.core.probe import Probed

from .session import TOO_MANY, Sessions, client_name, is_program

_BROWSER_WAIT_S = 2.0
"""How long a browser waits for the result before it is sent back to the page, which shows the result later."""
_MAX_LOGGED = 200

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

Probe = Callable[[str | None], Coroutine[Any, Any, list[Probed]]]
"""Probes one relay, or all that accept no mail, and returns the results."""


class Page(Protocol):
    """Makes the operations page."""

    async def page(self, scope: Scope, refused: str | None = None, status: int = 200) -> Answer:
        """Return the page; `refused` is the reason why a form was refused."""
        ...


@dataclass(frozen=True, slots=True)
class ProbeView:
    """Answers `/probe`. A browser is sent back to the operations page; a program gets JSON."""

    probe: Probe
    sessions: Sessions
    dashboard: Page
    name: str
    """This worker's."""
    _running: set[asyncio.Task[list[Probed]]] = field(default_factory=set[asyncio.Task[list[Probed]]])

    async def submit(self, scope: Scope, fields: Fields) -> Answer:
        """Send a probe to the relay that the form names, or to each that accepts no mail."""
        if self.sessions.is_blocked(scope):
            return TOO_MANY
        if refusal := await self.sessions.refusal(scope, fields):
            return await self._refuse(scope, *refusal)
        _log.info("a probe is requested", by=client_name(scope), relay=fields.get("relay", "")[:_MAX_LOGGED])
        probed = await self._probe(fields.get("relay") or None, None if is_program(scope) else _BROWSER_WAIT_S)
        if probed is None:
            return redirect(".")
        if not probed:
            return await self._refuse(scope, "this process has no relay of that name, or runs with WORKER=false", 404)
        if is_program(scope):
            relays = [{"relay": it.relay.name, "result": it.result, "text": it.text} for it in probed]
            return as_json({"worker": self.name, "accepted": all(it.good for it in probed), "relays": relays})
        too_soon = next((it.text for it in probed if it.result == "too_soon"), None)
        return redirect(".") if too_soon is None else await self._refuse(scope, too_soon, 429)

    async def _probe(self, relay: str | None, wait_s: float | None) -> list[Probed] | None:
        """Return the results, or `None` if they take longer than `wait_s` seconds; the probe is finished anyway."""
        task = asyncio.create_task(self.probe(relay))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        await asyncio.wait({task}, timeout=wait_s)
        return task.result() if task.done() else None

    async def _refuse(self, scope: Scope, text: str, status: int) -> Answer:
        if is_program(scope):
            return Answer(f"{text}\n".encode(), "text/plain; charset=utf-8", status)
        return await self.dashboard.page(scope, text, status)
