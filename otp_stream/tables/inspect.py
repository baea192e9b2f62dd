"""Reads the shared tables for the command line: their sizes, answers to jobs, and throttled keys.

Everything here only reads, except `forget`. Redis contains neither addresses nor codes, so none can be shown.
"""

import re
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any, Self, cast
from urllib.parse import unquote, urlsplit

from redis.connection import Connection, SSLConnection
from redis.connection import parse_url as _read_url  # pyright: ignore[reportUnknownVariableType]
from redis.exceptions import RedisError, ResponseError

from otp_stream.core.admission import Limit, span
from otp_stream.core.masking import scrub
from otp_stream.core.rate import slope
from otp_stream.sockets import certificate_name

from .redis_connection import without_prompt
from .redis_pipeline import RedisUnavailableError
from .redis_session import LEASE_S
from .sliding_window import SLICES, slice_ms

TOP = 10
"""Maximum number of throttled keys to report."""

_SCAN_COUNT = 1000
_TIMEOUT_S = 5.0
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


class _TlsConnection(SSLConnection):
    def _wrap_socket_with_ssl(self, sock: Any) -> Any:
        host = self.host
        try:
            self.host = certificate_name(host)
            return cast("Any", super())._wrap_socket_with_ssl(sock)  # noqa: SLF001 - it offers no other way
        finally:
            self.host = host


class RedisClient:
    """A blocking connection to Redis. Replies are not decoded: bytes and lists."""

    def __init__(self, url: str) -> None:
        options: dict[str, Any] = {**_read_url(url)}
        kind: type[Connection] = options.pop("connection_class", Connection)
        if issubclass(kind, SSLConnection):
            kind = _TlsConnection
        # Redis 5 does not support protocol 3
        options |= {"protocol": 2, "driver_info": None, "decode_responses": False}
        options |= {"socket_connect_timeout": _TIMEOUT_S, "socket_timeout": _TIMEOUT_S}
        self._connection: Any = kind(**without_prompt(options))

    def execute(self, *arguments: str | bytes | int) -> Any:
        """Execute a command and return its reply."""
        self._connection.send_command(*arguments)
        return self._connection.read_response()

    def close(self) -> None:
        """Close the connection."""
        self._connection.disconnect()


@contextmanager
def connected(url: str) -> Generator[RedisClient]:
    """Connect to Redis. Every failure is raised as `RedisUnavailableError`, without the password in its text."""
    try:
        with closing(RedisClient(url)) as client:
            yield client
    except (RedisError, OSError, ValueError) as error:
        password = urlsplit(url).password or ""
        text = scrub(str(error), password, unquote(password))
        raise RedisUnavailableError(
            text if isinstance(error, ResponseError) else f"{type(error).__name__}: {text}"
        ) from None


def read_tables(
    client: RedisClient,
    prefix: str,
    limits: Sequence[Limit] = (),
    *,
    ceiling: float | None = None,
    progress: Progress = lambda _: None,
) -> TablesReport:
    """Read everything below `prefix`. `ceiling` is the full rate of a relay in e-mails per second."""
    seconds, micros = client.execute("TIME")
    now_ms = int(seconds) * 1000 + int(micros) // 1000
    relays: list[str] = []
    sizes = _sizes(client, prefix, limits, relays, progress)
    return TablesReport(
        server=read_server(client),
        workers=client.execute("ZCOUNT", f"{prefix}workers", f"({now_ms - round(LEASE_S * 1000)}", "+inf"),
        sizes=sizes,
        answers={name: int(number) for name, number in sorted(_hash(client, f"{prefix}stats").items())},
        throttled=_throttled(client, prefix),
        schedules=tuple(_schedule(client, prefix, relay, ceiling, now_ms) for relay in sorted(set(relays))),
    )


def forget(
    client: RedisClient, prefix: str, recipient: str, *, progress: Progress = lambda _: None
) -> Mapping[str, int]:
    """Delete the entries of a recipient, by keyed hash. Returns the number of entries deleted from each table.

    This deletes the newest codes (so the older of two waiting codes may still be sent), every window of the recipient
    limit, and the count among the throttled keys. Sent records and generated job ids remain, because their keys are
    hashes of jobs.
    """
    newest = f"{prefix}newest:{recipient}"
    codes = client.execute("HLEN", newest)
    client.execute("DEL", newest)
    windows = [key for keys in _scan(client, f"{prefix}limit:recipient:", f":{recipient}", progress) for key in keys]
    # a tenant's own limit has the tenant before the recipient
    throttled = client.execute("ZRANGE", f"{prefix}throttled", 0, -1)
    members = [
        it
        for it in (member.decode() for member in throttled)
        if it.startswith("recipient:") and it.endswith(f":{recipient}")
    ]
    return {
        "newest": codes,
        "recipient": sum(client.execute("DEL", key) for key in windows),
        "throttled": client.execute("ZREM", f"{prefix}throttled", *members) if members else 0,
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
                sizes[named.get(window) or _unset(window)] += 1
        values: list[bytes | None] = client.execute("MGET", *jobs) if jobs else []
        sizes.update(_JOB_STATES[value[:1]] for value in values if value and value[:1] in _JOB_STATES)
    return dict(sizes)


def _unset(window: str) -> str:
    """Return a name for a limit of unknown count, which is not set here, but was set before or by another worker."""
    name, _, slice_ = window.partition(":")
    return f"{name} ?/{span(int(slice_) * SLICES)}" if slice_.isdigit() else name


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
    found = _pairs(client.execute("ZREVRANGE", f"{prefix}throttled", 0, TOP - 1, "WITHSCORES"))
    return {who.replace(":", " ", 1): int(times) for who, times in found.items()}


def _schedule(client: RedisClient, prefix: str, relay: str, ceiling: float | None, now_ms: int) -> Schedule:
    """Read a relay's schedule, by the rule in core/rate.py."""
    found = _hash(client, f"{prefix}rate:{relay}")
    ahead_s = max(float(found.get("next", 0)) / 1e6 - now_ms / 1e3, 0.0)
    if "since" not in found:
        return Schedule(relay, ahead_s, ceiling, None)
    throttled_s = max(now_ms - float(found["since"]), 0.0) / 1e3
    rate = min(ceiling, float(found["base"]) + slope(ceiling) * throttled_s) if ceiling else None
    return Schedule(relay, ahead_s, rate, throttled_s)


def _hash(client: RedisClient, key: str) -> dict[str, str]:
    return _pairs(client.execute("HGETALL", key))


def _pairs(found: list[bytes]) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in zip(found[::2], found[1::2], strict=True)}
