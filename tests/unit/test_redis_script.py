"""Replies whose values another program has written."""

import json
from typing import Any

import pytest

from otp_stream.core.tables_state import WorkerSeen
from otp_stream.tables.redis_script import TEXT_LIMIT, encode_worker, read_brokers, read_throttled, read_workers

HOSTILE = "\x1b[2J\nforged \u202e\ud800 " + "x" * 700_000


def reply(value: object) -> bytes:
    return b"ok:" + json.dumps(value).encode()


def is_shown(text: str) -> bool:
    return text.isprintable() and len(text) <= TEXT_LIMIT


def test_few_other_deployments_are_named_each_by_a_short_printable_text() -> None:
    found = read_brokers(reply([HOSTILE] * 1_000))
    assert 0 < len(found) < 10
    assert all(map(is_shown, found))
    assert read_brokers(reply(["rabbit.example:5672/otp", 5])) == ["rabbit.example:5672/otp", "5"]


@pytest.mark.parametrize("value", [{"a": 1}, "text", 5, None])
def test_what_is_no_list_of_deployments_is_refused(value: object) -> None:
    with pytest.raises(TypeError):
        read_brokers(reply(value))


def test_the_texts_of_a_worker_are_short_and_printable() -> None:
    about = encode_worker(WorkerSeen(HOSTILE, HOSTILE, HOSTILE, HOSTILE, 1, 2))
    (found,) = read_workers(reply([[5, about]]))
    assert all(map(is_shown, (found.name, found.version, found.phase, found.circuit_breaker)))
    assert (found.held, found.sent_last_minute, found.silent_ms) == (1, 2, 5)


@pytest.mark.parametrize("value", [10**300, -(10**300), 1e300, "9" * 4_000, "9" * 5_000, float("inf"), float("nan")])
@pytest.mark.parametrize("name", ["held", "sent_last_minute", "clock_ahead_ms"])
def test_a_worker_with_a_number_that_no_worker_writes_is_absent(name: str, value: Any) -> None:
    about = json.loads(encode_worker(WorkerSeen("h:1", "1", "consuming", "closed", 1, 2, clock_ahead_ms=3)))
    assert read_workers(reply([[5, json.dumps(about | {name: value})]])) == []
    assert len(read_workers(reply([[5, json.dumps(about)]]))) == 1


def test_throttled_keys_are_short_and_printable() -> None:
    assert read_throttled(b"ok:recipient:5f=2,domain:x=1e+300,a\x1b\xff" + b"x" * 900 + b"=3") == {
        "recipient 5f": 2,
        "a\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}" + "x" * (TEXT_LIMIT - 3): 3,
    }
    with pytest.raises(ValueError, match="not of a worker"):
        read_throttled(b"ok:a=" + b"9" * 300)
