"""The filter by which a command or a page selects dead letters: `reason=rejected domain=example.com older=10m`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from .address import wire_domain
from .dead_letter import NO_VALUE, DeadLetter
from .decision import REASONS
from .times import iso

_UNITS_MS = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_FIELDS = {"reason": "reason", "code": "code", "domain": "domain", "template": "template", "job": "job_id"}
_AGES = {"older": "died_before_ms", "newer": "died_after_ms"}
_OPTIONAL = ("code", "domain")
"""Fields that some dead letters do not have."""
_WHOLE_DOMAIN = re.compile(r"[^\s@*]{1,255}")
_NO_DOMAIN = "domain: must be the whole part after the @, without *, or empty for dead letters without a recipient"


@dataclass(frozen=True, slots=True)
class DeadLetterFilter:
    """Conditions that must all match. `None`, or an empty text, is no condition. Times are milliseconds since 1970."""

    reason: str = ""
    code: str | None = None
    """The relay's reply code or its first digits: `55` is every code from 550 to 559. Empty: no reply code."""
    domain: str | None = None
    """Empty selects messages that are not valid jobs."""
    template: str = ""
    job_id: str = ""
    died_before_ms: int | None = None
    died_after_ms: int | None = None

    @classmethod
    def parse(cls, conditions: Sequence[str], now_ms: int) -> Self:
        """Parse `reason=rejected`, `code=550`, `domain=example.com`, `template=`, `job=`, `older=10m`, `newer=1h`.

        Raises `ValueError` that names the field and the fix.
        """
        fields: dict[str, Any] = {}
        for condition in conditions:
            name, equals, value = condition.partition("=")
            if not equals:
                raise ValueError(f"{condition!r}: must look like reason=rejected or domain=example.com")
            field = _FIELDS.get(name, _AGES.get(name))
            if field is None:
                raise ValueError(f"{name}: is none of {', '.join([*_FIELDS, *_AGES])}")
            if field in fields:
                raise ValueError(f"{name}: is given twice; give it once")
            fields[field] = _value(name, value, now_ms)
        parsed = cls(**fields)
        before_ms, after_ms = parsed.died_before_ms, parsed.died_after_ms
        if before_ms is not None and after_ms is not None and before_ms <= after_ms:
            raise ValueError(
                "older, newer: no dead letter matches both; older=10m newer=1h selects ages from 10 minutes to an hour"
            )
        return parsed

    def __bool__(self) -> bool:
        return self != DeadLetterFilter()

    def __str__(self) -> str:
        parts: list[str] = []
        for name, field in _FIELDS.items():
            value: str | None = getattr(self, field)
            if value:
                parts.append(f"{name} {value}")
            elif value is not None and name in _OPTIONAL:
                parts.append(f"no {name}")
        for how, at_ms in (("before", self.died_before_ms), ("after", self.died_after_ms)):
            parts += [] if at_ms is None else [f"died {how} {iso(at_ms)}"]
        return ", ".join(parts) or "all"

    @property
    def outline(self) -> str:
        """The same text without values that may be a code or an address by mistake: nothing has confirmed them."""
        domain = "…" if self.domain else self.domain
        return str(replace(self, domain=domain, template=self.template and "…", job_id=self.job_id and "…"))

    def matches(self, it: DeadLetter) -> bool:
        """Whether a dead letter meets every condition."""
        return (
            self.reason in ("", it.reason)
            and (self.code is None or (it.code.startswith(self.code) if self.code else not it.code))
            and self.domain in (None, it.domain)
            and self.template in ("", it.template)
            and self.job_id in ("", it.job_id)
            and (self.died_before_ms is None or (it.died_ms is not None and it.died_ms < self.died_before_ms))
            and (self.died_after_ms is None or (it.died_ms is not None and it.died_ms >= self.died_after_ms))
        )


def _value(name: str, text: str, now_ms: int) -> str | int:
    """Return the value of one condition. Raises `ValueError` that names the field and the fix."""
    if name == "domain":
        return _domain(text)
    if name == "code":
        return _code(text)
    if not text:
        raise ValueError(f"{name}: is empty; give a value or leave it out")
    if name == "reason" and text not in REASONS:
        raise ValueError(f"reason: must be one of {', '.join(REASONS)}")
    return now_ms - _age_ms(name, text) if name in _AGES else text


def _code(text: str) -> str:
    if text == NO_VALUE:  # a code consists of digits, so this is not ambiguous
        return ""
    if not (text.isascii() and text.isdecimal() and len(text) <= 3 and text[0] in "2345"):
        raise ValueError(f"code: must be a reply code such as 550, its first digits such as 55, or {NO_VALUE}")
    return text


def _domain(text: str) -> str:
    if text.lower() == NO_VALUE:
        choices = "domain= (dead letters without a recipient) or domain=@none (recipients at none)"
        raise ValueError(f"domain: none is ambiguous; write {choices}")
    if not text:
        return ""
    domain = _ascii_domain(text.removeprefix("@"))
    if not _WHOLE_DOMAIN.fullmatch(domain):
        raise ValueError(_NO_DOMAIN)
    return domain


def _ascii_domain(domain: str) -> str:
    """Return a domain as dead letters contain it; people may write `straße.example`."""
    try:
        return wire_domain(domain)
    except ValueError as error:
        raise ValueError(f"domain: {error}") from None


def _age_ms(name: str, text: str) -> int:
    number, unit = text[:-1], text[-1:]
    if not (number.isascii() and number.isdigit()) or unit not in _UNITS_MS:
        raise ValueError(f"{name}: must look like 10m (s, m, h or d)")
    return int(number) * _UNITS_MS[unit]
