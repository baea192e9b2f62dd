"""Probes of a relay, requested on the operations page or by a program."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import structlog
from starlette.requests import Request
from starlette.responses import Response

from otp_stream.asgi import Fields, json_response, redirect
from otp_stream.core.probe import Probed

from .session import TOO_MANY, Page, Sessions, client_name, is_program, refuse

_BROWSER_WAIT_S = 2.0
"""How long a browser waits for the result before it is sent back to the page, which shows the result later."""
_MAX_LOGGED = 200

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

Probe = Callable[[str | None], Coroutine[Any, Any, list[Probed]]]
"""Probes one relay, or all that accept no mail, and returns the results."""


@dataclass(frozen=True, slots=True)
class ProbeView:
    """Answers `/probe`. A browser is sent back to the operations page; a program gets JSON."""

    probe: Probe
    sessions: Sessions
    page: Page
    name: str
    """This worker's."""
    _running: set[asyncio.Task[list[Probed]]] = field(default_factory=set[asyncio.Task[list[Probed]]])

    async def submit(self, request: Request, fields: Fields) -> Response:
        """Send a probe to the relay that the form names, or to each that accepts no mail."""
        if self.sessions.is_blocked(request):
            return TOO_MANY
        if refusal := await self.sessions.refusal(request, fields):
            return await refuse(request, self.page, *refusal)
        _log.info("a probe is requested", by=client_name(request), relay=fields.get("relay", "")[:_MAX_LOGGED])
        probed = await self._probe(fields.get("relay") or None, None if is_program(request) else _BROWSER_WAIT_S)
        if probed is None:
            return redirect(".")
        if not probed:
            reason = "this process has no relay of that name, or runs with WORKER=false"
            return await refuse(request, self.page, reason, 404)
        if is_program(request):
            relays = [{"relay": it.relay.name, "result": it.result, "text": it.text} for it in probed]
            return json_response({"worker": self.name, "accepted": all(it.good for it in probed), "relays": relays})
        too_soon = next((it.text for it in probed if it.result == "too_soon"), None)
        return redirect(".") if too_soon is None else await refuse(request, self.page, too_soon, 429)

    async def _probe(self, relay: str | None, wait_s: float | None) -> list[Probed] | None:
        """Return the results, or `None` if they take longer than `wait_s` seconds; the probe is finished anyway."""
        task = asyncio.create_task(self.probe(relay))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        await asyncio.wait({task}, timeout=wait_s)
        return task.result() if task.done() else None
