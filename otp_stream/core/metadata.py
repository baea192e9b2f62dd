"""The metadata of a job: known keys, typed and validated, and any others."""

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic.alias_generators import to_camel
from pydantic.config import JsonDict

from .lenient import LOCALE, MAX_EXPIRY_MINUTES, MAX_REQUEST_TEXT, NAME, REQUEST_TEXTS, TIME_ZONE


def _name(value: str) -> str:
    if not NAME.fullmatch(value):
        raise ValueError("must consist of 1 to 64 letters, digits, '-' and '_'")
    return value


def _locale(value: str) -> str:
    if not LOCALE.fullmatch(value):
        raise ValueError("must be a language such as de or de-AT")
    return value


def _time_zone(value: str) -> str:
    if not TIME_ZONE.fullmatch(value):
        raise ValueError("must be the IANA name of a time zone, such as Europe/Berlin")
    return value


def _request(value: dict[str, Any]) -> dict[str, Any]:
    for name in REQUEST_TEXTS:
        text = value.get(name)
        if text is not None and (not isinstance(text, str) or len(text) > MAX_REQUEST_TEXT):
            raise ValueError(f"{name} must be a string of {MAX_REQUEST_TEXT} characters or fewer")
    return value


def null_is(default: object) -> BeforeValidator:
    """Return a validator that replaces null and "", which producers write for an empty field, by a default."""
    return BeforeValidator(lambda value: default if value is None or value == "" else value)


def _request_text(description: str, example: str) -> dict[str, Any]:
    return {
        "anyOf": [{"type": "string", "maxLength": MAX_REQUEST_TEXT}, {"type": "null"}],
        "description": description,
        "examples": [example],
    }


_PLACE, _DEVICE = "Berlin, Germany", "Firefox on Windows"
REQUEST_EXAMPLE: JsonDict = {"place": _PLACE, "device": _DEVICE}
_REQUEST_SCHEMA = {
    "type": "object",
    "properties": {
        "place": _request_text("Location of the person, for example looked up by IP address.", _PLACE),
        "device": _request_text("Browser or app, and operating system.", _DEVICE),
    },
}


class Metadata(BaseModel):
    """Values for the template. Other keys are passed to it, too.

    An invalid `timeZone` or `request` is passed to it as it was sent, if it is not a built-in one.
    """

    model_config = ConfigDict(
        frozen=True, extra="allow", alias_generator=to_camel, populate_by_name=True, hide_input_in_errors=True
    )

    user_name: str | None = Field(
        default=None, description="How the e-mail addresses the person.", examples=["John Doe"]
    )
    expiry_minutes: Annotated[
        Annotated[float, Field(strict=True, gt=0, le=MAX_EXPIRY_MINUTES)] | None, null_is(None)
    ] = Field(default=None, description="How long the code lives, in minutes after `timestamp`.", examples=[15])
    locale: Annotated[Annotated[str, AfterValidator(_locale)] | None, null_is(None)] = Field(
        default=None, description="Language of the template, such as `de` or `de-AT`.", examples=["en"]
    )
    template: Annotated[str, AfterValidator(_name), null_is("otp")] = Field(
        default="otp", description="Which template to render.", examples=["otp", "welcome", "password_reset"]
    )
    purpose: str | None = Field(
        default=None,
        description="What the code is for. The built-in e-mails support `login`, `sign_up`, `verify_email`, "
        "`change_email`, `change_phone`, `change_password`, `confirm_payment`, `add_device` and `delete_account`.",
        examples=["login"],
    )
    time_zone: Annotated[Annotated[str, AfterValidator(_time_zone)] | None, null_is(None)] = Field(
        default=None,
        description="Time zone of times in the e-mail, as an IANA name. `DEFAULT_TIME_ZONE` when absent or unknown.",
        examples=["Europe/Berlin"],
    )
    request: Annotated[
        Annotated[dict[str, Any], AfterValidator(_request), WithJsonSchema(_REQUEST_SCHEMA)] | None, null_is(None)
    ] = Field(
        default=None,
        description="Where the request came from. The e-mail shows it, so that people can tell whether it was theirs.",
        examples=[REQUEST_EXAMPLE],
    )
    tenant: Any = Field(
        default=None,
        description="On whose behalf: `TENANT_LIMIT` counts by it, if it is text or a number.",
        examples=["shop-17"],
    )
