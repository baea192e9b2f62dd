"""The mails that wait for a connection."""

import asyncio

from otp_stream.core.mail import Mail
from otp_stream.core.outcome import Outcome
from otp_stream.relay.availability import Availability
from otp_stream.relay.send_queue import PendingSend
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
