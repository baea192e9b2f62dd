"""Dead letters without their secrets, grouped by cause, and whether a replay can help."""

import json
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from math import isfinite
from typing import Any, NamedTuple

from .decision import REASONS
from .job import Replay
from .json_types import is_object
from .masking import mask_address
from .possible_secrets import PossibleSecrets, readable_job_id
from .sealed_body import is_sealed
from .secret_search import MAX_SEARCHED

NO_VALUE = "none"
"""The word for a missing reply code in a filter."""
_SHOWN = ("jobId", "timestamp", "retryCount", "priority", "template", "locale", "purpose", "expiryMinutes")
"""Fields of a job that are shown, unless their value may be the code or the address."""
_WORDS = ("template", "locale", "purpose", "priority")
"""Of them, fields that hold words; a number in them is shown only if it is too short for a code."""
_KNOWN = {"email", "otp", "otpSealed", "metadata", "userName", "tenant", "timeZone", "request", *_SHOWN}
_KNOWN_IN_CAPITALS = {
    *map(str.lower, _KNOWN),
    "code", "mail", "user", "name", "phone", "login", "type", "text", "message", "subject", "body", "data", "event",
}  # fmt: skip
_DEPTH = 3
_KEY = re.compile(r"[A-Za-z_$][A-Za-z0-9_.$-]{0,39}")
_DOMAIN = re.compile(r"[\w.-]{1,253}")
_SEALED = "sealed as a whole with a key that is not in SEALING_KEYS: set it here, too"
_OUTLINE = re.compile(
    r"(?:text of [0-9]{1,4} characters|a list of [0-9]{1,4}|a number|an object)(?:: too many values to show)?|\*\*\*"
    rf"|too large to (?:show|keep)|no JSON|{_SEALED}"
)
"""What an outline has in place of values."""
_CODE_DIGITS = 4
_MAX_SHOWN = 200
_NEVER_VALID = "malformed"
"""The reason of messages that are not valid jobs: a replay fails every time."""


class DeadLettersError(Exception):
    """The dead-letter queue cannot be read; the text contains the cause and the fix."""


class DeadLettersInUseError(DeadLettersError):
    """Someone else is reading the dead-letter queue."""


class Cause(NamedTuple):
    """The fields by which dead letters are grouped."""

    reason: str
    """As in `x-otp-reason`."""
    code: str
    """The relay's reply code, empty if it gave none."""
    domain: str
    """Of the recipient; empty if the message is not a valid job."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One dead letter without its secrets; times are milliseconds since 1970."""

    job_id: str
    reason: str
    error: str
    attempt: int
    recipient: str
    """Masked; empty if the message is not a valid job."""
    template: str
    died_ms: int | None
    first_seen_ms: int | None
    expires_ms: int | None
    """When its code expires or expired; `None` if the message is not a valid job."""
    allowed_ms: int | None
    size: int
    """Of the body, in bytes."""
    code: str = ""
    """The relay's reply code, empty if it gave none."""
    replay: Replay | None = None
    """The last replay."""
    erased_ms: int | None = None
    """When the code was removed from it, because it had expired; `None` if that has not happened."""
    verified: bool = True
    """Whether its headers have a valid signature. If not, they may be forged, and the fields above are sanitized."""

    @property
    def is_job(self) -> bool:
        """Whether its body can be read as a job."""
        return bool(self.recipient)

    @property
    def domain(self) -> str:
        """The recipient's domain; empty if the message is not a valid job, or the domain contains the code."""
        return self.recipient.partition("@")[2].lower()

    @property
    def cause(self) -> Cause:
        """The fields by which it is grouped."""
        return Cause(self.reason, self.code, self.domain)

    def is_expired(self, now_ms: int) -> bool:
        """Whether its code has expired, so that a replay would dead-letter it again."""
        return self.expires_ms is not None and self.expires_ms <= now_ms


def filter_by(cause: Cause) -> dict[str, str]:
    """Return the conditions for `DeadLetterFilter.parse` that select exactly the dead letters with this cause."""
    domain = f"@{NO_VALUE}" if cause.domain == NO_VALUE else cause.domain
    return {"reason": cause.reason, "code": cause.code or NO_VALUE, "domain": domain}


@dataclass(slots=True)
class Group:
    """The dead letters with one cause."""

    cause: Cause
    count: int = 0
    expired: int = 0
    """How many of them have an expired code."""
    erased: int = 0
    """How many of them have no code any more."""
    oldest_ms: int | None = None
    newest_ms: int | None = None
    error: str = ""
    """Of the newest dead letter."""

    @property
    def can_replay(self) -> bool:
        """Whether a replay of any can succeed, and a filter accepts the reason."""
        is_valid = self.cause.reason != _NEVER_VALID and self.cause.reason in REASONS
        return is_valid and self.erased < self.count

    @property
    def worth_replaying(self) -> bool:
        """Whether a replay would send any of the codes."""
        return self.can_replay and self.expired < self.count

    @property
    def command(self) -> str:
        """The shell command that replays the group."""
        return (
            f"otp-stream dead replay {shlex.join(f'{name}={value}' for name, value in filter_by(self.cause).items())}"
        )

    def add(self, dead_letter: DeadLetter, now_ms: int) -> None:
        """Count a dead letter."""
        self.count += 1
        self.expired += dead_letter.is_expired(now_ms)
        self.erased += dead_letter.erased_ms is not None
        died_ms = dead_letter.died_ms
        if died_ms is not None:
            self.oldest_ms = died_ms if self.oldest_ms is None else min(self.oldest_ms, died_ms)
        if self.newest_ms is None or (died_ms is not None and died_ms >= self.newest_ms):
            self.newest_ms, self.error = died_ms, dead_letter.error


class Groups:
    """Counts dead letters by cause. Memory grows only with the number of causes."""

    def __init__(self, now_ms: int) -> None:
        self.count = 0
        self.unverified = 0
        self._now_ms = now_ms
        self._groups: dict[Cause, Group] = {}

    def add(self, dead_letter: DeadLetter) -> None:
        """Count a dead letter."""
        self.count += 1
        self.unverified += not dead_letter.verified
        self._groups.setdefault(dead_letter.cause, Group(dead_letter.cause)).add(dead_letter, self._now_ms)

    def all(self) -> list[Group]:
        """Return the groups, the largest first."""
        return sorted(self._groups.values(), key=lambda it: (-it.count, it.cause))


def grouped(dead_letters: Iterable[DeadLetter], now_ms: int) -> list[Group]:
    """Return dead letters by cause, the largest group first."""
    groups = Groups(now_ms)
    for dead_letter in dead_letters:
        groups.add(dead_letter)
    return groups.all()


def outline(body: bytes) -> object:
    """Return the structure of a body, with only those names and values that cannot be secrets."""
    if is_sealed(body):
        return _SEALED
    if len(body) > MAX_SEARCHED:
        return "too large to show"
    try:
        content: Any = json.loads(body)
    except (ValueError, RecursionError):
        return "no JSON"
    secrets, of_values = (PossibleSecrets.of(content, skip=_SHOWN, names=names) for names in (True, False))
    if secrets is None or of_values is None:
        return f"{_kind(content)}: too many values to show"
    return _Outline(secrets, of_values, readable_job_id(body)).of("", content, _DEPTH)


def is_outline(value: object) -> bool:
    """Return whether a value is what an outline has in place of one. The outline of an outline is the same."""
    return isinstance(value, str) and _OUTLINE.fullmatch(value) is not None


@dataclass(frozen=True, slots=True)
class _Outline:
    secrets: PossibleSecrets
    of_values: PossibleSecrets
    """Those that are not names of fields: by `secrets`, no name with a digit would be shown."""
    job_id: str | None

    def of(self, name: str, value: Any, depth: int) -> object:
        if is_object(value) and depth:
            outlined: dict[str, object] = {}
            for key, field in value.items():
                shown = key if key in _KNOWN or (_is_field_name(key) and not self.of_values.any_in(key)) else "***"
                count = 1
                while shown in outlined:
                    count += 1
                    shown = f"*** ({count})"
                outlined[shown] = self.of(key, field, depth - 1)
            return outlined
        if is_outline(value):
            return value
        if name == "email" and isinstance(value, str):
            domain = value.strip().rpartition("@")[2]
            shown = value.isprintable() and _DOMAIN.fullmatch(domain) and not self._may_be_secret(domain)
            return mask_address(value.strip()) if shown else "***"
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
        # half of a surrogate pair, which JSON may contain, cannot even be encoded
        if isinstance(value, str) and (not value.isprintable() or (name in _WORDS and _digits(value) >= _CODE_DIGITS)):
            return False
        return not self._may_be_secret(str(value))

    def _may_be_secret(self, text: str) -> bool:
        return len(text) > _MAX_SHOWN or self.secrets.any_in(text)


def _is_field_name(key: str) -> bool:
    """Return whether a key looks like a name: a program that confuses key and value writes codes and addresses."""
    return _KEY.fullmatch(key) is not None and _digits(key) < _CODE_DIGITS and not _looks_like_code(key)


def _looks_like_code(key: str) -> bool:
    return len(key) >= _CODE_DIGITS and key.isupper() and key.lower() not in _KNOWN_IN_CAPITALS


def _digits(text: str) -> int:
    return sum(map(str.isdigit, text))


def _kind(value: Any) -> str:
    if isinstance(value, str):
        return f"text of {len(value)} characters"
    if isinstance(value, int | float):
        return "a number"
    return "an object" if isinstance(value, dict) else f"a list of {len(value)}"
