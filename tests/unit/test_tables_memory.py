"""The tables in memory are bounded, and evict the entries that matter least."""

import tracemalloc
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from otp_stream.core.admission import Claim, Limit, Throttled, read_limits
from otp_stream.core.job import Job
from otp_stream.core.otp_job import OtpJob
from otp_stream.tables import KeyBuilder, MemoryTables, Tables
from otp_stream.tables.keys import KEEP_MS, JobKeys
from otp_stream.tables.sent_records import SentRecord, SentRecords
from otp_stream.tables.sliding_window import EMPTY, SLICES, Window, add_job, advance, free_from, jobs_in

NOW = 1_700_000_000_000
HOUR = 3_600_000
EVERY_LIMIT = (
    *read_limits("recipient", "5/10m,20/1d"), *read_limits("domain", "1000/1h"),
    *read_limits("tenant", "10000/1d"), *read_limits("total", "1000000/1d"),
)  # fmt: skip


def tables(*limits: Limit, entries_limit: int, supersede: bool = False, sent_limit: int = 10_000) -> Tables:
    memory = MemoryTables(limits, sent_ttl_ms=24 * HOUR, sent_limit=sent_limit, entries_limit=entries_limit)
    return Tables(KeyBuilder(b"k" * 32, supersede=supersede, limits=limits), memory, now_ms=lambda: NOW)


def job(job_id: str, email: str = "user@example.com") -> Job:
    body: dict[str, Any] = {"email": email, "otp": "123456", "timestamp": NOW, "metadata": {"tenant": email}}
    request = OtpJob.model_validate(body)
    return Job.from_request(
        request, job_id=job_id, lane="jobs", first_seen_ms=NOW, attempts_made=0, default_expiry_minutes=15
    )


async def claim(it: Tables, a_job: Job) -> Claim:
    admission = await it.admit(a_job, NOW + HOUR)
    assert hasattr(admission, "mark_sent"), admission
    return admission


async def send_to_others(it: Tables, count: int) -> None:
    for number in range(count):
        (await claim(it, job(f"other{number}", f"u{number}@d{number}.example"))).mark_sent()


async def test_all_tables_together_keep_to_the_limit() -> None:
    it = tables(*EVERY_LIMIT, entries_limit=100, supersede=True)
    with capture_logs() as logs:
        await send_to_others(it, 500)
    sizes = it.state().sizes
    entries = sum(number for name, number in sizes.items() if name != "sent")
    assert 90 <= entries <= 100
    assert min(number for name, number in sizes.items() if name not in {"seen", "total 1000000/1d"}) >= 15
    assert it.state().evicted == 500 * 5 + 1 - entries
    (warning,) = (log for log in logs if log["log_level"] == "warning")  # logged once
    assert "TABLES_MEMORY_LIMIT" in warning["event"]


async def test_a_throttled_recipient_is_not_admitted_again_after_many_others() -> None:
    it = tables(Limit("recipient", 2, HOUR), Limit("domain", 100_000, HOUR), entries_limit=200)
    for number in range(2):
        (await claim(it, job(f"j{number}"))).mark_sent()
    await send_to_others(it, 1_000)
    assert isinstance(await it.admit(job("late"), NOW + HOUR), Throttled)
    assert it.state().evicted > 0


async def test_a_job_in_flight_is_not_counted_again_after_many_others() -> None:
    it = tables(Limit("total", 302, HOUR), entries_limit=100)
    held = await claim(it, job("held"))
    for number in range(300):
        (await claim(it, job(f"other{number}", f"u{number}@example.com"))).release()
    held.release()
    assert it.state().evicted > 0
    await claim(it, job("held"))
    (await claim(it, job("last"))).mark_sent()
    assert isinstance(await it.admit(job("over"), NOW + HOUR), Throttled)


async def test_no_job_in_flight_is_counted_again_however_many_there_are() -> None:
    it = tables(Limit("total", 701, HOUR), entries_limit=200)
    held = [await claim(it, job(f"held{number}")) for number in range(100)]
    for number in range(600):
        (await claim(it, job(f"other{number}", f"u{number}@example.com"))).release()
    assert it.state().evicted > 0
    for one in held:
        one.release()
    for number in range(100):
        await claim(it, job(f"held{number}"))
    (await claim(it, job("last"))).mark_sent()
    assert isinstance(await it.admit(job("over"), NOW + HOUR), Throttled)


async def test_more_jobs_in_flight_than_there_is_room_for_are_all_known() -> None:
    it = tables(Limit("total", 300, HOUR), entries_limit=100)
    held = [await claim(it, job(f"held{number}")) for number in range(300)]
    assert it.state().sizes["seen"] == 300
    for one in held:
        one.release()
    await claim(it, job("held0"))
    assert isinstance(await it.admit(job("over"), NOW + HOUR), Throttled)


async def test_eviction_of_sent_records_logs_a_warning() -> None:
    it = tables(entries_limit=100, sent_limit=10)
    with capture_logs() as logs:
        await send_to_others(it, 30)
    assert it.state().evicted == 20
    (warning,) = (log for log in logs if log["log_level"] == "warning")
    assert "SENT_MEMORY_LIMIT" in warning["event"]


DAY = 24 * HOUR


def sent_keys(name: str, expires_ms: int) -> JobKeys:
    return JobKeys(name, name, NOW, expires_ms)


def test_a_job_is_not_sent_again_while_its_code_is_valid() -> None:
    sent = SentRecords(DAY, 100)
    sent.add(sent_keys("long", NOW + 3 * DAY), NOW)
    sent.add(sent_keys("usual", NOW + HOUR), NOW)
    assert sent.contains("usual", NOW + DAY - 1)
    sent.add(sent_keys("later", NOW + 2 * DAY), NOW + 2 * DAY)
    assert not sent.contains("usual", NOW + 2 * DAY)
    assert sent.contains("long", NOW + 3 * DAY)
    assert len(sent) == 2  # the long one before it does not keep an expired record
    assert not sent.contains("long", NOW + 3 * DAY + KEEP_MS)
    assert sent.evicted == 0


def test_the_oldest_records_are_evicted_first_however_long_they_live() -> None:
    sent = SentRecords(DAY, 4)
    for number in range(3):
        sent.add(sent_keys(f"long{number}", NOW + 300 * DAY), NOW + number)
    for number in range(3):
        sent.add(sent_keys(f"usual{number}", NOW + HOUR), NOW + HOUR)
    known = [f"{kind}{number}" for kind in ("long", "usual") for number in range(3)]
    assert [it for it in known if sent.contains(it, NOW + HOUR)] == ["long2", "usual0", "usual1", "usual2"]
    for number in range(4, 7):
        sent.add(sent_keys(f"long{number}", NOW + 300 * DAY), NOW + HOUR)
    known += [f"long{number}" for number in range(4, 7)]
    assert [it for it in known if sent.contains(it, NOW + HOUR)] == ["usual2", "long4", "long5", "long6"]
    assert (len(sent), sent.evicted) == (4, 5)


def test_a_long_record_that_has_expired_behind_another_is_replaced() -> None:
    sent = SentRecords(DAY, 100)
    sent.add(sent_keys("year", NOW + 365 * DAY), NOW)
    sent.add(sent_keys("days", NOW + 2 * DAY), NOW)
    now_ms = NOW + 4 * DAY
    assert not sent.contains("days", now_ms)
    sent.add(sent_keys("days", now_ms + 2 * DAY), now_ms)
    assert sent.contains("days", now_ms + 2 * DAY)
    assert [it.key for it in sent.after(0)] == ["year", "days"]


def test_jobs_that_are_sent_again_behind_a_long_record_are_not_searched_for_and_take_little_memory() -> None:
    sent = SentRecords(DAY, 100)
    sent.add(sent_keys("year", NOW + 365 * DAY), NOW)
    places, most = sent._longer, 0
    for day in range(0, 360, 3):
        for number in range(50):
            sent.add(sent_keys(f"job{number}", NOW + (day + 2) * DAY), NOW + day * DAY)
        if day < 9:
            assert sent._longer is places  # to copy half a million places takes 100 ms
        most = max(most, len(sent._longer))
    assert most <= 200
    assert (len(sent), sent.evicted) == (51, 0)
    assert [it.key for it in sent.after(0)] == ["year", *(f"job{number}" for number in range(50))]


@given(
    st.lists(st.tuples(st.integers(-20, 30), st.integers(0, 9), st.integers(-9, 30)), max_size=200),
    st.integers(1, 20),
)
def test_a_clock_that_is_set_back_breaks_no_sent_record(steps: list[tuple[int, int, int]], limit: int) -> None:
    """`steps` are hours until a key is sent, the key, and hours its code is valid."""
    sent, now_ms = SentRecords(10 * HOUR, limit), NOW
    for wait, name, valid in steps:
        now_ms += wait * HOUR
        sent.add(sent_keys(f"job{name}", now_ms + valid * HOUR), now_ms)
        assert sent.contains(f"job{name}", now_ms)
        assert len(sent) <= limit
        found = sent.after(0)
        assert len(found) == len({it.key for it in found}) == len(sent)


def test_a_record_that_was_sent_again_after_the_clock_was_set_back_is_the_newest() -> None:
    sent = SentRecords(DAY, 2)
    sent.add(sent_keys("before", NOW), NOW)
    sent.add(sent_keys("again", NOW), NOW - HOUR)
    sent.add(sent_keys("again", NOW + 3 * DAY), NOW + DAY - 1)  # "before" has not expired yet
    sent.add(sent_keys("third", NOW), NOW + DAY - 1)
    assert [it.key for it in sent.after(0)] == ["again", "third"]
    sent.add(sent_keys("fourth", NOW), NOW + 5 * DAY)
    assert [it.key for it in sent.after(0)] == ["fourth"]


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 9), st.integers(-9, 30)), max_size=200),
    st.integers(1, 20),
    st.integers(0, 200),
)
def test_sent_records_are_the_newest_ones_that_have_not_expired(
    steps: list[tuple[int, int, int]], limit: int, after: int
) -> None:
    """Compare with the records by a list; `steps` are a key, hours until it is sent, and hours its code is valid."""
    sent, now_ms = SentRecords(10 * HOUR, limit), NOW
    model: list[SentRecord] = []
    for name, wait, valid in steps:
        now_ms += wait * HOUR
        keys = sent_keys(f"job{name}", now_ms + valid * HOUR)
        known = any(it.key == keys.key and it.expires_ms > now_ms for it in model)
        assert sent.contains(keys.key, now_ms) is known or sent.evicted
        if not sent.contains(keys.key, now_ms):
            model = [it for it in model if it.key != keys.key]
            lifetime_ms = max(10 * HOUR, max(valid, 0) * HOUR + KEEP_MS)
            model.append(SentRecord(sent.last_number + 1, keys.key, now_ms + lifetime_ms))
        sent.add(keys, now_ms)
        assert len(sent) <= limit
        found = sent.after(after)
        assert [sent.after(after, most) for most in range(1, 6)] == [found[:it] for it in range(1, 6)]
        kept = [it for it in found if it.expires_ms > now_ms]
        # an expired long record may take the place of a current one, but only of an older one
        current = [it for it in model if it.expires_ms > now_ms and it.number > after]
        assert kept == current[len(current) - len(kept) :]
        if not sent.evicted:
            assert kept == current


async def test_a_sent_record_takes_no_more_memory_than_is_documented() -> None:
    for valid_ms, most in ((HOUR, 170), (2 * DAY, 300)):
        names = [f"{number:024}" for number in range(20_000)]
        sent = SentRecords(DAY, 100_000)
        tracemalloc.start()
        try:
            for number, name in enumerate(names):
                sent.add(sent_keys(name, NOW + valid_ms), NOW + number)
            taken = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
        assert taken / len(names) + 73 < most, (valid_ms, taken / len(names))  # and the text of the key


async def test_an_entry_takes_no_more_memory_than_is_documented() -> None:
    it = tables(*EVERY_LIMIT, entries_limit=1_000_000, supersede=True, sent_limit=1)
    await send_to_others(it, 100)
    tracemalloc.start()
    try:
        await send_to_others(it, 4_000)
        snapshot = tracemalloc.take_snapshot()
    finally:
        tracemalloc.stop()
    # other threads of the test process allocate memory, too
    ours = snapshot.filter_traces([tracemalloc.Filter(inclusive=True, filename_pattern="*/otp_stream/tables/*")])
    taken = sum(it.size for it in ours.traces)
    assert taken > 100 * 4_000
    # the shorter names of the tables' first use are in them already
    entries = sum(number for name, number in it.state().sizes.items() if name != "sent") - 501
    assert taken / entries < 350


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=300), st.integers(1, 20))
def test_a_window_holds_what_came_within_its_slices(steps: list[tuple[int, bool]], most: int) -> None:
    window: Window = EMPTY
    came: list[int] = []
    slice_ = 17
    for wait, comes in steps:
        slice_ += wait * 30
        window = advance(window, slice_)
        within = [it for it in came if it >= slice_ - SLICES]
        assert jobs_in(window) == len(within)
        if len(within) >= most:
            assert free_from(window, most) == within[len(within) - most] + SLICES + 1
        if comes:
            window = add_job(window, slice_)
            came.append(slice_)


def test_a_clock_that_is_set_back_loses_no_count() -> None:
    window = add_job(add_job(EMPTY, 1_000), 400)
    assert jobs_in(advance(window, 400)) == 2
    assert jobs_in(advance(window, 1_000 + SLICES)) == 2
    assert jobs_in(advance(window, 1_001 + SLICES)) == 0
