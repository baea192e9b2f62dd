"""Probes of a relay, requested on the operations page or by a program."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from otp_stream.asgi import Fields, json_response, redirect
from otp_stream.core.audit import new_id
from otp_stream.core.probe import Probed

from .access import Access, Page, is_program, refuse
from .audit import audit
from .session import User

_BROWSER_WAIT_S = 2.0
"""How long a browser waits for the result before it is sent back to the page, which shows the result later."""

Probe = Callable[[str | None], Coroutine[Any, Any, list[Probed]]]
"""Probes one relay, or all that accept no mail, and returns the results."""


@dataclass(frozen=True, slots=True)
class ProbeView:
    """Answers `/probe`. A browser is sent back to the operations page; a program gets JSON."""

    probe: Probe
    access: Access
    page: Page
    name: str
    """This worker's."""
    _running: set[asyncio.Task[list[Probed]]] = field(default_factory=set[asyncio.Task[list[Probed]]])

    async def submit(self, request: Request, fields: Fields) -> Response:
        """Send a probe to the relay that the form names, or to each that accepts no mail."""
        relay = fields.get("relay") or None
        user = await self.access.operator(request, fields, self.page, "relay.probe", relay)
        if isinstance(user, Response):
            return user
        probed = await self._probe(request, user, relay)
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

    async def _probe(self, request: Request, user: User, relay: str | None) -> list[Probed] | None:
        """Return the results, or `None` if a browser would wait too long for them; the probe is finished anyway."""
        task = asyncio.create_task(self._recorded(request, user, relay))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        await asyncio.wait({task}, timeout=None if is_program(request) else _BROWSER_WAIT_S)
        return task.result() if task.done() else None

    async def _recorded(self, request: Request, user: User, relay: str | None) -> list[Probed]:
        record, about = partial(audit, request, user, "relay.probe"), {"id": new_id()}
        record("started", target=relay, details=about)
        try:
            probed = await self.probe(relay)
        except BaseException as error:
            record("failed", target=relay, details={**about, "error": type(error).__name__})
            raise
        names, results = ", ".join(it.relay.name for it in probed), ", ".join(it.result for it in probed)
        found = {"probe": results} if probed else {"error": "no such relay"}
        record("done" if probed else "refused", count=len(probed), target=names or relay, details={**about, **found})
        return probed
