"""The values of a job that a template may print."""

import re
from collections.abc import Mapping
from datetime import UTC, tzinfo
from functools import lru_cache
from typing import Any

from otp_stream.core.job import Job
from otp_stream.time_zones import find_time_zone

from .identity import MailIdentity
from .language import Language, moment, time_of_day
from .sanitized import NAME_LIMIT, safe_text, sanitized

_HALF_DAY_MS = 12 * 60 * 60_000
_MINUTE_MS = 60_000
_UNITS = ((24 * 60, "day"), (60, "hour"))

ACTIONS: Mapping[str, tuple[str, ...]] = {
    "login": ("signin", "logon", "2fa", "mfa", "authentication"),
    "sign_up": ("signup", "register", "registration", "createaccount"),
    "verify_email": ("confirmemail", "emailverification", "emailconfirmation"),
    "change_email": ("emailchange", "updateemail"),
    "change_phone": ("phonechange", "updatephone", "changephonenumber"),
    "change_password": ("passwordchange", "updatepassword"),
    "confirm_payment": ("payment", "transfer", "confirmtransfer", "transaction", "confirmtransaction"),
    "add_device": ("newdevice", "device", "confirmdevice", "trustdevice"),
    "delete_account": ("accountdeletion", "closeaccount"),
}
"""The purposes that the built-in templates name, each with other spellings."""
_ACTIONS = {
    re.sub(r"[\W_]", "", spelling): action for action, others in ACTIONS.items() for spelling in (action, *others)
}


def template_data(job: Job, language: Language, identity: MailIdentity) -> dict[str, Any]:
    """Return the variables of a template: every metadata key, sanitized, and those of `docs/templates.md`."""
    metadata = job.request.metadata
    zone = _zone(metadata.time_zone or identity.time_zone, identity.time_zone)
    locale = language.regional(metadata.locale)
    life_ms = job.lifetime_ms
    minutes = life_ms / _MINUTE_MS
    count, unit = _rounded(int(minutes))
    given = {
        **(metadata.__pydantic_extra__ or {}),
        "userName": metadata.user_name,
        "purpose": metadata.purpose,
        "tenant": metadata.tenant,
    }
    if metadata.request is not None:
        given.setdefault("request", metadata.request)
    if metadata.time_zone is not None:  # a producer's own template reads it by the name that was sent
        given.setdefault("timeZone", metadata.time_zone)
        given.setdefault("time_zone", metadata.time_zone)
    data = sanitized(given)
    place, device = _origin(metadata.request)
    data.update(
        locale=metadata.locale,
        expiryMinutes=int(minutes) if minutes == int(minutes) else round(minutes, 1),
        # one value for each minute, so that it can be cached; rounded down, so that it is never after the expiry
        validUntil=moment(_whole_minute(job.shown_expiry_ms), locale, zone, dated=life_ms >= _HALF_DAY_MS),
        validCount=count,
        validUnit=unit,
        requestedAt=moment(_whole_minute(job.dated_ms), locale, zone, dated=True),
        requestPlace=place,
        requestDevice=device,
        subjectTime=time_of_day(job.dated_ms // 1000, locale, zone) if identity.subject_time else "",
        action=_ACTIONS.get(re.sub(r"[\W_]", "", metadata.purpose).lower(), "") if metadata.purpose else "",
        brand=identity.brand,
        lang=language.tag,
        dir=language.direction,
        email=job.request.email,
        otp=job.request.otp,
    )
    return data


@lru_cache(256)
def _zone(*names: str) -> tzinfo:
    """Return the first time zone that exists."""
    return next(filter(None, map(find_time_zone, names)), UTC)


@lru_cache(256)
def _rounded(minutes: int) -> tuple[int, str]:
    """Return a lifetime in its largest unit without a remainder, `2, "hour"` for 120 minutes; one day is 24 hours."""
    for size, unit in _UNITS:
        if minutes % size == 0 and minutes >= size * (2 if unit == "day" else 1):
            return minutes // size, unit
    return minutes, "minute" if minutes else ""


def _whole_minute(at_ms: int) -> int:
    return at_ms // _MINUTE_MS * 60


def _origin(request: Mapping[str, str | None] | None) -> tuple[str, str]:
    """Return place and device of a request, each safe to print."""
    if not request:
        return "", ""
    return safe_text(request.get("place") or "", NAME_LIMIT), safe_text(request.get("device") or "", NAME_LIMIT)
