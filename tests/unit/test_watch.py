"""What the metrics say of the tables, and when the monitor says what goes on."""

from otp_stream.core.state import TablesState, WorkerState
from otp_stream.watch.metrics import Metrics
from otp_stream.watch.monitor import Reminder
from otp_stream.watch.tally import Tally


def rendered(tables: TablesState) -> list[str]:
    """Return the lines that Prometheus reads of the tables."""
    metrics = Metrics()
    metrics.expose(lambda: WorkerState("consuming", None, (), tables))
    body, _ = metrics.render("text/plain")
    return [line for line in body.decode().splitlines() if not line.startswith("#")]


def test_shared_tables_are_what_prometheus_reads() -> None:
    lines = rendered(
        TablesState(
            url="redis://h",
            connected=True,
            workers=3,
            claims=7,
            sizes={"sent": 12, "recipient 5/10m": 4},
            evicted=2,
            asked={"admitted": 9, "throttled_recipient": 1},
            unshared=5,
            owed=6,
            throttled={"recipient abc": 1},
        )
    )
    for line in (
        "otp_redis_connected 1.0",
        "otp_tables_owed 6.0",
        "otp_tables_workers 3.0",
        'otp_tables_asked_total{answer="admitted"} 9.0',
        'otp_tables_asked_total{answer="throttled_recipient"} 1.0',
        'otp_tables_asked_total{answer="duplicate"} 0.0',
        "otp_possible_duplicates_total 5.0",
        "otp_tables_evicted_total 2.0",
        "otp_claims 7.0",
        'otp_table_entries{table="sent"} 12.0',
        'otp_table_entries{table="recipient 5/10m"} 4.0',
    ):
        assert line in lines
    assert "abc" not in "\n".join(lines)  # one series for each key would be without bound


def test_tables_in_memory_say_nothing_of_redis() -> None:
    lines = rendered(TablesState(claims=1))
    assert "otp_claims 1.0" in lines
    assert not any(line.startswith(("otp_redis_connected", "otp_tables_owed", "otp_tables_workers")) for line in lines)
    assert "otp_redis_connected 0.0" in rendered(TablesState(url="redis://h", connected=False))


def test_what_is_seen_twice_is_said_once_and_again_after_an_hour() -> None:
    reminder = Reminder()
    said = [at_s for at_s in range(0, 7300, 10) if reminder.due("it goes on", float(at_s))]
    assert said == [10, 3610, 7210]


def test_what_passes_is_not_said_and_what_comes_back_is() -> None:
    reminder = Reminder()
    seen = [True, False, True, True, True, False, True, True]
    said = [reminder.due("it goes on" if it else None, float(at_s)) for at_s, it in enumerate(seen)]
    assert said == [False, False, False, True, False, False, False, True]


def test_what_went_out_and_what_died_is_known_for_a_minute() -> None:
    tally = Tally(0)
    for at_ms in (1000, 1500, 30_000):
        tally.accept(5, at_ms)
        tally.end("sent", at_ms)
        tally.end("rejected", at_ms)
        tally.end("throttled", at_ms)  # as somebody has asked for
    assert [(it.sent_last_minute, it.died_last_minute) for it in map(tally.look, (30_000, 61_000, 90_000))] == [
        (3, 3), (1, 1), (0, 0)
    ]  # fmt: skip
    assert tally.look(90_000).endings == {"sent": 3, "rejected": 3, "throttled": 3}
