"""Dead letters as people look at them: by cause, masked, and whether sending them again makes sense."""

import json
import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, NamedTuple, cast

from .address import wire_domain
from .decision import REASONS
from .job import Replay
from .masking import mask_address
from .possible_secrets import PossibleSecrets, said_job_id
from .times import iso

_UNITS_MS = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_SHOWN = ("jobId", "timestamp", "retryCount", "priority", "template", "locale", "purpose", "expiryMinutes")
"""Fields of a job that may be seen, unless what stands in them is the code or the address."""
_WORDS = ("template", "locale", "purpose", "priority")
"""Fields of a few words; a number in them is shown only if it is too short for a code."""
_KNOWN = {"email", "otp", "metadata", "userName", "tenant", *_SHOWN}
_KNOWN_IN_CAPITALS = {
    *map(str.lower, _KNOWN),
    "code", "mail", "user", "name", "phone", "login", "type", "text", "message", "subject", "body", "data", "event",
}  # fmt: skip
_DEPTH = 3
_KEY = re.compile(r"[A-Za-z_$][A-Za-z0-9_.$-]{0,39}")
_DOMAIN = re.compile(r"[\w.-]{1,253}")
_CODE_DIGITS = 4
_LONGEST_SHOWN = 200
_NONE = "none"
_PLAIN = {"reason": "reason", "code": "code", "domain": "domain", "template": "template", "job": "job_id"}
_NOT_SAID = ("code", "domain")
"""What some dead letters do not have."""
_WHOLE_DOMAIN = re.compile(r"[^\s@*]{1,255}")
_NO_DOMAIN = "domain: must be the whole part after the @, without *, or empty for dead letters without a recipient"
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
    code: str = ""
    """The relay's reply code, empty if it gave none."""
    replay: Replay | None = None
    """The last one, if it was replayed before."""
    verified: bool = True
    """Whether a worker wrote its headers. Where not, what is shown of them may be forged, and is sanitized."""

    @property
    def is_job(self) -> bool:
        """Whether its body can be read as a job."""
        return bool(self.recipient)

    @property
    def domain(self) -> str:
        """The recipient's domain; empty where the message was no job."""
        return self.recipient.rpartition("@")[2].lower()

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
    code: str | None = None
    """The relay's, or its beginning: `55` is every code from 550 to 559. Empty: it said none."""
    domain: str | None = None
    """Empty: the message was no job."""
    template: str = ""
    job_id: str = ""
    died_before_ms: int | None = None
    died_after_ms: int | None = None

    @classmethod
    def read(cls, words: Sequence[str], now_ms: int) -> "Wanted":
        """Read `reason=rejected`, `code=550`, `domain=example.com`, `template=`, `job=`, `older=10m`, `newer=1h`.

        Raises `ValueError` that names the field and the fix.
        """
        told: dict[str, Any] = {}
        for word in words:
            name, given, value = word.partition("=")
            if not given:
                raise ValueError(f"{word!r}: must look like reason=rejected or domain=example.com")
            field = _PLAIN.get(name, _AGES.get(name))
            if field is None:
                raise ValueError(f"{name}: is none of {', '.join([*_PLAIN, *_AGES])}")
            if field in told:
                raise ValueError(f"{name}: is given twice; give it once")
            told[field] = _filter(name, value, now_ms)
        wanted = cls(**told)
        before_ms, after_ms = wanted.died_before_ms, wanted.died_after_ms
        if before_ms is not None and after_ms is not None and before_ms <= after_ms:
            raise ValueError(
                "older, newer: no dead letter matches both; older=10m newer=1h selects ages from 10 minutes to an hour"
            )
        return wanted

    def __bool__(self) -> bool:
        return self != Wanted()

    def __str__(self) -> str:
        parts: list[str] = []
        for name, field in _PLAIN.items():
            value: str | None = getattr(self, field)
            if value:
                parts.append(f"{name} {value}")
            elif value is not None and name in _NOT_SAID:
                parts.append(f"no {name}")
        for how, at_ms in (("before", self.died_before_ms), ("after", self.died_after_ms)):
            parts += [] if at_ms is None else [f"died {how} {iso(at_ms)}"]
        return ", ".join(parts) or "all"

    def has(self, letter: Letter) -> bool:
        """Whether this letter is meant."""
        return (
            self.reason in ("", letter.reason)
            and (self.code is None or (letter.code.startswith(self.code) if self.code else not letter.code))
            and self.domain in (None, letter.domain)
            and self.template in ("", letter.template)
            and self.job_id in ("", letter.job_id)
            and (self.died_before_ms is None or (letter.died_ms is not None and letter.died_ms < self.died_before_ms))
            and (self.died_after_ms is None or (letter.died_ms is not None and letter.died_ms >= self.died_after_ms))
        )


def _filter(name: str, value: str, now_ms: int) -> str | int:
    """Return what one word asks for. Raises `ValueError` that names the field and the fix."""
    if name == "domain":
        return _domain(value)
    if name == "code":
        return _code(value)
    if not value:
        raise ValueError(f"{name}: is empty; give a value or leave it out")
    if name == "reason" and value not in REASONS:
        raise ValueError(f"reason: must be one of {', '.join(REASONS)}")
    return now_ms - _span_ms(name, value) if name in _AGES else value


def _code(value: str) -> str:
    if value == _NONE:  # a code has digits alone, so this can mean one thing only
        return ""
    if not (value.isascii() and value.isdecimal() and len(value) <= 3 and value[0] in "2345"):
        raise ValueError(f"code: must be a reply code such as 550, its first digits such as 55, or {_NONE}")
    return value


def _domain(value: str) -> str:
    if value.lower() == _NONE:
        text = "domain= (dead letters without a recipient) or domain=@none (recipients at none)"
        raise ValueError(f"domain: none is ambiguous; write {text}")
    if not value:
        return ""
    domain = _wire(value.removeprefix("@"))
    if not _WHOLE_DOMAIN.fullmatch(domain):
        raise ValueError(_NO_DOMAIN)
    return domain


def words(cause: Cause) -> dict[str, str]:
    """Return what `Wanted.read` takes for the letters with this cause, and for no others."""
    domain = f"@{_NONE}" if cause.domain == _NONE else cause.domain
    return {"reason": cause.reason, "code": cause.code or _NONE, "domain": domain}


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
        """Count a dead letter."""
        self.count += 1
        self.stale += letter.stale(now_ms)
        died_ms = letter.died_ms
        if died_ms is not None:
            self.oldest_ms = died_ms if self.oldest_ms is None else min(self.oldest_ms, died_ms)
        if self.newest_ms is None or (died_ms or 0) >= self.newest_ms:
            self.newest_ms, self.error = died_ms, letter.error


class Groups:
    """Counts dead letters by cause. Memory grows with the number of causes alone."""

    def __init__(self, now_ms: int) -> None:
        self.count = 0
        self.unverified = 0
        self._now_ms = now_ms
        self._groups: dict[Cause, Group] = {}

    def add(self, letter: Letter) -> None:
        """Count a dead letter."""
        self.count += 1
        self.unverified += not letter.verified
        self._groups.setdefault(letter.cause, Group(letter.cause)).add(letter, self._now_ms)

    def all(self) -> list[Group]:
        """Return the groups, the largest first."""
        return sorted(self._groups.values(), key=lambda it: (-it.count, it.cause))


def grouped(letters: Iterable[Letter], now_ms: int) -> list[Group]:
    """Return letters by cause, the largest group first."""
    groups = Groups(now_ms)
    for letter in letters:
        groups.add(letter)
    return groups.all()


def outline(body: bytes) -> object:
    """Return what a body looks like: its fields, and of their values only those that are nobody's secret."""
    try:
        content: Any = json.loads(body)
    except (ValueError, RecursionError):
        return "no JSON"
    secrets, of_values = (PossibleSecrets.of(content, apart=_SHOWN, names=names) for names in (True, False))
    if secrets is None or of_values is None:
        return f"{_kind(content)}: too many values to show"
    return _Outline(secrets, of_values, said_job_id(body)).of("", content, _DEPTH)


@dataclass(frozen=True, slots=True)
class _Outline:
    secrets: PossibleSecrets
    of_values: PossibleSecrets
    """Without the names of fields: no name with a digit would be shown."""
    job_id: str | None

    def of(self, name: str, value: Any, depth: int) -> object:
        if isinstance(value, dict) and depth:
            outlined: dict[str, object] = {}
            for key, field in cast("dict[str, Any]", value).items():
                shown = key if key in _KNOWN or (_plain(key) and not self.of_values.any_in(key)) else "***"
                again = 1
                while shown in outlined:
                    again += 1
                    shown = f"*** ({again})"
                outlined[shown] = self.of(key, field, depth - 1)
            return outlined
        if name == "email" and isinstance(value, str):
            domain = value.strip().rpartition("@")[2]
            return mask_address(value.strip()) if _DOMAIN.fullmatch(domain) and not self._told(domain) else "***"
        if isinstance(value, float) and not isfinite(value):
            return "a number"
        if name in _SHOWN and isinstance(value, str | int | float) and self._may_be_shown(name, value):
            return value
        if isinstance(value, bool) or value is None:
            return value
        return _kind(value)

    def _may_be_shown(self, name: str, value: str | float) -> bool:
        if name == "jobId":
            return value == self.job_id
        if isinstance(value, str) and name in _WORDS and _digits(value) >= _CODE_DIGITS:
            return False
        return not self._told(str(value))

    def _told(self, text: str) -> bool:
        return len(text) > _LONGEST_SHOWN or self.secrets.any_in(text)


def _plain(key: str) -> bool:
    """Return whether it is the name of a field: a program that confuses key and value writes codes and addresses."""
    return _KEY.fullmatch(key) is not None and _digits(key) < _CODE_DIGITS and not _like_a_code(key)


def _like_a_code(key: str) -> bool:
    return len(key) >= _CODE_DIGITS and key.isupper() and key.lower() not in _KNOWN_IN_CAPITALS


def _digits(text: str) -> int:
    return sum(map(str.isdigit, text))


def _kind(value: Any) -> str:
    if isinstance(value, str):
        return f"text of {len(value)} characters"
    if isinstance(value, int | float):
        return "a number"
    return "an object" if isinstance(value, dict) else f"a list of {len(value)}"


def _wire(domain: str) -> str:
    """Return a domain as the letters have it: people write `straße.example`."""
    try:
        return wire_domain(domain)
    except ValueError as error:
        raise ValueError(f"domain: {error}") from None


def _span_ms(name: str, text: str) -> int:
    number, unit = text[:-1], text[-1:]
    if not (number.isascii() and number.isdigit()) or unit not in _UNITS_MS:
        raise ValueError(f"{name}: must look like 10m (s, m, h or d)")
    return int(number) * _UNITS_MS[unit]
