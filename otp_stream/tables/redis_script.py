"""Arguments and replies of the operations in tables.lua."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, cast

from otp_stream.core.admission import Limit, SentBefore, Superseded, Throttled
from otp_stream.core.masking import scrub
from otp_stream.core.rate import Grant
from otp_stream.core.tables_state import WorkerSeen

from .keys import HashedKeys, JobKeys
from .memory import Answer
from .redis_connection import Argument
from .redis_pipeline import Operation
from .sliding_window import slice_ms

TEXT_LIMIT = 200
"""Characters of a text in Redis that are shown or logged: another program may have written it."""
COUNT_LIMIT = 10**16
"""Maximum of a number in Redis. A larger one is no worker's: times are in microseconds since 1970."""
_BROKERS_SHOWN = 5
_LATEST_MS = 253_402_300_799_999
"""The end of the year 9999, which is the last one of Python's calendar."""


class Busy:
    """Another live worker has claimed the job."""


def limits_arguments(limits: Sequence[Limit]) -> list[Argument]:
    """Return name, count and slice in milliseconds of each limit."""
    return [argument for limit in limits for argument in (limit.name, limit.count, slice_ms(limit))]


def admit_operation(names: str, keys: JobKeys, ttl_ms: int, limits: Sequence[Limit], *, counted: bool) -> Operation:
    """Return the operation that claims a job. A `counted` job does not count towards its limits again."""

    def arguments(hashed: JobKeys | HashedKeys) -> tuple[str, ...]:
        limit_keys = hashed.limits or ("",) * len(limits)
        return hashed.key, hashed.recipient, hashed.purpose, hashed.code, *limit_keys

    return (
        "admit",
        f"{names}job:{keys.id_key}",
        keys.made_ms,
        ttl_ms,
        int(counted),
        1 + len(keys.old),
        *arguments(keys),
        *(argument for hashed in keys.old for argument in arguments(hashed)),
    )


def read_admission(reply: bytes, limits: Sequence[Limit]) -> Answer | Busy:
    """Parse the reply to an `admit` operation, which was sent with these `limits`."""
    kind, _, rest = reply.decode().partition(":")
    match kind:
        case "ok":
            return int(rest)
        case "sent":
            return SentBefore()
        case "old":
            return Superseded()
        case "busy":
            return Busy()
        case _:
            index, _, allowed_ms = rest.partition(":")
            at = int(index) - 1
            if at < 0 or int(allowed_ms) > _LATEST_MS:
                raise ValueError("it is not of the script")
            return Throttled(limits[at], int(allowed_ms))


def read_grant(reply: bytes, slots: int) -> Grant:
    """Parse the reply to a `reserve` operation for `slots` slots."""
    _, first_us, every_us, rate = reply.decode().split(":")
    grant = Grant(int(first_us) / 1e6, int(every_us) / 1e6, slots, float(rate))
    if not (grant.every_s >= 0 and 0 < grant.allowed < math.inf):
        raise ValueError("it is not of the script")
    return grant


def read_throttled(reply: bytes) -> dict[str, int]:
    """Parse how often each limit and hashed key was throttled."""
    pairs = [pair.rpartition("=") for pair in reply.decode(errors="replace").removeprefix("ok:").split(",")]
    return {shown(who).replace(":", " ", 1): _number(times) for who, _, times in pairs if times.isdecimal()}


def encode_worker(worker: WorkerSeen) -> str:
    """Encode what a worker publishes about itself. Workers of other versions read it, so its keys must not change."""
    facts = {name: value for name, value in asdict(worker).items() if name != "silent_ms"}
    return json.dumps(facts, separators=(",", ":"))


def read_workers(reply: bytes) -> list[WorkerSeen]:
    """Parse the workers in a reply, sorted by name."""
    facts: list[tuple[int, str]] = json.loads(reply.removeprefix(b"ok:").decode(errors="replace"))
    found = [_read_worker(about, silent_ms) for silent_ms, about in facts]
    return sorted((it for it in found if it is not None), key=lambda it: it.name)


def _read_worker(about: str, silent_ms: int) -> WorkerSeen | None:
    """Parse a worker; `None` if an incompatible version or another program wrote it."""
    try:
        facts = json.loads(about)
        name, version, phase, breaker = (
            shown(str(facts[it])) for it in ("name", "version", "phase", "circuit_breaker")
        )
        ahead_ms = facts.get("clock_ahead_ms")
        counts = _number(facts["held"]), _number(facts["sent_last_minute"]), _number(silent_ms)
        return WorkerSeen(name, version, phase, breaker, *counts, None if ahead_ms is None else _number(ahead_ms))
    except (ValueError, TypeError, LookupError, ArithmeticError, RecursionError):
        return None


def read_brokers(reply: bytes) -> list[str]:
    """Parse the descriptions of other deployments' RabbitMQ in a reply."""
    found = json.loads(reply.removeprefix(b"ok:").decode(errors="replace"))
    if not isinstance(found, list):
        raise TypeError("it is not of the script")
    return [shown(str(it)) for it in cast("list[object]", found)[:_BROKERS_SHOWN]]


def shown(text: str) -> str:
    """Return the beginning of a text of any program, on one line of printable characters."""
    return scrub(text, limit=TEXT_LIMIT)


def _number(value: Any) -> int:
    """Return a number. Raises `ValueError`, `TypeError` or `OverflowError` for what no worker writes."""
    number = int(value)
    if abs(number) > COUNT_LIMIT:
        raise ValueError("it is not of a worker")
    return number
