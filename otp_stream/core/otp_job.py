"""The job as producers publish it, typed and validated."""

from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictInt, ValidationError
from pydantic.alias_generators import to_camel
from pydantic.config import JsonDict

from . import sealed_code
from .address import ADDRESS_PATTERN, is_address, trimmed, wire_address
from .code import CODE_PATTERN, CODE_RULE, check_code, read_code
from .json_types import is_object
from .jwe import JweError
from .lenient import (
    MAX_JOB_ID,
    MAX_RETRY_COUNT,
    MILLISECONDS,
    Lenience,
    has_two_names,
    read_leniently,
    unreadable,
    with_valid_fields,
)
from .lenient_json import BOM, parsed, read_integer, repaired
from .masking import contains_secret
from .metadata import EMPTY_IS_ABSENT, MAX_VALUES, REQUEST_EXAMPLE, Metadata
from .sealed_body import START as SEALED_START
from .sealed_body import open_body
from .sealed_code import Codes
from .sealing_keys import NO_KEYS, NoKeyError, SealingKeys

Priority = Literal["low", "normal", "high"]
MAX_BODY_BYTES = 64 * 1024
_MAY_HAVE_MANY_VALUES = 4 * 1024
"""Bytes of a body from which on its values are counted, and parsed once only, even if fields are invalid."""

_INVALID_JSON = "body: Invalid JSON:"
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


def _job_id(value: str) -> str:
    if len(value) > MAX_JOB_ID or not value.isprintable():
        raise ValueError("must have at most 200 printable characters")
    return value


_EXAMPLE: JsonDict = {
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


def _describe(schema: JsonDict) -> None:
    """Add an example, and the sealed code, which takes the place of `otp` and is no field of the model."""
    schema["examples"] = [_EXAMPLE]
    cast("JsonDict", schema["properties"])[sealed_code.FIELD] = sealed_code.SCHEMA
    schema["required"] = ["email"]
    # not `anyOf`, of which generators make a type without fields
    schema["if"] = {"not": {"required": [sealed_code.FIELD]}}
    schema["then"] = {"required": ["otp"]}


class OtpJob(BaseModel):
    """Send this one-time code to this address."""

    model_config = ConfigDict(
        frozen=True,
        extra="ignore",
        alias_generator=to_camel,
        populate_by_name=True,
        hide_input_in_errors=True,
        json_schema_extra=_describe,
    )

    email: Annotated[str, AfterValidator(_address)] = Field(
        repr=False,
        description="Address of the recipient. An internationalised domain is read as IDNA 2008.",
        json_schema_extra={"format": "email", "maxLength": 254, "pattern": ADDRESS_PATTERN},
    )
    otp: Annotated[str, AfterValidator(check_code)] = Field(
        repr=False,
        description="The code: a string of 4 to 64 characters without spaces, never a number. Required without "
        "`otpSealed`.",
        json_schema_extra={"minLength": 4, "maxLength": 64, "pattern": CODE_PATTERN},
    )
    retry_count: Annotated[StrictInt, Field(ge=0, le=MAX_RETRY_COUNT), EMPTY_IS_ABSENT] = Field(
        default=0, description="Retries already made."
    )
    job_id: Annotated[str, AfterValidator(_job_id)] | None = Field(
        default=None,
        description="Unique id: a job that was sent is not sent again. Made when absent.",
        json_schema_extra={"minLength": 1, "maxLength": MAX_JOB_ID, "pattern": r"^[^\x00-\x1f\x7f-\x9f]+$"},
    )
    timestamp: Annotated[Annotated[StrictInt, Field(ge=0, le=8_640_000_000_000_000)] | None, EMPTY_IS_ABSENT] = Field(
        default=None,
        description="When the code was made, in milliseconds since 1970 (UTC). Arrival when absent.",
        json_schema_extra={"format": "int64", "minimum": MILLISECONDS.start, "maximum": MILLISECONDS.stop - 1},
    )
    priority: Annotated[Priority, EMPTY_IS_ABSENT] = Field(
        default="normal",
        description="`high` is served before `normal`, `normal` before `low`. Over HTTP, `high` goes to the high lane.",
    )
    metadata: Annotated[Metadata, EMPTY_IS_ABSENT] = Field(
        default_factory=Metadata, repr=False, description="Passed to the template."
    )

    lenient: ClassVar[tuple[Lenience, ...]] = ()
    """What was coerced or ignored. Not a field, because a producer could set it."""
    sealed: ClassVar[str | None] = None
    """The token in which its code was sealed, which opened for this job."""

    @cached_property
    def shown_template(self) -> str:
        """The template's name for logs, traces, events and pages, masked if it contains a secret."""
        name = self.metadata.template
        return "***" if contains_secret(name, self.email, self.otp, partial=True) else name

    @classmethod
    def from_bytes(cls, body: bytes, *, strict: bool = False, keys: SealingKeys = NO_KEYS) -> "OtpJob":
        """Read a job from a message body (UTF-8 JSON). `keys` open its code, or the whole body, if that is sealed.

        An optional field that is not as documented is coerced or ignored, and named in `lenient`, unless `strict`.
        Raises `MalformedError`, whose text names each bad field with the fix and quotes no value; `KeyMissingError` if
        the key is not in `keys`.
        """
        if body[:3] == SEALED_START:
            body = _opened_body(body, keys)
        if len(body) > MAX_BODY_BYTES:
            raise too_large(len(body))
        job = cls._from_json(body, keys, strict=strict)
        if len(body) > _MAY_HAVE_MANY_VALUES and (metadata := job.metadata.without_excess()) is not None:
            if strict:
                raise MalformedError(f"metadata: must have at most {MAX_VALUES} values")
            vars(job).update(metadata=metadata, lenient=(*job.lenient, Lenience("metadata", "ignored")))
        return job

    @classmethod
    def _from_json(cls, body: bytes, keys: SealingKeys, *, strict: bool) -> "OtpJob":
        if len(body) > _MAY_HAVE_MANY_VALUES or sealed_code.MARK in body:
            try:
                fields = parsed(body)
            except ValueError as error:
                return cls._from_invalid(error, body, keys, strict=strict)
            if is_object(fields):
                return cls._from_fields(fields, body, keys, strict=strict)
        try:
            # not model_validate_json, which is slower because of its other arguments
            job = cls.__pydantic_validator__.validate_json(body.removeprefix(BOM))
        except ValidationError as error:
            return cls._from_invalid(error, body, keys, strict=strict)
        return job if strict or _is_documented(job, body) else cls._from_other_bytes(body, keys)

    @classmethod
    def without_code(cls, body: bytes) -> "OtpJob":
        """Read a job whose sealed code cannot be opened: all of it but the code, which is empty."""
        fields = {**read_leniently(body).fields, "otp": sealed_code.PLACEHOLDER}
        job = cls.model_validate(fields)
        vars(job)["otp"] = ""
        return job

    @classmethod
    def _from_fields(cls, fields: dict[str, Any], body: bytes, keys: SealingKeys, *, strict: bool) -> "OtpJob":
        codes = Codes.of(fields)
        try:
            job = cls.__pydantic_validator__.validate_python(codes.fields)
        except ValidationError as error:
            return cls._from_invalid(error, body, keys, fields, strict=strict)
        if strict or (codes.ignored is None and _is_documented(job, body)):
            return _opened(job, codes.token, keys)
        return cls._from_other_bytes(body, keys, given=fields)

    @classmethod
    def _from_invalid(
        cls, error: ValueError, body: bytes, keys: SealingKeys, fields: dict[str, Any] | None = None, *, strict: bool
    ) -> "OtpJob":
        why = _explain(error, body)
        if strict or unreadable(body) is not None:
            # from None: the chained error would carry the input, and with it the code
            raise MalformedError(why) from None
        return cls._from_other_bytes(body, keys, why, fields)

    @classmethod
    def _from_other_bytes(
        cls, body: bytes, keys: SealingKeys, why: str = "body: cannot be read", given: object = None
    ) -> "OtpJob":
        """Read a job that is not as documented, from `given` fields if they were parsed before.

        `why` is the text of the error if it cannot be read at all.
        """
        try:
            fields, found, original_metadata = with_valid_fields(given or repaired(body, read_integer))
            codes = Codes.of(fields)
            job = cls.model_validate(codes.fields)
        except ValidationError as still:
            raise MalformedError(_explain(still, body)) from None
        except (ValueError, TypeError, RecursionError):
            raise MalformedError(why) from None
        if codes.ignored is not None:
            found.append(Lenience(codes.ignored, "ignored"))
        if why.startswith(_INVALID_JSON):
            found.insert(0, Lenience("body", "coerced"))
        # not setattr: the model is frozen
        vars(job)["lenient"] = tuple(found)
        if (extra := job.metadata.__pydantic_extra__) is not None:
            extra.update(original_metadata)
        return _opened(job, codes.token, keys)


def _is_documented(job: OtpJob, body: bytes) -> bool:
    """Return whether the lenient parser would read nothing else."""
    times_fit = job.timestamp is None or job.timestamp in MILLISECONDS
    return times_fit and not (b"_" in body and has_two_names(body))


def _opened(job: OtpJob, token: object, keys: SealingKeys) -> OtpJob:
    """Return the job with its code, which is in a token unless that is `None`."""
    if token is None:
        return job
    try:
        code = sealed_code.open_code(keys, token, job.email, job.job_id, job.metadata.tenant)
    except NoKeyError as error:
        raise KeyMissingError(f"{sealed_code.FIELD}: {error}") from None
    except JweError as error:
        raise MalformedError(f"{sealed_code.FIELD}: {error}") from None
    if (valid := read_code(code)) is None:
        raise MalformedError(f"{sealed_code.FIELD}: the code in it {CODE_RULE}")
    vars(job).update(otp=valid, sealed=token)  # not setattr: the model is frozen
    return job


def _opened_body(body: bytes, keys: SealingKeys) -> bytes:
    try:
        return open_body(keys, body).body
    except NoKeyError as error:
        raise KeyMissingError(f"body: {error}") from None
    except JweError as error:
        raise MalformedError(f"body: {error}") from None


class MalformedError(ValueError):
    """A message that is no job; the text names each bad field with the fix."""


class KeyMissingError(MalformedError):
    """A job that can be read once its key is in `SEALING_KEYS` again."""


def too_large(size: int) -> MalformedError:
    """Return the error for a body of more than `MAX_BODY_BYTES`."""
    return MalformedError(f"body: {size} bytes; the maximum is {MAX_BODY_BYTES}")


def _explain(error: ValueError, body: bytes) -> str:
    if why := unreadable(body):
        return f"body: {why}"
    if not isinstance(error, ValidationError):
        return f"{_INVALID_JSON} {error}"
    found = error.errors(include_input=False, include_url=False, include_context=False)[:8]
    return "; ".join(
        f"{_place(item['loc'])}: {_FIXES.get(item['type']) or item['msg'].removeprefix('Value error, ')}"
        for item in found
    )


def _place(loc: tuple[int | str, ...]) -> str:
    # keys inside metadata are the producer's own words and could be anything
    return ".".join(str(part)[:40] for part in loc) or "body"
