"""Reads the shared tables for the command line: their sizes, answers to jobs, and throttled keys.

Everything here only reads, except `forget`. Redis contains neither addresses nor codes, so none can be shown. Values
that no worker has written count as absent: another program may use the same Redis.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from redis.exceptions import ResponseError

from otp_stream.core.admission import Limit, span
from otp_stream.core.rate import slope

from .keys import FORGET_FLAG
from .redis_client import RedisClient
from .redis_script import COUNT_LIMIT, shown
from .redis_session import LEASE_S
from .sliding_window import SLICES, slice_ms

TOP = 10
"""Maximum number of throttled keys to report."""
NAMED = 100
"""Maximum number of relays, limits or answers to report, because another program may write any number of keys."""
_SLICE_DIGITS = 15

_SCAN_COUNT = 1000
_JOB_STATES = {b"s": "sent", b"c": "claimed", b"r": "seen"}

Progress = Callable[[int], object]
"""Called with the approximate number of keys read so far."""


@dataclass(frozen=True, slots=True)
class Server:
    """Facts about the Redis server; `None` or empty if it does not report them."""

    version: str = ""
    memory_bytes: int | None = None
    memory_limit: int | None = None
    """Bytes; 0 is no limit."""
    policy: str = ""
    """The policy of eviction at the limit."""
    evicted: int = 0
    """Keys of all users that were evicted since the server started."""

    @classmethod
    def read(cls, info: str) -> Self:
        """Parse the reply to INFO."""
        fields = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
        valkey = fields.get("valkey_version")
        return cls(
            f"Valkey {valkey}" if valkey else f"Redis {fields.get('redis_version', '')}",
            int(fields["used_memory"]) if "used_memory" in fields else None,
            int(fields["maxmemory"]) if "maxmemory" in fields else None,
            fields.get("maxmemory_policy", ""),
            int(fields.get("evicted_keys", 0)),
        )

    @property
    def warning(self) -> str | None:
        """A problem with the server's configuration, and the fix."""
        if not self.memory_limit or self.policy in {"", "noeviction"}:
            return None
        return (
            f"maxmemory-policy is {self.policy}: when its memory is full, Redis evicts sent records before they "
            f"expire, and those jobs may be sent twice ({self.evicted} keys were evicted since Redis started). "
            "Set maxmemory-policy noeviction"
        )


@dataclass(frozen=True, slots=True)
class Schedule:
    """A relay's rate, which all workers share."""

    relay: str
    ahead_s: float
    """How far ahead slots are reserved."""
    rate: float | None
    """E-mails per second at present; `None` if unknown here."""
    throttled_s: float | None
    """Seconds since the relay last throttled; `None` if it has not lately."""


@dataclass(frozen=True, slots=True)
class TablesReport:
    """The shared tables at one moment."""

    server: Server
    workers: int
    """Live workers: those with a valid lease."""
    sizes: Mapping[str, int]
    """Entries by table. While Redis resizes its key space, an entry may be counted twice."""
    answers: Mapping[str, int]
    """Answers to jobs by all workers, since Redis was last empty."""
    throttled: Mapping[str, int]
    """The keys over a limit most often, by limit and hashed key; counts expire after a day."""
    schedules: tuple[Schedule, ...]


def read_tables(
    client: RedisClient,
    prefix: str,
    limits: Sequence[Limit] = (),
    *,
    ceiling: float | None = None,
    progress: Progress = lambda _: None,
) -> TablesReport:
    """Read everything below `prefix`. `ceiling` is the full rate of a relay in e-mails per second."""
    now_ms = _now_ms(client)
    relays: list[str] = []
    sizes = _sizes(client, prefix, limits, relays, progress)
    return TablesReport(
        server=read_server(client),
        workers=_live_workers(client, prefix),
        sizes=sizes,
        answers=_counts(_hash(client, f"{prefix}stats")),
        throttled=_throttled(client, prefix),
        schedules=tuple(_schedule(client, prefix, relay, ceiling, now_ms) for relay in sorted(set(relays))[:NAMED]),
    )


FORGET_S = 30
"""How long its flag is set: a worker looks for it every few seconds."""


def clear_recent_jobs(client: RedisClient, prefix: str) -> int:
    """Have all workers clear the recent jobs of their pages. Returns the number of live workers."""
    client.execute("SET", f"{prefix}flag:{FORGET_FLAG}", "1", "EX", FORGET_S)
    return _live_workers(client, prefix)


def _live_workers(client: RedisClient, prefix: str) -> int:
    oldest = f"({_now_ms(client) - round(LEASE_S * 1000)}"
    return client.read("ZCOUNT", f"{prefix}workers", oldest, "+inf") or 0


def _now_ms(client: RedisClient) -> int:
    seconds, micros = client.execute("TIME")
    return int(seconds) * 1000 + int(micros) // 1000


def forget(
    client: RedisClient, prefix: str, recipient: str, *, dry_run: bool = False, progress: Progress = lambda _: None
) -> Mapping[str, int]:
    """Delete the entries of a recipient, by keyed hash. Returns the number of entries of each table.

    This deletes the newest codes (so the older of two waiting codes may still be sent), every window of the recipient
    limit, and the count among the throttled keys. Sent records and generated job ids remain, because their keys are
    hashes of jobs.
    """
    newest = f"{prefix}newest:{recipient}"
    codes = client.read("HLEN", newest)
    codes = client.execute("EXISTS", newest) if codes is None else codes
    if not dry_run:
        client.execute("DEL", newest)
    windows = [key for keys in _scan(client, f"{prefix}limit:recipient:", f":{recipient}", progress) for key in keys]
    # a tenant's own limit has the tenant before the recipient
    throttled: list[bytes] = client.read("ZRANGE", f"{prefix}throttled", 0, -1) or []
    members = [it for it in throttled if it.startswith(b"recipient:") and it.endswith(f":{recipient}".encode())]
    return {
        "newest": codes,
        "recipient": sum(client.execute("EXISTS" if dry_run else "DEL", key) for key in windows),
        "throttled": len(members) if dry_run or not members else client.execute("ZREM", f"{prefix}throttled", *members),
    }


def _sizes(
    client: RedisClient, prefix: str, limits: Sequence[Limit], relays: list[str], progress: Progress
) -> dict[str, int]:
    """Count entries by table, and add the relays that have a schedule to `relays`."""
    named = {f"{limit.name}:{slice_ms(limit)}": f"{limit.name} {limit}" for limit in limits}
    sizes = Counter(dict.fromkeys([*_JOB_STATES.values(), "made", "newest", *named.values()], 0))
    for keys in _scan(client, prefix, "", progress):
        jobs: list[str] = []
        for key in keys:
            kind, _, rest = key.removeprefix(prefix).partition(":")
            if kind == "job":
                jobs.append(key)
            elif kind in {"made", "newest"}:
                sizes[kind] += 1
            elif kind == "rate":
                relays.append(rest)
            elif kind == "limit":
                window = ":".join(rest.split(":")[:2])
                name = named.get(window) or _unset(window)
                sizes[name if name in sizes or len(sizes) < NAMED else "other limits"] += 1
        values: list[bytes | None] = client.execute("MGET", *jobs) if jobs else []
        sizes.update(_JOB_STATES[value[:1]] for value in values if value and value[:1] in _JOB_STATES)
    return dict(sizes)


def _unset(window: str) -> str:
    """Return a name for a limit of unknown count, which is not set here, but was set before or by another worker."""
    name, _, slice_ = window.partition(":")
    is_slice = slice_.isdecimal() and len(slice_) <= _SLICE_DIGITS
    return shown(f"{name} ?/{span(int(slice_) * SLICES)}" if is_slice else name)


def _scan(client: RedisClient, start: str, end: str, progress: Progress) -> Iterator[list[str]]:
    plain = [re.sub(r"([\\*?\[\]])", r"\\\1", part) for part in (start, end)]
    cursor, read = b"0", 0
    while True:
        cursor, keys = client.execute("SCAN", cursor, "MATCH", "*".join(plain), "COUNT", _SCAN_COUNT)
        read += _SCAN_COUNT
        progress(read)
        yield [key.decode(errors="replace") for key in keys]
        if int(cursor) == 0:
            return


def read_server(client: RedisClient) -> Server:
    """Return facts about the server, or none if the user may not read them."""
    try:
        return Server.read(client.execute("INFO").decode())
    except ResponseError:  # a user that may use the tables may lack this permission
        return Server()


def _throttled(client: RedisClient, prefix: str) -> dict[str, int]:
    found = _pairs(client.read("ZREVRANGE", f"{prefix}throttled", 0, TOP - 1, "WITHSCORES") or [])
    return {who.replace(":", " ", 1): times for who, times in _counts(found).items()}


def _schedule(client: RedisClient, prefix: str, relay: str, ceiling: float | None, now_ms: int) -> Schedule:
    """Read a relay's schedule, by the rule in core/rate.py."""
    found = _hash(client, f"{prefix}rate:{relay}")
    ahead_s = max((_number(found, "next") or 0) / 1e6 - now_ms / 1e3, 0.0)
    since_ms, base = _number(found, "since"), _number(found, "base")
    if since_ms is None or base is None:
        return Schedule(shown(relay), ahead_s, ceiling, None)
    throttled_s = max(now_ms - since_ms, 0.0) / 1e3
    rate = min(ceiling, base + slope(ceiling) * throttled_s) if ceiling else None
    return Schedule(shown(relay), ahead_s, rate, throttled_s)


def _hash(client: RedisClient, key: str) -> dict[str, str]:
    return _pairs(client.read("HGETALL", key) or [])


def _pairs(found: list[bytes]) -> dict[str, str]:
    texts = [it.decode(errors="replace") for it in found]
    return dict(zip(texts[::2], texts[1::2], strict=True))


def _counts(found: Mapping[str, str]) -> dict[str, int]:
    counts = {name: _number(found, name) for name in sorted(found)[:NAMED]}
    return {shown(name): int(count) for name, count in counts.items() if count is not None and count >= 0}


def _number(found: Mapping[str, str], name: str) -> float | None:
    try:
        number = float(found[name])
    except (KeyError, ValueError):
        return None
    return number if abs(number) <= COUNT_LIMIT else None  # neither does a worker write what is not a number
