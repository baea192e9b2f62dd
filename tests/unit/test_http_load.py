"""Requests of visitors take little time from the jobs."""

import asyncio
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from access import access, token
from http_fetch import fetch
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from otp_stream import clock
from otp_stream.asgi import SecureApp, get_route
from otp_stream.core.state import BrokerState, Phase, RelayState, WorkerState
from otp_stream.core.stats import Stats
from otp_stream.telemetry import metrics
from otp_stream.telemetry.metrics import Metrics
from otp_stream.web import cached, dashboard, dead_letters, health, pages
from otp_stream.web.cached import Cached
from otp_stream.web.dead_letters import DeadLettersView
from otp_stream.web.health import HealthView

ROUTES = sys.modules["otp_stream.web.routes"]  # the package has a function of this name


class Calls:
    """Counts the calls of a function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.number = 0
        self._function = function

    def __call__(self, *arguments: Any, **fields: Any) -> Any:
        self.number += 1
        return self._function(*arguments, **fields)


@pytest.mark.parametrize("path", ["/livez", "/", "/metrics"])
async def test_one_request_begins_in_each_iteration_of_the_event_loop(path: str) -> None:
    began: list[int] = []
    iteration = 0

    async def respond(scope: Scope, receive: Receive, send: Send) -> None:
        began.append(iteration)
        await Response()(scope, receive, send)

    secured = SecureApp(respond, ())
    requests = [asyncio.create_task(fetch("GET", path, to=secured)) for _ in range(20)]
    while not all(it.done() for it in requests):
        iteration += 1
        await asyncio.sleep(0)
    assert len(set(began)) == 20


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/v1/jobs", "/v1/jobs/1", "/v1/hooks/supabase"])
async def test_neither_a_probe_nor_a_job_waits_behind_a_page(path: str) -> None:
    began: list[str] = []

    async def respond(scope: Scope, receive: Receive, send: Send) -> None:
        began.append(scope["path"])
        await Response()(scope, receive, send)

    secured = SecureApp(respond, ())
    await asyncio.gather(*(fetch("GET", path, to=secured) for path in (*["/"] * 20, path)))
    assert began.index(path) < 3


@pytest.mark.parametrize(
    ("path", "module", "function"),
    [
        ("/", dashboard, "render"),
        ("/dead", dead_letters, "render"),
        ("/asyncapi", ROUTES, "asyncapi_page"),
        ("/asyncapi.json", ROUTES, "json_response"),
        ("/asyncapi.yaml", ROUTES, "_yaml"),
    ],
)
async def test_what_all_visitors_get_is_made_once_for_many(
    monkeypatch: pytest.MonkeyPatch, path: str, module: Any, function: str
) -> None:
    monkeypatch.setattr(cached, "LIFETIME_S", 60)
    made = Calls(getattr(module, function))
    monkeypatch.setattr(module, function, made)
    found = [await fetch(method, path) for method in ("GET", "HEAD") for _ in range(10)]
    assert {status for status, _, _ in found} == {200}
    assert made.number <= 1


async def test_a_refused_form_is_answered_with_a_page_that_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cached, "LIFETIME_S", 60)
    made = Calls(pages.render)
    for module in (dashboard, dead_letters):
        monkeypatch.setattr(module, "render", made)
    for path in ("/probe", "/replay") * 5:
        status, _, body = await fetch("POST", path, b"relay=x")
        assert status == 403
        assert b"log in with a token first" in body
    assert made.number <= 2


def test_metrics_are_rendered_once_for_many_requests_in_each_of_few_formats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_LIFETIME_S", 60)
    it = Metrics()
    collected = Calls(it.registry.collect)
    monkeypatch.setattr(it.registry, "collect", collected)
    types = {it.render(f"application/openmetrics-text;version=1.0.{number}")[1] for number in range(30)}
    types |= {it.render("text/plain")[1] for _ in range(30)}
    assert collected.number == len(types) == 2
    monkeypatch.setattr(metrics, "_LIFETIME_S", 0)
    it.render("text/plain")
    assert collected.number == 3


@pytest.mark.parametrize("version", ["a", "", "=", "1..0", "9" * 5000, "0.0.1", "2.0.0"])
def test_an_unknown_version_of_the_metrics_gets_a_known_one(version: str) -> None:
    for kind in ("application/openmetrics-text", "text/plain"):
        body, content_type = Metrics().render(f"{kind};version={version}")
        assert b"python_info" in body
        assert "version=1.0.0" in content_type or "version=0.0.4" in content_type


class Broker:
    """A worker's state with a broker whose figures are requested; it counts what it costs."""

    def __init__(self, age_ms: int = 0, cost_s: float = 0.0) -> None:
        self.states, self.refreshes = 0, 0
        self.cost_s = cost_s
        self.phase: Phase = "consuming"
        self._age_ms = age_ms

    def state(self) -> WorkerState:
        self.states += 1
        ends = time.thread_time() + self.cost_s
        while time.thread_time() < ends:
            pass
        broker = BrokerState("amqp://h", connected=True, reported_ms=clock.now_ms() - self._age_ms)
        return WorkerState(self.phase, broker, (RelayState("relay:25"),))

    async def refresh(self) -> None:
        self.refreshes += 1
        await asyncio.sleep(0.01)
        self._age_ms = 0

    def view(self) -> HealthView:
        return HealthView(self.state, lambda: Stats(0), self.refresh, lambda _: (b"", ""), "1")


def secured(view: HealthView) -> SecureApp:
    routes = {"/livez": view.alive, "/readyz": view.ready, "/health": view.health}
    apps = {path: get_route(it) for path, it in routes.items()}

    async def route(scope: Scope, receive: Receive, send: Send) -> None:
        await apps[scope["path"]](scope, receive, send)

    return SecureApp(route, ())


@pytest.mark.parametrize("age_ms", [0, 60_000])
async def test_the_state_is_made_once_for_many_probes(monkeypatch: pytest.MonkeyPatch, age_ms: int) -> None:
    monkeypatch.setattr(health, "LIFETIME_S", 60)
    monkeypatch.setattr(health, "_REUSED", 1e9)
    broker = Broker(age_ms)
    view = broker.view()
    to = secured(view)
    requests = [fetch("GET", path, to=to) for path in ("/readyz", "/health") * 50]
    assert {it[0] for it in await asyncio.gather(*requests)} == {200}
    assert broker.refreshes == (1 if age_ms else 0)
    # once for each path; if RabbitMQ's figures are too old, again after it has reported them
    assert broker.states <= (3 if age_ms else 2)


async def test_states_take_a_tenth_of_the_event_loop_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    broker = Broker(cost_s=0.01)
    to = secured(broker.view())
    since = time.monotonic()
    for _ in range(3_000):
        assert (await fetch("GET", "/readyz", to=to))[0] == 200
    # each is used for ten times as long as it took
    assert broker.states <= 2 + (time.monotonic() - since) / (10 * broker.cost_s)
    # however long it takes, at most for half a second
    monkeypatch.setattr(health, "_REUSED", 1e9)
    broker.phase, changed = "stopping", time.monotonic()
    while (await fetch("GET", "/readyz", to=to))[0] == 200:
        assert time.monotonic() - changed < 1.0
        await asyncio.sleep(0.01)


async def test_a_probe_notices_a_change_at_once_if_a_state_takes_no_time() -> None:
    broker = Broker()
    to = secured(broker.view())
    paths = ("/readyz", "/health")
    assert [(await fetch("GET", it, to=to))[0] for it in paths] == [200, 200]
    broker.phase, changed = "stopping", time.monotonic()
    for path in paths:
        while (await fetch("GET", path, to=to))[0] == 200:
            assert time.monotonic() - changed < 0.4
            await asyncio.sleep(0.001)


async def test_a_liveness_probe_reads_no_state_and_waits_behind_no_readiness_probe() -> None:
    began: list[str] = []

    async def respond(scope: Scope, receive: Receive, send: Send) -> None:
        began.append(scope["path"])
        await Response()(scope, receive, send)

    to = SecureApp(respond, ())
    await asyncio.gather(*(fetch("GET", path, to=to) for path in (*["/readyz"] * 20, "/livez")))
    assert began.index("/livez") < 3
    broker = Broker()
    assert (await fetch("GET", "/livez", to=secured(broker.view())))[0] == 200
    assert broker.states == 0


async def test_a_value_is_made_once_for_those_who_wait_and_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    async def make(key: str) -> int:
        made.append(key)
        await asyncio.sleep(0)
        return len(made)

    it = Cached(make)
    monkeypatch.setattr(cached, "LIFETIME_S", 60)
    assert await asyncio.gather(*(it.get("a") for _ in range(5)), it.get("b")) == [1, 1, 1, 1, 1, 2]
    monkeypatch.setattr(cached, "LIFETIME_S", 0)
    assert await it.get("a") == 3


async def test_a_user_gets_no_page_of_a_visitor() -> None:
    queue: Any = SimpleNamespace(fetch=_fetch)
    view = DeadLettersView(queue, access(token("f1d5a8c0327b46e9")), _none, dict)
    visitor = Request({"type": "http", "path": "/dead", "headers": [], "client": ("192.0.2.7", 1)})
    headers = [(b"authorization", b"Bearer f1d5a8c0327b46e9")]
    user = Request({"type": "http", "path": "/dead", "headers": headers, "client": ("192.0.2.7", 1)})
    pages = [(await view.page(it)).body for it in (visitor, user, visitor)]
    assert pages[0] == pages[2] != pages[1]


async def _none() -> None:
    return None


async def _fetch(**_: Any) -> tuple[list[Any], int]:
    return [], 0
