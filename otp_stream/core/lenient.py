"""Reads jobs whose optional fields are not as documented, so that their codes are sent all the same."""

import math
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from .json_types import is_list, is_object
from .lenient_json import BOM, loads, read_integer

MAX_RETRY_COUNT = 1_000
MAX_EXPIRY_MINUTES = 525_600
MAX_JOB_ID = 200
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
MAX_REQUEST_TEXT = 200
REQUEST_TEXTS = ("place", "device")
"""The texts of `metadata.request` that e-mails show."""
TIME_ZONE = re.compile(r"[A-Za-z][A-Za-z0-9_+-]{0,31}(/[A-Za-z0-9_+-]{1,31}){0,2}")
LOCALE = re.compile(r"[A-Za-z]{2,3}([-_][A-Za-z0-9]{1,8}){0,3}")
_NUMBER = re.compile(r"[+-]?[0-9]{1,20}(\.[0-9]{0,20})?")
_PRIORITIES = ("low", "normal", "high")
MILLISECONDS = range(10**12, 10**13)
"""From 2001 to 2286. A value that is outside in every unit, such as .NET's ticks or an uptime, is no time of a code."""


class _Unit(NamedTuple):
    values: range
    """The timestamps that are in this unit."""
    name: str | None
    """`None` if it is the documented one."""
    milliseconds: float


_UNITS = (
    _Unit(range(10**9, 10**10), "seconds", 1_000),
    _Unit(MILLISECONDS, None, 1),
    _Unit(range(10**15, 10**16), "microseconds", 1 / 1_000),
    _Unit(range(10**18, 10**19), "nanoseconds", 1 / 1_000_000),
)

_OTHER_ENCODINGS = (b"\xff\xfe", b"\xfe\xff", b"{\0", b"\0")
_NO_OBJECT = {
    b'"': "is a text: encode the job once, as a JSON object",
    b"[": "is a list: publish one message for each job, a JSON object",
}
_MAX_TEXTS = 20
"""Values that are read from a list or an object where one text is expected."""


class Lenience(NamedTuple):
    """One field that was not as documented, and how it was handled."""

    field: str
    what: str
    """`coerced`, `ignored`, or the unit of a timestamp that is not in milliseconds."""


def has_two_names(body: bytes) -> bool:
    """Return whether a field may be there under both of its names, such as `jobId` and `job_id`: one may be empty."""
    return any(snake in body and name in body for name, snake in _TWO_NAMES)


def unreadable(body: bytes) -> str | None:
    """Return why a body is no JSON object, with the fix, if its first bytes show that."""
    start = body.removeprefix(BOM).lstrip()[:4]
    if not start:
        return "is empty"
    if start.startswith(b"\x1f\x8b"):
        return "is compressed by gzip: publish the JSON itself"
    if start.startswith(_OTHER_ENCODINGS):
        return "is not encoded as UTF-8: publish UTF-8"
    return _NO_OBJECT.get(start[:1])


class LenientJob(NamedTuple):
    """A job with its invalid optional fields coerced or ignored."""

    fields: dict[str, Any]
    """The job's fields, each optional one valid or absent."""
    found: list[Lenience]
    original_metadata: dict[str, Any]
    """Original values of `_KEPT_AS_SENT` keys that were coerced or ignored, for the producer's own templates."""


def read_leniently(body: bytes) -> LenientJob:
    """Parse a job, and coerce or ignore invalid optional fields.

    Raises `ValueError`, `TypeError` or `RecursionError` if the body is no JSON object.
    """
    return with_valid_fields(loads(body, read_integer))


def with_valid_fields(fields: Any) -> LenientJob:
    """Coerce or ignore invalid optional fields of a parsed job. Raises `TypeError` if it is no object."""
    if not is_object(fields):
        raise TypeError("a job is a JSON object")
    found: list[Lenience] = []
    job = _coerced(fields, _FIELDS, "", found)
    original: dict[str, Any] = {}
    if is_object(given := job.get("metadata")):
        job["metadata"] = good = _coerced(given, _METADATA, "metadata.", found)
        original = {key: given[key] for key in _KEPT_AS_SENT if key in given and given[key] != good.get(key)}
    return LenientJob(job, found, original)


def _coerced(
    fields: Mapping[str, Any], readers: Mapping[str, Callable[[Any], Any]], place: str, found: list[Lenience]
) -> dict[str, Any]:
    coerced = dict(fields)
    for name, read in readers.items():
        key, value = name, fields.get(name)
        if value is None or value == "":
            key = _SNAKE[name]
            value = fields.get(key)
            if value is None or value == "":
                continue
            coerced.pop(name, None)
        coerced[key] = good = read(value)
        if type(good) is type(value) and good == value:
            continue
        unit = _unit(value) if name == "timestamp" else None
        what = "ignored" if good is None else (unit and unit.name) or "coerced"
        found.append(Lenience(place + name, what))
    return coerced


def _number(value: object) -> int | float | None:
    """Return a finite number, also from a string; otherwise `None`."""
    if isinstance(value, str) and _NUMBER.fullmatch(value := value.strip()):
        return float(value) if "." in value else int(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value


def _retry_count(value: object) -> int | None:
    number = _number(value)
    return int(number) if number is not None and 0 <= number <= MAX_RETRY_COUNT else None


def read_job_id(value: object) -> str | None:
    """Return the id that a job gets for its `jobId`, or `None`."""
    if isinstance(value, int | float):
        number = _number(value)
        value = None if number is None else str(int(number) if number == int(number) else number)
    if not isinstance(value, str):
        return None
    return next((it for it in (value, value.strip()) if 0 < len(it) <= MAX_JOB_ID and it.isprintable()), None)


def _timestamp(value: object) -> int | None:
    number, unit = _number(value), _unit(value)
    if number is None or unit is None:
        return _moment(value) if isinstance(value, str) else None
    return int(number * unit.milliseconds)


def _moment(text: str) -> int | None:
    """Parse an ISO 8601 time with its zone: a local time that is read as UTC could be hours ago."""
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        return None
    if moment.tzinfo is None:
        return None
    at_ms = int(moment.timestamp() * 1000)
    return at_ms if at_ms in MILLISECONDS else None


def _unit(value: object) -> _Unit | None:
    """Return the unit of a timestamp, or `None` if its value is no time in any unit."""
    number = _number(value)
    if number is None:
        return None
    return next((unit for unit in _UNITS if unit.values.start <= number < unit.values.stop), None)


def _priority(value: object) -> str | None:
    name = value.strip().lower() if isinstance(value, str) else None
    return name if name in _PRIORITIES else None


def _metadata(value: object) -> dict[str, Any] | None:
    return value if is_object(value) else None


def _minutes(value: object) -> int | float | None:
    number = _number(value)
    return number if number is not None and 0 < number <= MAX_EXPIRY_MINUTES else None


def _locale(value: object) -> str | None:
    found = LOCALE.match(value.strip()) if isinstance(value, str) else None
    return found.group() if found else None


def _time_zone(value: object) -> str | None:
    name = value.strip() if isinstance(value, str) else ""
    return name if TIME_ZONE.fullmatch(name) else None


def _request(value: object) -> dict[str, Any] | None:
    if not is_object(value):
        return None
    texts = {name: _text(value[name]) for name in REQUEST_TEXTS if name in value}
    return {**value, **{name: text and text[:MAX_REQUEST_TEXT] for name, text in texts.items()}}


def _template(value: object) -> str | None:
    name = value.strip() if isinstance(value, str) else ""
    return name if NAME.fullmatch(name) else None


def _text(value: object) -> str | None:
    """Return a text. A number becomes its digits, a list or an object the texts and numbers directly in it."""
    if isinstance(value, str):
        return value
    if is_object(value):
        value = list(value.values())
    if is_list(value):
        inner = (_text(it) for it in value[:_MAX_TEXTS] if not isinstance(it, list | dict))
        return " ".join(filter(None, inner)) or None
    number = _number(value)
    return None if number is None else str(number)


_FIELDS: Mapping[str, Callable[[Any], Any]] = {
    "retryCount": _retry_count,
    "jobId": read_job_id,
    "timestamp": _timestamp,
    "priority": _priority,
    "metadata": _metadata,
}
_METADATA: Mapping[str, Callable[[Any], Any]] = {
    "userName": _text,
    "expiryMinutes": _minutes,
    "locale": _locale,
    "template": _template,
    "purpose": _text,
    "timeZone": _time_zone,
    "request": _request,
}
_KEPT_AS_SENT = ("timeZone", "time_zone", "request")
"""Keys that producers may already use for their own templates, with values of another form."""
_SNAKE = {name: re.sub(r"(?=[A-Z])", "_", name).lower() for name in (*_FIELDS, *_METADATA)}
_TWO_NAMES = [(b'"%b"' % name.encode(), b'"%b"' % snake.encode()) for name, snake in _SNAKE.items() if name != snake]
LENIENT_FIELDS = ("body", "otp", "otpSealed", *_FIELDS, *(f"metadata.{name}" for name in _METADATA))
