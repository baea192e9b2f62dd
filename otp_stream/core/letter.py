"""Dead letters as people look at them: by cause, masked, and whether sending them again makes sense."""

import json
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, NamedTuple, cast

from .decision import REASONS
from .job import Replay
from .masking import holds_any, mask_address, suspects
from .outcome import said
from .times import iso

_UNITS_MS = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_SHOWN = ("jobId", "timestamp", "retryCount", "priority", "template", "locale", "purpose", "expiryMinutes")
"""Fields of a job that may be seen, unless what stands in them is the code or the address."""
_DEPTH = 3
_NONE = "none"
_PLAIN = {"reason": "reason", "code": "code", "domain": "domain", "template": "template", "job": "job_id"}
_AGES = {"older": "died_before_ms", "newer": "died_after_ms"}
_HOPELESS = "malformed"
"""What is no job never becomes one."""


class LettersError(Exception):
    """The letters cannot be reached; the text says why and what to do."""


class InHandError(LettersError):
    """Somebody else has them in hand for a while."""


class Cause(NamedTuple):
    """What letters have in common that died of the same."""

    reason: str
    """As in `x-otp-reason`."""
    code: str
    """The relay's reply code, empty where it said none."""
    domain: str
    """Of the recipient; empty where the message was no job."""


@dataclass(frozen=True, slots=True)
class Letter:
    """One dead letter without its secrets; times are milliseconds since 1970."""

    job_id: str
    reason: str
    error: str
    attempt: int
    recipient: str
    """Masked; empty where the message was no job."""
    template: str
    died_ms: int | None
    first_seen_ms: int | None
    expires_ms: int | None
    """When its code ends or ended; `None` where the message was no job."""
    allowed_ms: int | None
    size: int
    """Of the body, in bytes."""
    replay: Replay | None = None
    """The last one, if it was replayed before."""

    @property
    def is_job(self) -> bool:
        """Whether its body can be read as a job."""
        return bool(self.recipient)

    @property
    def domain(self) -> str:
        """The recipient's domain; empty where the message was no job."""
        return self.recipient.rpartition("@")[2].lower()

    @property
    def code(self) -> str:
        """The relay's reply code, empty where it said none."""
        reply = said(self.error)
        return str(reply[0]) if reply else ""

    @property
    def cause(self) -> Cause:
        """What it died of."""
        return Cause(self.reason, self.code, self.domain)

    def stale(self, now_ms: int) -> bool:
        """Whether its code has expired: it would only die again."""
        return self.expires_ms is not None and self.expires_ms <= now_ms


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which letters are meant; what is empty or `None` is not looked at. Times are milliseconds since 1970."""

    reason: str = ""
    code: str = ""
    """The relay's, or its beginning: `55` is every code from 550 to 559. `none` where it said none."""
    domain: str = ""
    """`none` where the message was no job."""
    template: str = ""
    job_id: str = ""
    died_before_ms: int | None = None
    died_after_ms: int | None = None

    @classmethod
    def read(cls, words: Sequence[str], now_ms: int) -> "Wanted":
        """Read `reason=rejected`, `code=550`, `domain=example.com`, `template=`, `job=`, `older=10m`, `newer=1h`.

        Raises `ValueError` with the cure.
        """
        told: dict[str, Any] = {}
        for word in words:
            name, _, value = word.partition("=")
            if not value:
                raise ValueError(f"{word!r}: must look like reason=rejected or domain=example.com")
            if _PLAIN.get(name, _AGES.get(name)) in told:
                raise ValueError(f"{name}: is said twice, and no letter has two")
            if name == "reason" and value not in REASONS:
                raise ValueError(f"reason: must be one of {', '.join(REASONS)}")
            if name in _PLAIN:
                told[_PLAIN[name]] = value
            elif name in _AGES:
                told[_AGES[name]] = now_ms - _span_ms(name, value)
            else:
                raise ValueError(f"{name}: is none of {', '.join([*_PLAIN, *_AGES])}")
        return cls(**told)

    def __bool__(self) -> bool:
        return self != Wanted()

    def __str__(self) -> str:
        told = [f"{name} {value}" for name, field in _PLAIN.items() if (value := getattr(self, field))]
        for how, at_ms in (("before", self.died_before_ms), ("after", self.died_after_ms)):
            told += [] if at_ms is None else [f"died {how} {iso(at_ms)}"]
        return ", ".join(told) or "all"

    def has(self, letter: Letter) -> bool:
        """Whether this letter is meant."""
        return (
            self.reason in ("", letter.reason)
            and (letter.code or _NONE).startswith(self.code)
            and self.domain.lower() in ("", letter.domain or _NONE)
            and self.template in ("", letter.template)
            and self.job_id in ("", letter.job_id)
            and (self.died_before_ms is None or (letter.died_ms is not None and letter.died_ms < self.died_before_ms))
            and (self.died_after_ms is None or (letter.died_ms is not None and letter.died_ms >= self.died_after_ms))
        )


def words(cause: Cause) -> dict[str, str]:
    """Return what `Wanted.read` takes for the letters with this cause, and for no others."""
    return {"reason": cause.reason, "code": cause.code or _NONE, "domain": cause.domain or _NONE}


@dataclass(slots=True)
class Group:
    """Letters with one cause."""

    cause: Cause
    count: int = 0
    stale: int = 0
    """Of them, those whose code has expired."""
    oldest_ms: int | None = None
    newest_ms: int | None = None
    error: str = ""
    """What was said of the newest."""

    @property
    def can_go(self) -> bool:
        """Whether it can be sent again at all, and be named by its cause: others' reasons have no name here."""
        return self.cause.reason != _HOPELESS and self.cause.reason in REASONS

    @property
    def worth_it(self) -> bool:
        """Whether to send it again would do more than have it die once more."""
        return self.can_go and self.stale < self.count

    @property
    def command(self) -> str:
        """What a shell is told to send it again."""
        return f"otp-stream dead replay {shlex.join(f'{name}={value}' for name, value in words(self.cause).items())}"

    def add(self, letter: Letter, now_ms: int) -> None:
        """Count a letter in."""
        self.count += 1
        self.stale += letter.stale(now_ms)
        died_ms = letter.died_ms
        if died_ms is not None:
            self.oldest_ms = died_ms if self.oldest_ms is None else min(self.oldest_ms, died_ms)
        if self.newest_ms is None or (died_ms or 0) >= self.newest_ms:
            self.newest_ms, self.error = died_ms, letter.error


def grouped(letters: Iterable[Letter], now_ms: int) -> list[Group]:
    """Return letters by cause, the largest group first."""
    groups: dict[Cause, Group] = {}
    for letter in letters:
        groups.setdefault(letter.cause, Group(letter.cause)).add(letter, now_ms)
    return sorted(groups.values(), key=lambda it: (-it.count, it.cause))


def outline(body: bytes) -> object:
    """Return what a body looks like: its fields, and of their values only those that are nobody's secret."""
    try:
        content: Any = json.loads(body)
    except (ValueError, RecursionError):
        return "no JSON"
    fields = cast("dict[str, Any]", content) if isinstance(content, dict) else {}
    named = {str(fields.get(name, "")).strip() for name in ("email", "otp")}
    return _outlined("", content, named.union(suspects(content, apart=_SHOWN)), _DEPTH)


def _outlined(name: str, value: Any, secrets: set[str], depth: int) -> object:
    if isinstance(value, dict) and depth:
        fields = cast("dict[str, Any]", value)
        return {
            "***" if holds_any(key, secrets) else key: _outlined(key, field, secrets, depth - 1)
            for key, field in fields.items()
        }
    if name == "email" and isinstance(value, str):
        return mask_address(value.strip())
    if isinstance(value, float) and not isfinite(value):
        return "a number"
    if name in _SHOWN and isinstance(value, str | int | float) and not holds_any(str(value), secrets):
        return value
    if isinstance(value, str):
        return f"text of {len(value)} characters"
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int | float):
        return "a number"
    return "an object" if isinstance(value, dict) else f"a list of {len(value)}"


def _span_ms(name: str, text: str) -> int:
    number, unit = text[:-1], text[-1:]
    if not (number.isascii() and number.isdigit()) or unit not in _UNITS_MS:
        raise ValueError(f"{name}: must look like 10m (s, m, h or d)")
    return int(number) * _UNITS_MS[unit]
