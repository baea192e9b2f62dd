"""Few requests without a valid token wait for their bodies at once."""

import asyncio
from collections.abc import MutableMapping
from typing import Any

import pytest
from http_fetch import fetch
from starlette.requests import Request
from starlette.responses import Response

from otp_stream.asgi import Fields, form_route
from otp_stream.core.http_token import HttpToken
from otp_stream.core.request_rate import RequestRate
from otp_stream.intake.hook_receiver import HookFailedError, HookReceiver
from otp_stream.intake.producers import Producers
from otp_stream.request_body import MOST_WAITING, Bodies, TooManyBodiesError

LIMITS = {"most_bytes": 100, "timeout_s": 30.0}


class Client:
    """A client whose body arrives when the test has it sent."""

    def __init__(self, host: str = "192.0.2.7") -> None:
        self.asked = asyncio.Event()
        self.sends = asyncio.Event()
        scope = {"type": "http", "method": "POST", "path": "/login", "headers": [], "client": (host, 1)}
        self.request = Request(scope, self.receive)

    async def receive(self) -> MutableMapping[str, Any]:
        self.asked.set()
        await self.sends.wait()
        return {"type": "http.request", "body": b"token=x"}


async def waits(bodies: Bodies, client: Client, *, is_known: bool = False) -> "asyncio.Task[bytes]":
    task = asyncio.create_task(bodies.read(client.request, **LIMITS, is_known=is_known))
    await asyncio.wait_for(client.asked.wait(), 10)
    return task


async def test_the_one_that_waits_longest_is_refused_and_the_new_one_is_read() -> None:
    bodies, clients = Bodies(3), [Client() for _ in range(4)]
    first, *others = [await waits(bodies, it) for it in clients]
    with pytest.raises(TooManyBodiesError):
        await asyncio.wait_for(first, 10)
    assert not any(it.done() for it in others)
    for it in clients:
        it.sends.set()
    assert await asyncio.wait_for(asyncio.gather(*others), 10) == [b"token=x"] * 3
    for _ in range(9):  # those that have ended no longer count
        later = Client()
        later.sends.set()
        assert await asyncio.wait_for(await waits(bodies, later), 10) == b"token=x"


async def test_a_network_with_few_requests_loses_none_to_one_with_many() -> None:
    bodies, alone = Bodies(3), Client("198.51.100.1")
    task = await waits(bodies, alone)
    # the addresses of one /64 network are one client's
    others = [await waits(bodies, Client(f"2001:db8::{it}")) for it in range(9)]
    await asyncio.wait(others[:7], timeout=10)
    assert [it.done() for it in others] == [True] * 7 + [False] * 2
    alone.sends.set()
    assert await asyncio.wait_for(task, 10) == b"token=x"
    for it in others[7:]:
        it.cancel()


async def test_requests_with_a_valid_token_do_not_count() -> None:
    bodies, clients = Bodies(1), [Client() for _ in range(3)]
    tasks = [await waits(bodies, clients[0]), *[await waits(bodies, it, is_known=True) for it in clients[1:]]]
    for it in clients:
        it.sends.set()
    assert await asyncio.wait_for(asyncio.gather(*tasks), 10) == [b"token=x"] * 3


async def test_a_form_that_waits_too_long_gets_503_and_ends_its_connection() -> None:
    async def submit(_: Request, fields: Fields) -> Response:
        return Response(fields["token"])

    bodies = Bodies(1)
    sent: list[MutableMapping[str, Any]] = []
    client = Client()

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    route = form_route(submit, bodies)
    slow = asyncio.ensure_future(route(client.request.scope, client.receive, send))
    await asyncio.wait_for(client.asked.wait(), 10)
    assert (await fetch("POST", "/login", b"token=x", to=route))[0] == 200
    await asyncio.wait_for(slow, 10)
    assert sent[0]["status"] == 503
    assert {(b"retry-after", b"1"), (b"connection", b"close")} <= set(sent[0]["headers"])


def hooks(bodies: Bodies) -> HookReceiver:
    no_submitter: Any = None
    tokens: list[HttpToken] = []
    return HookReceiver(
        Producers(lambda: tokens, RequestRate(1)), no_submitter, bodies, lambda: {"supabase": [b"k" * 16]}
    )


def hook_request(client: Client, **headers: str) -> Request:
    given = {"content-type": "application/json"} | {name.replace("_", "-"): it for name, it in headers.items()}
    found = [(name.encode(), value.encode()) for name, value in given.items()]
    return Request({**client.request.scope, "headers": found, "path": "/v1/hooks/supabase"}, client.receive)


async def test_a_hook_without_a_signature_is_refused_before_its_body_is_read() -> None:
    client, receiver = Client(), hooks(Bodies())
    hook = receiver.find("supabase")
    assert hook is not None
    with pytest.raises(HookFailedError, match="webhook-signature: are required"):
        await asyncio.wait_for(receiver.receive(hook, hook_request(client), lambda: None), 10)
    assert not client.asked.is_set()


async def test_forms_and_hooks_without_a_valid_signature_share_the_places() -> None:
    bodies, client = Bodies(MOST_WAITING), Client()
    receiver = hooks(bodies)
    hook = receiver.find("supabase")
    assert hook is not None
    signed = {"webhook_id": "a", "webhook_timestamp": "1", "webhook_signature": "v1,YQ=="}
    task = asyncio.create_task(receiver.receive(hook, hook_request(client, **signed), lambda: None))
    await asyncio.wait_for(client.asked.wait(), 10)
    forms = [await waits(bodies, Client()) for _ in range(MOST_WAITING)]
    with pytest.raises(HookFailedError, match="too many requests wait for their bodies") as failed:
        await asyncio.wait_for(task, 10)
    response = failed.value.response()
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert response.headers["connection"] == "close"
    assert not any(it.done() for it in forms)
    for it in forms:
        it.cancel()
