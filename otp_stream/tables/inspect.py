"""What one asks of the shared tables from outside: how large they are, what they answered, whom they hold off.

Everything here reads, but for `forget`. Redis holds neither an address nor a code, so nothing here can tell one.
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

from .ask import SLICES, slice_ms
from .redis import AwayError
from .shared import LEASE_S

TOP = 10
"""How many of the keys that are over a limit most often are told."""

_AT_ONCE = 1000
_TIMEOUT_S = 5.0
_JOB_STATES = {b"s": "sent", b"c": "claimed", b"r": "seen"}

Progress = Callable[[int], object]
"""Is told about how many keys were looked at."""


@dataclass(frozen=True, slots=True)
class Server:
    """Redis itself; `None` and empty where it does not say."""

    version: str = ""
    memory_bytes: int | None = None
    memory_limit: int | None = None
    """Bytes that it may use; 0 is no limit."""
    policy: str = ""
    """What gives way at the limit."""
    evicted: int = 0
    """Keys that have given way since its start, whoever they belonged to."""

    @classmethod
    def read(cls, info: str) -> Self:
        """Read the answer to INFO."""
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
        """What is wrong with how it is set up, with the cure."""
        if not self.memory_limit or self.policy in {"", "noeviction"}:
            return None
        return (
            f"maxmemory-policy is {self.policy}: when its memory is full, Redis drops marks of sent jobs before their "
            f"time, and those jobs may be sent twice ({self.evicted} keys were dropped since its start). "
            "Set maxmemory-policy noeviction"
        )


@dataclass(frozen=True, slots=True)
class Schedule:
    """A relay's rate, as all workers keep it."""

    relay: str
    ahead_s: float
    """How far ahead its slots are taken."""
    rate: float | None
    """Mails per second at present; `None` where that cannot be known from here."""
    throttled_s: float | None
    """Seconds since it last throttled; `None` where it has not, of late."""


@dataclass(frozen=True, slots=True)
class Seen:
    """The shared tables at one moment."""

    server: Server
    workers: int
    """Which were heard of in the last seconds."""
    sizes: Mapping[str, int]
    """Entries by table. While Redis makes room for more keys, it may name one twice."""
    answers: Mapping[str, int]
    """What was answered, by all workers, since Redis was last empty."""
    throttled: Mapping[str, int]
    """What was over a limit most often, by limit and hashed key; its count ends after a day."""
    schedules: tuple[Schedule, ...]


class _TlsConnection(SSLConnection):
    def _wrap_socket_with_ssl(self, sock: Any) -> Any:
        host = self.host
        try:
            self.host = certificate_name(host)
            return cast("Any", super())._wrap_socket_with_ssl(sock)  # noqa: SLF001 - it offers no other way
        finally:
            self.host = host


class Line:
    """One connection to Redis, on which each question waits for its answer, which comes as it is: bytes and lists."""

    def __init__(self, url: str) -> None:
        options: dict[str, Any] = {**_read_url(url)}
        kind: type[Connection] = options.pop("connection_class", Connection)
        if issubclass(kind, SSLConnection):
            kind = _TlsConnection
        # Redis 5 knows nothing of protocol 3
        options |= {"protocol": 2, "driver_info": None, "decode_responses": False}
        options |= {"socket_connect_timeout": _TIMEOUT_S, "socket_timeout": _TIMEOUT_S}
        self._connection: Any = kind(**options)

    def ask(self, *words: str | bytes | int) -> Any:
        """Have a command done."""
        self._connection.send_command(*words)
        return self._connection.read_response()

    def close(self) -> None:
        """Hang up."""
        self._connection.disconnect()


@contextmanager
def opened(url: str) -> Generator[Line]:
    """Open a Redis for questions. Whatever it does not answer is `AwayError`, in words without the password."""
    try:
        with closing(Line(url)) as line:
            yield line
    except (RedisError, OSError, ValueError) as error:
        password = urlsplit(url).password or ""
        text = scrub(str(error), password, unquote(password))
        raise AwayError(text if isinstance(error, ResponseError) else f"{type(error).__name__}: {text}") from None


def look(
    line: Line,
    prefix: str,
    limits: Sequence[Limit] = (),
    *,
    ceiling: float | None = None,
    progress: Progress = lambda _: None,
) -> Seen:
    """Look at everything below `prefix`; `ceiling` is a relay's full rate, mails per second."""
    seconds, micros = line.ask("TIME")
    now_ms = int(seconds) * 1000 + int(micros) // 1000
    relays: list[str] = []
    sizes = _sizes(line, prefix, limits, relays, progress)
    return Seen(
        server=ask_server(line),
        workers=line.ask("ZCOUNT", f"{prefix}workers", f"({now_ms - round(LEASE_S * 1000)}", "+inf"),
        sizes=sizes,
        answers={name: int(number) for name, number in sorted(_hash(line, f"{prefix}stats").items())},
        throttled=_throttled(line, prefix),
        schedules=tuple(_schedule(line, prefix, relay, ceiling, now_ms) for relay in sorted(set(relays))),
    )


def forget(line: Line, prefix: str, recipient: str, *, progress: Progress = lambda _: None) -> Mapping[str, int]:
    """Forget a recipient, by keyed hash; returns how many entries each table lost.

    Gone are the newest codes (so of two codes that wait now the older one may still go out), every window of its limit
    and its place among the throttled. Marks of sent jobs and ids made for jobs stay: a hash of the job leads to
    them, nothing else.
    """
    newest = f"{prefix}newest:{recipient}"
    codes = line.ask("HLEN", newest)
    line.ask("DEL", newest)
    windows = [key for keys in _scan(line, f"{prefix}limit:recipient:", f":{recipient}", progress) for key in keys]
    return {
        "newest": codes,
        "recipient": sum(line.ask("DEL", key) for key in windows),
        "throttled": line.ask("ZREM", f"{prefix}throttled", f"recipient:{recipient}"),
    }


def _sizes(line: Line, prefix: str, limits: Sequence[Limit], relays: list[str], progress: Progress) -> dict[str, int]:
    """Count entries by table, and note the relays that have a schedule."""
    named = {f"{limit.name}:{slice_ms(limit)}": f"{limit.name} {limit}" for limit in limits}
    sizes = Counter(dict.fromkeys([*_JOB_STATES.values(), "made", "newest", *named.values()], 0))
    for keys in _scan(line, prefix, "", progress):
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
                window = rest.rpartition(":")[0]
                sizes[named.get(window) or _unset(window)] += 1
        values: list[bytes | None] = line.ask("MGET", *jobs) if jobs else []
        sizes.update(_JOB_STATES[value[:1]] for value in values if value and value[:1] in _JOB_STATES)
    return dict(sizes)


def _unset(window: str) -> str:
    """Return the name of a limit that is not set here, but somewhere or before: its count is not known."""
    name, _, slice_ = window.partition(":")
    return f"{name} ?/{span(int(slice_) * SLICES)}" if slice_.isdigit() else name


def _scan(line: Line, start: str, end: str, progress: Progress) -> Iterator[list[str]]:
    plain = [re.sub(r"([\\*?\[\]])", r"\\\1", part) for part in (start, end)]
    cursor, looked = b"0", 0
    while True:
        cursor, keys = line.ask("SCAN", cursor, "MATCH", "*".join(plain), "COUNT", _AT_ONCE)
        looked += _AT_ONCE
        progress(looked)
        yield [key.decode(errors="replace") for key in keys]
        if int(cursor) == 0:
            return


def ask_server(line: Line) -> Server:
    """Ask Redis for itself."""
    try:
        return Server.read(line.ask("INFO").decode())
    except ResponseError:  # who may use the tables need not be allowed this
        return Server()


def _throttled(line: Line, prefix: str) -> dict[str, int]:
    found = _pairs(line.ask("ZREVRANGE", f"{prefix}throttled", 0, TOP - 1, "WITHSCORES"))
    return {who.replace(":", " ", 1): int(times) for who, times in found.items()}


def _schedule(line: Line, prefix: str, relay: str, ceiling: float | None, now_ms: int) -> Schedule:
    """Read a relay's schedule, by the rule of core/rate.py."""
    found = _hash(line, f"{prefix}rate:{relay}")
    ahead_s = max(float(found.get("next", 0)) / 1e6 - now_ms / 1e3, 0.0)
    if "since" not in found:
        return Schedule(relay, ahead_s, ceiling, None)
    throttled_s = max(now_ms - float(found["since"]), 0.0) / 1e3
    rate = min(ceiling, float(found["base"]) + slope(ceiling) * throttled_s) if ceiling else None
    return Schedule(relay, ahead_s, rate, throttled_s)


def _hash(line: Line, key: str) -> dict[str, str]:
    return _pairs(line.ask("HGETALL", key))


def _pairs(found: list[bytes]) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in zip(found[::2], found[1::2], strict=True)}
