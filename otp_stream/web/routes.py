"""The HTTP paths and their routes."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import yaml
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.types import ASGIApp

from otp_stream.asgi import form_route, get_route, json_response, stream_route
from otp_stream.core.state import WorkerState

from .dashboard import Dashboard, Tables, Telemetry
from .dead_letters import DeadLetters, DeadLettersView
from .health import HealthView
from .pages import ASSETS, asyncapi_page
from .probe import Probe, ProbeView
from .session import Flags, Sessions
from .stream import MAX_VIEWERS, EventStream
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
    http_token: str | None
    """Required to replay dead letters and to probe a relay from a page."""
    metrics: Callable[[str], tuple[bytes, str]]
    document: Callable[[], dict[str, Any]]
    name: str
    """This worker's, as `host:pid`."""
    version: str
    environment: str


def routes(sources: Sources) -> dict[str, ASGIApp]:
    """Return every path with its ASGI route."""
    stats = sources.telemetry.stats
    health = HealthView(sources.state, stats, sources.refresh, sources.metrics, sources.version)
    sessions = Sessions(sources.http_token, sources.flags)
    about = sources.name, sources.version, sources.environment
    dashboard = Dashboard(health.fresh_state, sources.telemetry, sources.tables, sessions, *about)
    stream = EventStream(dashboard.snapshot, is_stopping=lambda: sources.state().phase == "stopping")
    templates = TemplatesView(sources.previews)
    dead = DeadLettersView(sources.dead_letters, sessions, health.dead_letters, lambda: stats().endings)
    probe = ProbeView(sources.probe, sessions, dashboard.page, sources.name)
    document = cache(sources.document)  # it does not change while the process runs, and takes milliseconds to make
    views: dict[str, Callable[[Request], Awaitable[Response]]] = {
        "/": dashboard.page,
        "/dead": dead.page,
        "/templates": templates.page,
        "/preview": templates.preview,
        "/health": health.health,
        "/livez": health.alive,
        "/readyz": health.ready,
        "/metrics": health.metrics,
        "/asyncapi": partial(_asyncapi_page, document),
        "/asyncapi.json": partial(_asyncapi_json, document),
        "/asyncapi.yaml": partial(_asyncapi_yaml, document),
        **{f"/{name}": partial(_asset, name) for name in ASSETS},
    }
    forms = {"/replay": dead.replay, "/login": dead.login, "/logout": dead.logout, "/probe": probe.submit}
    return {
        **{path: get_route(view) for path, view in views.items()},
        **{path: form_route(submit) for path, submit in forms.items()},
        "/live": stream_route(stream.events, "text/event-stream", has_room=lambda: stream.viewers < MAX_VIEWERS),
    }


async def _asset(name: str, _: Request) -> Response:
    content_type, content = ASSETS[name]
    return Response(content, media_type=content_type)


async def _asyncapi_page(document: Callable[[], dict[str, Any]], _: Request) -> Response:
    return HTMLResponse(asyncapi_page(document()))


async def _asyncapi_json(document: Callable[[], dict[str, Any]], _: Request) -> Response:
    return json_response(document())


async def _asyncapi_yaml(document: Callable[[], dict[str, Any]], _: Request) -> Response:
    text = yaml.safe_dump(document(), sort_keys=False, allow_unicode=True)
    return Response(text, media_type="application/yaml")
