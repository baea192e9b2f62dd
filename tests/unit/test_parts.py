"""The parts of a worker start and stop in order."""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from rabbitmq import free_port
from tenants import tenants_toml

from otp_stream import parts as module
from otp_stream.app import assemble
from otp_stream.core.state import Phase
from otp_stream.embedded import EmbeddedBroker
from otp_stream.mail import Composer
from otp_stream.parts import Parts
from otp_stream.relay import SmtpRelay
from otp_stream.settings import load
from otp_stream.tables import Tables
from otp_stream.telemetry import Observer


def make(**values: Any) -> Parts:
    defaults: dict[str, Any] = {
        "_env_file": None, "worker": True, "rabbitmq_url": f"memory://127.0.0.1:{free_port()}",
        "sender_email": "no-reply@example.com", "smtp_host": "127.0.0.1", "smtp_tls": "none", "smtp_auth": "none",
    }  # fmt: skip
    settings, problems = load(**defaults | values)
    return assemble(settings, problems)


async def test_the_last_records_reach_redis_before_tasks_end_and_connections_are_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[str] = []

    def record(owner: Any, method: str, name: str) -> None:
        original: Callable[..., Any] = getattr(owner, method)

        def recorded(*args: Any) -> Any:
            calls.append(name)
            return original(*args)

        monkeypatch.setattr(owner, method, recorded)

    record(Observer, "open", "open traces")
    record(EmbeddedBroker, "start", "start embedded broker")
    record(Tables, "close", "tables")
    record(module, "cancel_and_wait", "tasks")
    record(SmtpRelay, "close", "relay")
    record(Composer, "close", "composer")
    record(Observer, "close", "traces")
    record(EmbeddedBroker, "stop", "embedded broker")
    parts = make()
    async with AsyncExitStack() as stack:
        await parts.start(stack)
        assert calls == ["open traces", "start embedded broker"]
        calls.clear()
    assert calls == ["tables", "tasks", "relay", "composer", "traces", "embedded broker"]


async def test_a_start_that_fails_stops_what_has_started() -> None:
    parts = make()
    assert parts.embedded is not None
    taken = await asyncio.start_server(lambda *_: None, parts.embedded.host, parts.embedded.port)
    async with taken:
        with pytest.raises(OSError, match="in use"):
            async with AsyncExitStack() as stack:
                await parts.start(stack)
    assert not parts.broker.running
    assert parts.relay._default._waiting.closed


@pytest.mark.parametrize(("worker", "phase"), [(True, "starting"), (False, "http_only")])
def test_parts_that_are_not_started_have_connected_to_nothing(worker: bool, phase: Phase) -> None:  # noqa: FBT001
    state = make(worker=worker).state()
    assert state.phase == phase
    assert (state.broker is None, state.tables is None, state.relays == ()) == (not worker,) * 3


def test_the_state_of_many_tenants_reads_that_of_the_broker_and_of_the_relays_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "tenants.toml"
    file.write_text(tenants_toml({f"shop-{number}": {"brand_name": f"Shop {number}"} for number in range(3)}))
    parts = make(tenants_file=file)
    assert not parts.problems
    read: list[str] = []
    for name, part in (("broker", parts.broker), ("relays", parts.relay)):
        _record_state(monkeypatch, name, part, read)
    assert parts.state().broker is not None
    assert sorted(read) == ["broker", "relays"]


def _record_state(monkeypatch: pytest.MonkeyPatch, name: str, part: Any, read: list[str]) -> None:
    state: Callable[[], Any] = part.state

    def recorded() -> Any:
        read.append(name)
        return state()

    monkeypatch.setattr(part, "state", recorded)


def test_a_worker_that_was_asked_to_stop_is_stopping_until_its_grace_time_is_over() -> None:
    parts = make(shutdown_grace_ms=60_000)
    assert parts.stopping.request()
    assert parts.state().phase == "stopping"
    assert not parts.stopping.over
    assert not parts.stopping.request()
    assert parts.stopping.over
