"""The page of dead letters between looks: how old what it shows is, and what came of the last replay."""

import time
from types import SimpleNamespace
from typing import Any

import pytest

from otp_stream.core.dead_letter import InHandError, Letter, LettersError, Wanted
from otp_stream.web import dead
from otp_stream.web.dead import DeadDesk
from otp_stream.web.session import Sessions

TOKEN = "correct-horse-battery"
SCOPE = {"headers": [(b"authorization", f"Bearer {TOKEN}".encode())], "client": ("192.0.2.7", 1)}


def letter(job_id: str, reason: str = "rejected", **more: Any) -> Letter:
    fields: dict[str, Any] = {
        "error": "550 5.1.1 no", "attempt": 1, "recipient": "u***@example.com", "template": "otp",
        "died_ms": 1000, "first_seen_ms": 0, "expires_ms": None, "allowed_ms": None, "size": 10,
    }  # fmt: skip
    return Letter(job_id=job_id, reason=reason, **(fields | more))


class Queue:
    """Dead letters, and a broker that counts them."""

    def __init__(self, *letters: Letter) -> None:
        self.letters = list(letters)
        self.looks = 0
        self.error: Exception | None = None
        self.away: Exception | None = None
        self.replayed = 1

    async def look(self, *, most: int, patience_s: float) -> tuple[list[Letter], int]:
        assert patience_s < 5  # somebody waits
        self.looks += 1
        if self.away:
            raise self.away
        return self.letters[:most], 0

    async def count(self) -> int | None:
        return len(self.letters)

    async def replay(self, wanted: Wanted, **_: Any) -> Any:
        if self.error:
            raise self.error

        return SimpleNamespace(replayed=self.replayed, stale=0)


class Clock:
    """Time as the desk sees it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1_700_000_000.0
        monkeypatch.setattr(dead.time, "monotonic", lambda: self.now_s)
        monkeypatch.setattr(dead.time, "time_ns", lambda: int(self.now_s * 1e9))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


ENDINGS = {"sent": 900, "rejected": 3, "retries_exhausted": 0}


def opened(queue: Queue, token: str | None = TOKEN) -> DeadDesk:
    return DeadDesk(queue, Sessions(token), queue.count, lambda: ENDINGS)


async def page(desk: DeadDesk) -> str:
    """Return what is shown to those who are logged in."""
    return (await desk.page(SCOPE)).body.decode()


async def visited(desk: DeadDesk) -> str:
    """Return what is shown to anyone else."""
    return (await desk.page({"headers": []})).body.decode()


async def test_a_visitor_sees_only_counts_and_no_message_is_fetched() -> None:
    queue = Queue(letter("one"), letter("two"))
    desk = opened(queue)
    told = await visited(desk)
    assert "<strong>2</strong> jobs could not be sent" in told
    assert "<span>rejected</span> <strong>3</strong>" in told
    assert "retries exhausted" not in told
    assert 'name="token"' in told
    await page(desk)
    looks = queue.looks
    told = await visited(desk)  # what was fetched for others is not for visitors either
    for secret in ("example.com", "550 5.1.1", 'title="one"', 'name="key"'):
        assert secret not in told
    queue.letters.clear()
    assert "There are none." in await visited(desk)
    assert queue.looks == looks == 1


async def test_without_a_token_no_one_can_log_in_and_the_page_names_the_commands() -> None:
    queue = Queue(letter("one"))
    told = await visited(opened(queue, token=None))
    assert "<strong>1</strong> job could not be sent" in told
    assert "Set <code>HTTP_TOKEN</code>" in told
    assert "otp-stream dead list" in told
    assert 'name="token"' not in told
    assert queue.looks == 0


async def test_a_visitor_is_told_where_no_one_counts() -> None:
    async def unknown() -> None:
        return None

    queue = Queue(letter("one"))
    told = await visited(DeadDesk(queue, Sessions(TOKEN), unknown, dict))
    assert "Their number is unknown" in told


async def test_a_replay_is_told_of_to_those_who_are_logged_in(clock: Clock) -> None:
    desk = opened(Queue(letter("one")))
    await replayed(desk)
    assert "page@192.0.2.7" in await page(desk)
    assert "page@192.0.2.7" not in await visited(desk)


async def replayed(desk: DeadDesk) -> None:
    assert (await desk.replay(SCOPE, {"reason": "rejected"})).status == 303
    assert desk._running is not None
    await desk._running


async def test_what_is_shown_says_how_old_it_is_and_is_looked_at_again_when_the_broker_counts_others(
    clock: Clock,
) -> None:
    queue = Queue(letter("one"))
    desk = opened(queue)
    await page(desk)
    clock.now_s += 20
    assert "As they were 20 s ago" in await page(desk)
    assert queue.looks == 1
    queue.letters.append(letter("two"))
    told = await page(desk)
    assert "two" in told
    assert "As they are now." in told
    queue.letters.clear()
    clock.now_s += 1  # who reloads all the time does not have every letter taken in hand each time
    assert "two" in await page(desk)
    clock.now_s += 5
    assert "There are none." in await page(desk)
    clock.now_s += 60
    await page(desk)
    assert queue.looks == 4


async def test_a_replay_is_told_of_with_who_and_when_and_not_for_ever(clock: Clock) -> None:
    desk = opened(Queue(letter("one")))
    await replayed(desk)
    clock.now_s += 90
    told = await page(desk)
    assert "1 job is being sent again (reason rejected)" in told
    assert "90 s ago, page@192.0.2.7" in told
    clock.now_s += 600
    assert "being sent again (" not in await page(desk)


async def test_a_replay_that_fails_is_not_called_letters_that_cannot_be_reached(clock: Clock) -> None:
    queue = Queue(letter("one"))
    queue.error = RuntimeError("somebody else has them in hand")
    desk = opened(queue)
    await replayed(desk)
    clock.now_s += 5
    told = await page(desk)
    assert "A replay was not completed" in told
    assert "somebody else has them in hand (reason rejected)" in told
    assert "The queue cannot be read" not in told
    assert 'title="one"' in told


async def test_what_is_no_job_is_not_offered_to_be_sent_again() -> None:
    queue = Queue(letter("no-job", "malformed", recipient=""))
    desk = opened(queue)
    told = await page(desk)
    assert "it would fail again" in told
    assert "<button>Send again" not in told
    assert "otp-stream dead drop reason=malformed" in told
    queue.letters.append(letter("job", expires_ms=time.time_ns() // 1_000_000 + 60_000))
    told = await page(opened(queue))
    assert told.count("<button>Send again") == 1


async def test_what_could_not_be_seen_is_tried_again_soon_and_not_called_new(clock: Clock) -> None:
    queue = Queue(letter("j-1"))
    desk = opened(queue)
    await page(desk)
    clock.now_s += 40
    queue.away = LettersError("the broker does not answer")
    told = await page(desk)
    assert "The queue cannot be read" in told
    assert "As they were 40 s ago" in told
    assert "As they are now" not in told
    queue.away = None
    clock.now_s += 4
    told = await page(desk)
    assert "The queue cannot be read" not in told
    assert "As they are now" in told


async def test_letters_in_somebody_elses_hand_are_no_alarm(clock: Clock) -> None:
    queue = Queue(letter("j-1"))
    desk = opened(queue)
    await page(desk)
    clock.now_s += 40
    queue.away = InHandError("somebody else has the dead letters in hand")
    told = await page(desk)
    assert "Another user or command is reading" in told
    assert 'title="j-1"' in told
    assert "The queue cannot be read" not in told


async def test_where_nobody_counts_they_are_looked_at_again_each_few_seconds(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unknown() -> None:
        return None

    queue = Queue(letter("j-1"))
    desk = DeadDesk(queue, Sessions(TOKEN), unknown, dict)
    assert "1 job could not be sent" in await page(desk)
    queue.letters.clear()
    clock.now_s += 4
    assert "There are none." in await page(desk)


async def test_a_replay_that_had_nothing_left_to_send_says_so(clock: Clock) -> None:
    queue = Queue(letter("j-1"))
    queue.replayed = 0
    desk = opened(queue)
    await replayed(desk)
    assert "no letter was left to send again" in await page(desk)


async def test_who_is_refused_stays_on_a_page_and_a_program_gets_words() -> None:
    desk = opened(Queue(letter("j-1")))
    cookie = await desk.sessions.open(TOKEN, secure=False)
    assert cookie is not None
    browser = {"headers": [(b"cookie", b'a b=c; prefs={"x":"y"}; ' + cookie.partition(";")[0].encode())]}
    refused = await desk.replay(browser, {"reason": "rejected", "key": "forged"})
    assert (refused.status, refused.content_type) == (403, "text/html; charset=utf-8")
    assert b"this form is from another site" in refused.body
    assert b"Send again" in refused.body  # the cookie is found beside what others have left there
    basic = {"headers": [*browser["headers"], (b"authorization", b"Basic eDp5")]}
    assert (await desk.replay(basic, {"reason": "rejected"})).status == 403  # no key, and no token either
    program = await desk.replay(SCOPE, {"reason": "gone"})
    assert (program.status, program.content_type) == (400, "text/plain; charset=utf-8")
