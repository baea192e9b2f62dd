"""The job as producers publish it, typed and validated."""

import re
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictInt, ValidationError
from pydantic.alias_generators import to_camel

from .address import IGNORABLE, is_address, trimmed, wire_address
from .lenient import (
    BOM,
    MAX_JOB_ID,
    MAX_RETRY_COUNT,
    MILLISECONDS,
    Lenience,
    has_two_names,
    read_leniently,
    unreadable,
)
from .masking import contains_secret
from .metadata import REQUEST_EXAMPLE, Metadata, null_is

Priority = Literal["low", "normal", "high"]
MAX_BODY_BYTES = 64 * 1024

# U+FFFD replaces a lost character, so the rest is another code. A code with invisible characters is refused, too: no
# one could type it.
_CODE = re.compile(r"[^\s\x00-\x20\x7f-\x9f\ufffd]{4,64}")
_FIXES = {
    "missing": "is required",
    "string_type": "must be a string, in quotes",
    "int_type": "must be a whole number, without quotes",
    "float_type": "must be a number, without quotes",
    "model_type": "must be a JSON object",
    "model_attributes_type": "must be a JSON object",
    "dict_type": "must be a JSON object",
}


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


def _job_id(value: str) -> str:
    if len(value) > MAX_JOB_ID or not value.isprintable():
        raise ValueError("must have at most 200 printable characters")
    return value


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
                    "metadata": {
                        "userName": "John Doe",
                        "expiryMinutes": 15,
                        "timeZone": "Europe/Berlin",
                        "request": REQUEST_EXAMPLE,
                    },
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
    retry_count: Annotated[StrictInt, Field(ge=0, le=MAX_RETRY_COUNT), null_is(0)] = Field(
        default=0, description="Retries already made."
    )
    job_id: Annotated[str, AfterValidator(_job_id)] | None = Field(
        default=None, description="Unique id: a job that was sent is not sent again. Made when absent."
    )
    timestamp: Annotated[Annotated[StrictInt, Field(ge=0, le=8_640_000_000_000_000)] | None, null_is(None)] = Field(
        default=None, description="When the code was made, in milliseconds since 1970 (UTC). Arrival when absent."
    )
    priority: Annotated[Priority, null_is("normal")] = Field(
        default="normal", description="`high` is served before `normal`, `normal` before `low`."
    )
    metadata: Annotated[Metadata, null_is({})] = Field(
        default_factory=Metadata, repr=False, description="Passed to the template."
    )

    lenient: ClassVar[tuple[Lenience, ...]] = ()
    """What was coerced or ignored. Not a field, because a producer could set it."""

    @cached_property
    def shown_template(self) -> str:
        """The template's name for logs, traces, events and pages, masked if it contains a secret."""
        name = self.metadata.template
        return "***" if contains_secret(name, self.email, self.otp, partial=True) else name

    @classmethod
    def from_bytes(cls, body: bytes, *, strict: bool = False) -> "OtpJob":
        """Read a job from a message body (UTF-8 JSON).

        An optional field that is not as documented is coerced or ignored, and named in `lenient`, unless `strict`.
        Raises `MalformedError`, whose text names each bad field with the fix and quotes no value.
        """
        if len(body) > MAX_BODY_BYTES:
            raise too_large(len(body))
        try:
            # not model_validate_json, which is slower because of its other arguments
            job = cls.__pydantic_validator__.validate_json(body.removeprefix(BOM))
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
            fields, found, original_metadata = read_leniently(body)
            job = cls.model_validate(fields)
        except ValidationError as still:
            raise MalformedError(_explain(still, body)) from None
        except (ValueError, TypeError, RecursionError):
            raise MalformedError(_explain(error, body) if error else "body: cannot be read") from None
        if error and error.errors(include_input=False, include_url=False)[0]["type"] == "json_invalid":
            found.insert(0, Lenience("body", "coerced"))
        # not setattr: the model is frozen
        vars(job)["lenient"] = tuple(found)
        if original_metadata:
            cast("dict[str, Any]", job.metadata.__pydantic_extra__).update(original_metadata)
        return job


class MalformedError(ValueError):
    """A message that is no job; the text names each bad field with the fix."""


def too_large(size: int) -> MalformedError:
    """Return the error for a body of more than `MAX_BODY_BYTES`."""
    return MalformedError(f"body: {size} bytes; the maximum is {MAX_BODY_BYTES}")


def _explain(error: ValidationError, body: bytes) -> str:
    if why := unreadable(body):
        return f"body: {why}"
    found = error.errors(include_input=False, include_url=False, include_context=False)[:8]
    return "; ".join(
        f"{_place(item['loc'])}: {_FIXES.get(item['type']) or item['msg'].removeprefix('Value error, ')}"
        for item in found
    )


def _place(loc: tuple[int | str, ...]) -> str:
    # keys inside metadata are the producer's own words and could be anything
    return ".".join(str(part)[:40] for part in loc) or "body"
