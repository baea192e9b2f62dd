"""The HTTP paths and their routes."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import yaml
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.types import ASGIApp

from otp_stream.asgi import form_route, get_route, json_response, stream_route
from otp_stream.core.http_token import HttpToken
from otp_stream.core.state import WorkerState
from otp_stream.request_body import Bodies

from .access import Access
from .dashboard import Dashboard, Tables, Telemetry
from .dead_letters import DeadLetters, DeadLettersView
from .health import HealthView
from .pages import ASSETS, asyncapi_page
from .probe import Probe, ProbeView
from .session import Flags, Sessions
from .stream import EventStream
from .templates import Previews, TemplatesView


@dataclass(frozen=True, slots=True)
class Sources:
    """What the routes read and call."""

    state: Callable[[], WorkerState]
    telemetry: Telemetry
    refresh: Callable[[], Awaitable[None]]
    tables: Tables
    flags: Flags | None
    probe: Probe
    dead_letters: DeadLetters
    previews: Previews
    tokens: Callable[[], Sequence[HttpToken]]
    """Returns the tokens with which users log in."""
    session_keys: Sequence[bytes]
    """The first one signs sessions."""
    metrics: Callable[[str], tuple[bytes, str]]
    document: Callable[[], dict[str, Any]]
    on_stop: Callable[[Callable[[], Awaitable[None]]], object]
    """Has a function called when the worker stops."""
    bodies: Bodies
    public_keys: Callable[[], dict[str, Any]]
    """Returns the public keys with which producers seal codes, as a JWK Set."""
    name: str
    """This worker's, as `host:pid`."""
    version: str
    environment: str


def routes(sources: Sources) -> dict[str, ASGIApp]:
    """Return every path with its ASGI route."""
    stats = sources.telemetry.stats
    health = HealthView(sources.state, stats, sources.refresh, sources.metrics, sources.version)
    access = Access(Sessions(sources.tokens, sources.session_keys, sources.flags))
    about = sources.name, sources.version, sources.environment
    dashboard = Dashboard(health.fresh_state, sources.telemetry, sources.tables, access, *about)
    stream = EventStream(dashboard.snapshot, dashboard.may_see_jobs, lambda: sources.state().phase == "stopping")
    templates = TemplatesView(sources.previews)
    dead = DeadLettersView(sources.dead_letters, access, health.dead_letters, lambda: stats().endings)
    probe = ProbeView(sources.probe, access, dashboard.page, sources.name)
    sources.on_stop(dead.close)
    # the document does not change while the process runs, and takes milliseconds to make and to write
    document = cache(sources.document)
    views: dict[str, Callable[[Request], Awaitable[Response]]] = {
        "/": dashboard.page,
        "/dead": dead.page,
        "/templates": templates.page,
        "/preview": templates.preview,
        "/health": health.health,
        "/livez": health.alive,
        "/readyz": health.ready,
        "/metrics": health.metrics,
        "/jwks.json": partial(_public_keys, sources.public_keys),
        "/asyncapi": _constant(lambda: HTMLResponse(asyncapi_page(document()))),
        "/asyncapi.json": _constant(lambda: json_response(document())),
        "/asyncapi.yaml": _constant(lambda: Response(_yaml(document()), media_type="application/yaml")),
        **{f"/{name}": partial(_asset, name) for name in ASSETS},
    }
    forms = {"/replay": dead.replay, "/login": dead.log_in, "/logout": dead.log_out, "/probe": probe.submit}
    return {
        **{path: get_route(view) for path, view in views.items()},
        **{path: form_route(submit, sources.bodies) for path, submit in forms.items()},
        "/live": stream_route(stream.events, "text/event-stream", has_room=stream.has_room),
    }


async def _asset(name: str, _: Request) -> Response:
    content_type, content = ASSETS[name]
    return Response(content, media_type=content_type)


async def _public_keys(keys: Callable[[], dict[str, Any]], _: Request) -> Response:
    return json_response(keys())


def _constant(make: Callable[[], Response]) -> Callable[[Request], Awaitable[Response]]:
    """Return a view whose response is made once, at the first request."""
    response = cache(make)

    async def view(_: Request) -> Response:
        return response()

    return view


def _yaml(document: dict[str, Any]) -> str:
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
