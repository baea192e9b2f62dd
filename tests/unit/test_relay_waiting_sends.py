"""The mails that wait for a connection."""

import asyncio

from otp_stream.core.mail import Mail
from otp_stream.core.outcome import Outcome, TimedOut
from otp_stream.relay.availability import Availability
from otp_stream.relay.pending_send import PendingSend
from otp_stream.relay.slowness import Slowness
from otp_stream.relay.suspension import Suspension
from otp_stream.relay.waiting_sends import WaitingSends


async def test_a_call_that_was_cancelled_a_moment_ago_is_not_taken():
    relay = Availability("relay.example:25", 0, lambda: 0.0)
    waiting = WaitingSends([relay], Suspension(), lambda: 0)
    results: list[asyncio.Future[Outcome]] = [asyncio.get_running_loop().create_future() for _ in range(2)]
    for at, result in enumerate(results):
        waiting.push(PendingSend(Mail(f"u{at}@example.com", b""), 2, "jobs", 1_000, 1_000, result))
    results[0].cancel()
    taken = waiting.take(relay, urgent_only=False)
    assert taken is not None
    assert taken.result is results[1]


async def test_a_mail_that_comes_back_from_a_connection_and_is_no_longer_wanted_does_not_wait():
    """No relay may take mail now, and the last `recheck` may have been while the mail was on its connection."""
    waiting = WaitingSends([Availability("relay.example:25", 0, lambda: 0.0)], Suspension(), lambda: 0)
    result: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
    waiting.push(PendingSend(Mail("u@example.com", b""), 2, "jobs", 1_000, 1_000, result, wanted=lambda: False))
    assert result.result() == TimedOut()
    assert not len(waiting)


async def test_mails_that_have_waited_for_a_second_without_a_break_are_a_backlog():
    relays = [Availability(name, 0, lambda: 0.0, Slowness()) for name in ("a:25", "b:25")]
    waiting = WaitingSends(relays, Suspension(), lambda: 0)
    choice = waiting.choice
    assert choice is not None
    for _ in range(2):
        waiting.push(
            PendingSend(Mail("u@example.com", b""), 2, "jobs", 1_000, 1_000, asyncio.get_running_loop().create_future())
        )
        for _ in range(9):
            choice.tick()
        assert not choice.has_backlog
        choice.tick()
        assert choice.has_backlog
        assert waiting.take(relays[0], urgent_only=False) is not None
        assert waiting.take(relays[0], urgent_only=False) is None
        assert not choice.has_backlog
