"""The page of dead letters: its counts, its age and the report of the last replay."""

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import pytest
from access import KEY, access, log_in, token
from starlette.requests import Request

from otp_stream.clock import MACHINE
from otp_stream.core.dead_letter import DeadLetter, DeadLettersError, DeadLettersInUseError, Group, grouped
from otp_stream.core.dead_letter_filter import DeadLetterFilter
from otp_stream.core.http_token import HttpToken
from otp_stream.web import cached, dead_letters
from otp_stream.web.access import Access
from otp_stream.web.dead_letters import DeadLettersView
from otp_stream.web.session import Sessions

TOKEN = "correct-horse-battery"


def request(client: str = "192.0.2.7", **headers: str) -> Request:
    encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "path": "/dead", "headers": encoded, "client": (client, 1)})


LOGGED_IN = request(authorization=f"Bearer {TOKEN}")


def dead_letter(job_id: str, reason: str = "rejected", **more: Any) -> DeadLetter:
    fields: dict[str, Any] = {
        "error": "550 5.1.1 no", "attempt": 1, "recipient": "u***@example.com", "template": "otp",
        "died_ms": 1000, "first_seen_ms": 0, "expires_ms": None, "allowed_ms": None, "size": 10,
    }  # fmt: skip
    return DeadLetter(job_id=job_id, reason=reason, **(fields | more))


class Queue:
    """Dead letters, and a broker that counts them."""

    def __init__(self, *stored: DeadLetter) -> None:
        self.stored = list(stored)
        self.fetches = 0
        self.error: Exception | None = None
        self.away: Exception | None = None
        self.replayed = 1

    async def fetch(self, *, limit: int, timeout_s: float) -> tuple[list[DeadLetter], int]:
        assert timeout_s < 5  # a user waits
        self.fetches += 1
        if self.away:
            raise self.away
        return self.stored[:limit], 0

    async def count(self) -> int | None:
        return len(self.stored)

    async def replay(self, which: DeadLetterFilter, **_: Any) -> Any:
        if self.error:
            raise self.error

        return SimpleNamespace(replayed=self.replayed, expired=0, erased=0)


class Clock:
    """The time in the view."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1_700_000_000.0
        monkeypatch.setattr(dead_letters.time, "monotonic", lambda: self.now_s)
        monkeypatch.setattr(MACHINE, "_time_ns", lambda: int(self.now_s * 1e9))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


ENDINGS = {"sent": 900, "rejected": 3, "retries_exhausted": 0}


def opened(queue: Queue, token: str | None = TOKEN) -> DeadLettersView:
    return DeadLettersView(queue, access(token), queue.count, lambda: ENDINGS)


async def page(view: DeadLettersView) -> str:
    """Return what is shown to those who are logged in."""
    return (await view.page(LOGGED_IN)).body.decode()


async def visited(view: DeadLettersView) -> str:
    """Return what is shown to anyone else."""
    return (await view.page(request())).body.decode()


async def test_a_visitor_sees_only_counts_and_no_message_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = Queue(dead_letter("one"), dead_letter("two"))
    view = opened(queue)
    html = await visited(view)
    assert "<strong>2</strong> jobs could not be sent" in html
    assert "<span>rejected</span> <strong>3</strong>" in html
    assert "retries exhausted" not in html
    assert 'name="token"' in html
    await page(view)
    fetches = queue.fetches
    html = await visited(view)  # what was fetched for others is not for visitors either
    for secret in ("example.com", "550 5.1.1", 'title="one"', 'name="key"'):
        assert secret not in html
    queue.stored.clear()
    monkeypatch.setattr(cached, "LIFETIME_S", 0)
    assert "There are none." in await visited(view)
    assert queue.fetches == fetches == 1


async def test_without_a_token_no_one_can_log_in_and_the_page_names_the_commands() -> None:
    queue = Queue(dead_letter("one"))
    html = await visited(opened(queue, token=None))
    assert "<strong>1</strong> job could not be sent" in html
    assert "Set <code>HTTP_TOKEN</code>" in html
    assert "otp-stream dead list" in html
    assert 'name="token"' not in html
    assert queue.fetches == 0


async def test_a_visitor_sees_that_the_number_is_unknown() -> None:
    async def unknown() -> None:
        return None

    queue = Queue(dead_letter("one"))
    html = await visited(DeadLettersView(queue, access(TOKEN), unknown, dict))
    assert "Their number is unknown" in html


async def test_a_replay_is_reported_to_users_who_are_logged_in(clock: Clock) -> None:
    view = opened(Queue(dead_letter("one")))
    await replayed(view)
    assert "token@192.0.2.7" in await page(view)
    assert "token@192.0.2.7" not in await visited(view)


async def replayed(view: DeadLettersView) -> None:
    assert (await view.replay(LOGGED_IN, {"reason": "rejected"})).status_code == 303
    assert view._running is not None
    await view._running


class _LongQueue(Queue):
    """Its replay ends only when it is interrupted."""

    def __init__(self, tokens: list[HttpToken]) -> None:
        super().__init__()
        self.done = 0
        self._tokens = tokens

    async def replay(self, which: DeadLetterFilter, **options: Any) -> Any:
        while self.done < 1_000:
            self.done += 1
            if self.done == 3:
                self._tokens.clear()
            options["progress"](self.done, 1_000)
            await asyncio.sleep(0)


async def test_a_replay_ends_when_its_operators_token_is_removed(capsys: pytest.CaptureFixture[str]) -> None:
    tokens = [token(TOKEN)]
    queue = _LongQueue(tokens)
    view = DeadLettersView(queue, Access(Sessions(lambda: tokens, [KEY])), queue.count, lambda: ENDINGS)
    with pytest.raises(asyncio.CancelledError):
        await replayed(view)
    assert queue.done == 3
    line = capsys.readouterr().out.splitlines()[-1]
    assert "count=3" in line
    assert "result=interrupted" in line


async def test_the_page_shows_its_age_and_is_read_again_when_the_broker_counts_another_number(
    clock: Clock,
) -> None:
    queue = Queue(dead_letter("one"))
    view = opened(queue)
    await page(view)
    clock.now_s += 20
    assert "As they were 20 s ago" in await page(view)
    assert queue.fetches == 1
    queue.stored.append(dead_letter("two"))
    html = await page(view)
    assert "two" in html
    assert "As they are now." in html
    queue.stored.clear()
    clock.now_s += 1  # frequent reloads do not fetch every message each time
    assert "two" in await page(view)
    clock.now_s += 5
    assert "There are none." in await page(view)
    clock.now_s += 60
    await page(view)
    assert queue.fetches == 4


async def test_a_replay_is_reported_with_user_and_time_and_not_for_ever(clock: Clock) -> None:
    view = opened(Queue(dead_letter("one")))
    await replayed(view)
    clock.now_s += 90
    html = await page(view)
    assert "1 job is being sent again (reason rejected)" in html
    assert "90 s ago, token@192.0.2.7" in html
    clock.now_s += 600
    assert "being sent again (" not in await page(view)


async def test_a_replay_that_fails_is_not_shown_as_a_queue_that_cannot_be_read(clock: Clock) -> None:
    queue = Queue(dead_letter("one"))
    queue.error = RuntimeError("the queue is in use")
    view = opened(queue)
    await replayed(view)
    clock.now_s += 5
    html = await page(view)
    assert "A replay was not completed" in html
    assert "the queue is in use (reason rejected)" in html
    assert "The queue cannot be read" not in html
    assert 'title="one"' in html


async def test_a_message_that_is_not_a_valid_job_cannot_be_sent_again() -> None:
    queue = Queue(dead_letter("no-job", "malformed", recipient=""))
    view = opened(queue)
    html = await page(view)
    assert "it would fail again" in html
    assert "<button>Send again" not in html
    assert "otp-stream dead drop reason=malformed" in html
    queue.stored.append(dead_letter("job", expires_ms=time.time_ns() // 1_000_000 + 60_000))
    html = await page(opened(queue))
    assert html.count("<button>Send again") == 1


async def test_a_queue_that_cannot_be_read_is_tried_again_soon_and_not_shown_as_current(clock: Clock) -> None:
    queue = Queue(dead_letter("j-1"))
    view = opened(queue)
    await page(view)
    clock.now_s += 40
    queue.away = DeadLettersError("the broker does not answer")
    html = await page(view)
    assert "The queue cannot be read" in html
    assert "As they were 40 s ago" in html
    assert "As they are now" not in html
    queue.away = None
    clock.now_s += 4
    html = await page(view)
    assert "The queue cannot be read" not in html
    assert "As they are now" in html


async def test_a_queue_in_use_is_no_alarm(clock: Clock) -> None:
    queue = Queue(dead_letter("j-1"))
    view = opened(queue)
    await page(view)
    clock.now_s += 40
    queue.away = DeadLettersInUseError("another user or command is reading the dead-letter queue")
    html = await page(view)
    assert "Another user or command is reading" in html
    assert 'title="j-1"' in html
    assert "The queue cannot be read" not in html


async def test_who_looks_is_recorded_once_for_each_reading(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    queue = Queue(dead_letter("one"))
    view = opened(queue)
    for number in range(30):
        for _ in range(2):
            await view.page(request(f"2001:db8::{number:x}", authorization=f"Bearer {TOKEN}"))
    clock.now_s += 31
    await page(view)
    await page(view)
    lines = [it for it in capsys.readouterr().out.splitlines() if "action=dead.list" in it]
    assert queue.fetches == 2
    assert len(lines) == 21
    assert "left_out=20" in lines[-1]


async def test_without_a_count_they_are_read_again_every_few_seconds(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unknown() -> None:
        return None

    queue = Queue(dead_letter("j-1"))
    view = DeadLettersView(queue, access(TOKEN), unknown, dict)
    assert "1 job could not be sent" in await page(view)
    queue.stored.clear()
    clock.now_s += 4
    assert "There are none." in await page(view)


async def test_a_replay_that_had_nothing_left_to_send_reports_that(clock: Clock) -> None:
    queue = Queue(dead_letter("j-1"))
    queue.replayed = 0
    view = opened(queue)
    await replayed(view)
    assert "no dead letter was left to send again" in await page(view)


async def test_a_refused_browser_gets_a_page_and_a_program_gets_text() -> None:
    view = opened(Queue(dead_letter("j-1")))
    session = await log_in(view.access, TOKEN, request())
    cookies = f'a b=c; prefs={{"x":"y"}}; {session}'  # with those of other applications on this host
    refused = await view.replay(request(cookie=cookies), {"reason": "rejected", "key": "forged"})
    assert (refused.status_code, refused.media_type) == (403, "text/html")
    assert b"this form is from another site" in refused.body
    assert b"Send again" in refused.body
    basic = request(cookie=cookies, authorization="Basic eDp5")
    assert (await view.replay(basic, {"reason": "rejected"})).status_code == 403  # no key, and no token either
    program = await view.replay(LOGGED_IN, {"reason": "gone"})
    assert (program.status_code, program.media_type) == (400, "text/plain")


async def test_thousands_of_dead_letters_are_counted_once_for_many_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = 0

    def count(found: list[DeadLetter], now_ms: int) -> list[Group]:
        nonlocal counted
        counted += 1
        return grouped(found, now_ms)

    monkeypatch.setattr(dead_letters, "grouped", count)
    view = opened(Queue(dead_letter("one"), dead_letter("two")))
    for _ in range(5):
        assert "rejected" in await page(view)
    assert counted == 1
