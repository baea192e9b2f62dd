"""A relay that sends TLS records without data, on uvloop as in a worker."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import uvloop
from certificates import Authority
from smtp_relay import send
from ticket_relay import TicketRelay

from otp_stream.core.outcome import Accepted, Unavailable
from otp_stream.relay import RelayConfig, SmtpRelay

_STALL_S = 1.0
"""Tickets without end stop an event loop for good, or for 10 s and more; the limit takes 0.1 s for each connection."""


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


async def longest_stall(ends: Callable[[], bool]) -> float:
    """Return how long the event loop ran nothing else, at most, until a condition is true."""
    longest, before = 0.0, time.monotonic()
    async with asyncio.timeout(20):
        while not ends():
            await asyncio.sleep(0.01)
            now = time.monotonic()
            longest, before = max(longest, now - before), now
    return longest


def run(relay: TicketRelay, scene: Callable[[SmtpRelay], Awaitable[None]]) -> None:
    """Run a scene with a client of the relay."""

    async def main() -> None:
        mode = "starttls" if relay.starttls else "implicit"
        ca_file = relay.authority.ca_file
        config = RelayConfig(
            "localhost", relay.port, "sender@example.com", tls=mode, helo="worker.example", ca_file=ca_file, pool_size=5
        )
        smtp = SmtpRelay(config)
        try:
            await scene(smtp)
        finally:
            await smtp.close(grace_s=0.2)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


@pytest.mark.parametrize("starttls", [False, True])
def test_tickets_without_end_in_place_of_a_greeting_end_the_connection_and_open_the_breaker(
    authority: Authority, *, starttls: bool
) -> None:
    async def scene(smtp: SmtpRelay) -> None:
        mail = asyncio.create_task(send(smtp))
        assert await longest_stall(mail.done) < _STALL_S
        outcome = await mail
        assert isinstance(outcome, Unavailable)
        assert outcome.reason == "tls_failed"
        assert outcome.error.startswith(f"localhost:{relay.port} sends TLS records without data")
        assert "certificate" not in outcome.error
        assert smtp.state()[0].circuit_breaker == "open"

    with TicketRelay(authority, starttls=starttls, limit=32 << 20) as relay:
        run(relay, scene)
        assert relay.sent[0] < 8 << 20


def test_tickets_without_end_on_an_idle_connection_end_it_and_open_the_breaker(authority: Authority) -> None:
    async def scene(smtp: SmtpRelay) -> None:
        assert isinstance(await send(smtp), Accepted)
        assert await longest_stall(lambda: smtp.state()[0].circuit_breaker == "open") < _STALL_S
        state = smtp.state()[0]
        assert (state.reason, state.connections) == ("tls_failed", 0)
        assert state.error is not None
        assert state.error.startswith(f"localhost:{relay.port} sends TLS records without data")

    with TicketRelay(authority, after="mail", limit=32 << 20) as relay:
        run(relay, scene)
        assert relay.accepted == 1


def test_a_few_tickets_are_no_flood(authority: Authority) -> None:
    async def scene(smtp: SmtpRelay) -> None:
        assert isinstance(await send(smtp), Accepted)
        await longest_stall(lambda: relay.sent[0] >= relay.limit)
        await asyncio.sleep(0.6)  # twice as long as between two checks
        assert (smtp.state()[0].circuit_breaker, smtp.state()[0].connections) == ("closed", 1)

    with TicketRelay(authority, after="mail", limit=16_000) as relay:
        run(relay, scene)
