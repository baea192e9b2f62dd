"""The job as producers publish it, typed, and as the worker carries it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StrictInt, ValidationError
from pydantic.alias_generators import to_camel

from .address import IGNORABLE, is_address, trimmed, wire_address
from .lenient import (
    BOM,
    LOCALE,
    MAX_EXPIRY_MINUTES,
    MAX_JOB_ID,
    MAX_RETRY_COUNT,
    MILLISECONDS,
    NAME,
    Lenience,
    has_two_names,
    read_leniently,
    unreadable,
)
from .masking import contains_secret

Priority = Literal["low", "normal", "high"]
Lane = Literal["jobs", "high", "due"]
"""Where a job came in: the producers' queue, their high lane, or the end of a wait."""

MAX_BODY_BYTES = 64 * 1024
CLOCK_TOLERANCE_MS = 5_000
_HALF_DAY_MS = 12 * 60 * 60_000

# U+FFFD stands where a character was lost: what is left is another code. One that is not seen as it is typed, or is not
# seen at all, is none, either.
_CODE = re.compile(r"[^\s\x00-\x20\x7f-\x9f\ufffd]{4,64}")


def _address(value: str) -> str:
    value = trimmed(value)
    if is_address(value):
        wire = wire_address(value)
        if wire is value or is_address(wire):
            return wire
    raise ValueError("must be one e-mail address such as user@example.com, without spaces or control characters")


def _code(value: str) -> str:
    value = trimmed(value)
    if not _CODE.fullmatch(value) or (not value.isascii() and IGNORABLE.search(value)):
        raise ValueError("must have 4 to 64 characters, without spaces or control characters inside")
    return value


def _name(value: str) -> str:
    if not NAME.fullmatch(value):
        raise ValueError("must consist of 1 to 64 letters, digits, '-' and '_'")
    return value


def _job_id(value: str) -> str:
    if len(value) > MAX_JOB_ID or not value.isprintable():
        raise ValueError("must have at most 200 printable characters")
    return value


def _locale(value: str) -> str:
    if not LOCALE.fullmatch(value):
        raise ValueError("must be a language such as de or de-AT")
    return value


def _null_is(default: object) -> BeforeValidator:
    # null and "" are what a producer writes for a field that it holds empty: that means absent
    return BeforeValidator(lambda value: default if value is None or value == "" else value)


class Metadata(BaseModel):
    """What the template is given. Any further key is kept and handed on."""

    model_config = ConfigDict(
        frozen=True, extra="allow", alias_generator=to_camel, populate_by_name=True, hide_input_in_errors=True
    )

    user_name: str | None = Field(
        default=None, description="How the e-mail addresses the person.", examples=["John Doe"]
    )
    expiry_minutes: Annotated[
        Annotated[float, Field(strict=True, gt=0, le=MAX_EXPIRY_MINUTES)] | None, _null_is(None)
    ] = Field(default=None, description="How long the code lives, in minutes after `timestamp`.", examples=[15])
    locale: Annotated[Annotated[str, AfterValidator(_locale)] | None, _null_is(None)] = Field(
        default=None, description="Language of the template, such as `de` or `de-AT`.", examples=["en"]
    )
    template: Annotated[str, AfterValidator(_name), _null_is("otp")] = Field(
        default="otp", description="Which template to render.", examples=["otp", "welcome", "password_reset"]
    )
    purpose: str | None = Field(default=None, description="What the code is for, such as `login`.", examples=["login"])
    tenant: Any = Field(
        default=None,
        description="On whose behalf: `TENANT_LIMIT` counts by it, if it is text or a number.",
        examples=["shop-17"],
    )


class OtpJob(BaseModel):
    """Send this one-time code to this address."""

    model_config = ConfigDict(
        frozen=True,
        extra="ignore",
        alias_generator=to_camel,
        populate_by_name=True,
        hide_input_in_errors=True,
        json_schema_extra={
            "examples": [
                {
                    "email": "user@example.com",
                    "otp": "123456",
                    "retryCount": 0,
                    "jobId": "optional-unique-id",
                    "timestamp": 1672531200000,
                    "priority": "normal",
                    "metadata": {"userName": "John Doe", "expiryMinutes": 15},
                }
            ]
        },
    )

    email: Annotated[str, AfterValidator(_address)] = Field(
        repr=False,
        description="Address of the recipient. An internationalised domain is read as IDNA 2008.",
        json_schema_extra={"format": "email", "maxLength": 254},
    )
    otp: Annotated[str, AfterValidator(_code)] = Field(
        repr=False,
        description="The code: a string of 4 to 64 characters without spaces, never a number.",
        json_schema_extra={"minLength": 4, "maxLength": 64, "pattern": r"^\s*\S+\s*$"},
    )
    retry_count: Annotated[StrictInt, Field(ge=0, le=MAX_RETRY_COUNT), _null_is(0)] = Field(
        default=0, description="Retries already made."
    )
    job_id: Annotated[str, AfterValidator(_job_id)] | None = Field(
        default=None, description="Unique id: a job that was sent is not sent again. Made when absent."
    )
    timestamp: Annotated[Annotated[StrictInt, Field(ge=0, le=8_640_000_000_000_000)] | None, _null_is(None)] = Field(
        default=None, description="When the code was made, in milliseconds since 1970 (UTC). Arrival when absent."
    )
    priority: Annotated[Priority, _null_is("normal")] = Field(
        default="normal", description="`high` is served before `normal`, `normal` before `low`."
    )
    metadata: Annotated[Metadata, _null_is({})] = Field(
        default_factory=Metadata, repr=False, description="Handed to the template."
    )

    lenient: ClassVar[tuple[Lenience, ...]] = ()
    """What was not as documented, and is now; no field, because a producer could write it."""

    @cached_property
    def shown_template(self) -> str:
        """The template's name for logs, traces, events and pages: anything could be written there, even the code."""
        name = self.metadata.template
        return "***" if contains_secret(name, self.email, self.otp, partial=True) else name

    @classmethod
    def from_bytes(cls, body: bytes, *, strict: bool = False) -> "OtpJob":
        """Read a job from a message body (UTF-8 JSON).

        An optional field that is not as documented is coerced or ignored, and named in `lenient`, unless `strict`.
        Raises `MalformedError`, whose text names each bad field and its cure and quotes no value.
        """
        if len(body) > MAX_BODY_BYTES:
            raise too_large(len(body))
        try:
            job = cls.model_validate_json(body.removeprefix(BOM))
        except ValidationError as error:
            if not strict and unreadable(body) is None:
                return cls._from_other_bytes(body, error)
            # from None: the chained error would carry the input, and with it the code
            raise MalformedError(_explain(error, body)) from None
        times_fit = job.timestamp is None or job.timestamp in MILLISECONDS
        if strict or (times_fit and not (b"_" in body and has_two_names(body))):
            return job
        return cls._from_other_bytes(body)

    @classmethod
    def _from_other_bytes(cls, body: bytes, error: ValidationError | None = None) -> "OtpJob":
        try:
            fields, found = read_leniently(body)
            job = cls.model_validate(fields)
        except ValidationError as still:
            raise MalformedError(_explain(still, body)) from None
        except (ValueError, TypeError, RecursionError):
            raise MalformedError(_explain(error, body) if error else "body: cannot be read") from None
        if error and error.errors(include_input=False, include_url=False)[0]["type"] == "json_invalid":
            found.insert(0, Lenience("body", "coerced"))
        # past the frozen model: this is no field of it
        vars(job)["lenient"] = tuple(found)
        return job


class MalformedError(ValueError):
    """A message that is no job; the text names each bad field and the cure."""


def too_large(size: int) -> MalformedError:
    """Return the error for a body of more than `MAX_BODY_BYTES`."""
    return MalformedError(f"body: {size} bytes; the maximum is {MAX_BODY_BYTES}")


_CURES = {
    "missing": "is required",
    "string_type": "must be a string, in quotes",
    "int_type": "must be a whole number, without quotes",
    "float_type": "must be a number, without quotes",
    "model_type": "must be a JSON object",
    "model_attributes_type": "must be a JSON object",
}


def _explain(error: ValidationError, body: bytes) -> str:
    if why := unreadable(body):
        return f"body: {why}"
    found = error.errors(include_input=False, include_url=False, include_context=False)[:8]
    return "; ".join(
        f"{_place(item['loc'])}: {_CURES.get(item['type']) or item['msg'].removeprefix('Value error, ')}"
        for item in found
    )


def _place(loc: tuple[int | str, ...]) -> str:
    # keys inside metadata are the producer's own words and could be anything
    return ".".join(str(part)[:40] for part in loc) or "body"


@dataclass(frozen=True, slots=True)
class Replay:
    """An operator has sent a dead letter on its way again."""

    at_ms: int
    by: str
    fresh: bool
    """Whether its code's life begins anew with it."""


@dataclass(frozen=True, slots=True)
class Job:
    """One job in the worker's hands: what was asked, and what it knows of its way so far.

    Times are milliseconds since 1970. `attempts_made` counts real attempts; an open circuit breaker counts none.
    """

    id: str
    request: OtpJob
    lane: Lane
    first_seen_ms: int
    attempts_made: int
    made_ms: int
    expires_ms: int
    clock_ahead_ms: int
    suspect: bool = False
    """Whether somebody had it before and did not settle it: it may be what killed a worker."""
    uncertain: str | None = None
    """Whether the relay may have taken it before."""
    replay: Replay | None = None
    """The last one, if it was a dead letter before."""

    @classmethod
    def from_request(  # noqa: PLR0913 - all that is known of it
        cls,
        request: OtpJob,
        *,
        job_id: str,
        lane: Lane,
        first_seen_ms: int,
        attempts_made: int,
        default_expiry_minutes: float,
        suspect: bool = False,
        uncertain: str | None = None,
        replay: Replay | None = None,
    ) -> Self:
        """Return the job for a request, with the times at which its code was made and expires.

        A producer's clock that runs ahead would keep a code alive too long, so `timestamp` counts only up to the moment
        at which we first saw the job; how far it was ahead is kept for the report. A clock that runs behind looks like
        a job that waited: the code's life counts from `timestamp`, and the lag is a metric.
        """
        made_ms = first_seen_ms if request.timestamp is None else min(request.timestamp, first_seen_ms)
        minutes = request.metadata.expiry_minutes or default_expiry_minutes
        return cls(
            id=job_id,
            request=request,
            lane=lane,
            first_seen_ms=first_seen_ms,
            attempts_made=attempts_made,
            made_ms=made_ms,
            expires_ms=_alive_from_ms(made_ms, replay) + round(minutes * 60_000),
            clock_ahead_ms=max((request.timestamp or 0) - first_seen_ms, 0),
            suspect=suspect,
            uncertain=uncertain,
            replay=replay,
        )

    @property
    def identity(self) -> int:
        """What makes it the same job, in this process: its id, its recipient and its code."""
        return hash((self.id, self.request.email, self.request.otp))

    @property
    def requested_ms(self) -> int:
        """When somebody last asked for it to be sent."""
        return self.replay.at_ms if self.replay else self.made_ms

    @property
    def dated_ms(self) -> int:
        """The moment that its e-mail names, the same in each copy.

        It is the producer's own where that is believable: it survives a crash, our first sight of the job does not.
        """
        stated_ms = self.request.timestamp if self.clock_ahead_ms <= CLOCK_TOLERANCE_MS else None
        return self.made_ms if stated_ms is None else stated_ms

    @property
    def rank(self) -> int:
        """Its place in the window, most urgent first: 0 high lane, 1 high, 2 normal, 3 low."""
        return rank(self.lane, self.request.priority)

    def template_data(self) -> Mapping[str, Any]:
        """Return what a template may use: every metadata key, `email`, `otp`, `expiryMinutes`, `validUntil`."""
        life_ms = self.expires_ms - _alive_from_ms(self.made_ms, self.replay)
        minutes = life_ms / 60_000
        data = dict(self.request.metadata.__pydantic_extra__ or {})
        data.update(
            userName=self.request.metadata.user_name,
            purpose=self.request.metadata.purpose,
            tenant=self.request.metadata.tenant,
            locale=self.request.metadata.locale,
            expiryMinutes=int(minutes) if minutes == int(minutes) else round(minutes, 1),
            validUntil=_time_of_day(
                _alive_from_ms(self.dated_ms, self.replay) + life_ms, dated=life_ms >= _HALF_DAY_MS
            ),
            email=self.request.email,
            otp=self.request.otp,
        )
        return data


_RANKS = {"high": 1, "normal": 2, "low": 3}


def rank(lane: Lane, priority: Priority) -> int:
    """Return the place in the window, most urgent first; the high lane stands before every priority."""
    return 0 if lane == "high" else _RANKS[priority]


def _alive_from_ms(made_ms: int, replay: Replay | None) -> int:
    return replay.at_ms if replay is not None and replay.fresh else made_ms


def _time_of_day(at_ms: int, *, dated: bool) -> str:
    """Return `14:32 UTC`, with the date where the time alone would not tell the day; never later than it is."""
    hours, minutes = divmod(at_ms // 60_000 % 1440, 60)
    time = f"{hours:02}:{minutes:02} UTC"
    return f"{datetime.fromtimestamp(at_ms // 1000, UTC):%Y-%m-%d} {time}" if dated else time
