"""The metadata of a job: known keys, typed and validated, and any others."""

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic.alias_generators import to_camel
from pydantic.config import JsonDict
from pydantic_core import PydanticUseDefault

from .json_types import count_values
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


def _absent_if_empty(value: object) -> object:
    if value is None or value == "":
        raise PydanticUseDefault
    return value


EMPTY_IS_ABSENT = BeforeValidator(_absent_if_empty)
"""Makes a field take its default for null and "", which producers write for an empty field."""
_PLACE, _DEVICE = "Berlin, Germany", "Firefox on Windows"
REQUEST_EXAMPLE: JsonDict = {"place": _PLACE, "device": _DEVICE}
_TEXT_SCHEMA: JsonDict = {"anyOf": [{"type": "string", "maxLength": MAX_REQUEST_TEXT}, {"type": "null"}]}
_REQUEST_SCHEMA: JsonDict = {
    "type": "object",
    "properties": {
        "place": {
            **_TEXT_SCHEMA,
            "description": "Location of the person, for example looked up by IP address.",
            "examples": [_PLACE],
        },
        "device": {**_TEXT_SCHEMA, "description": "Browser or app, and operating system.", "examples": [_DEVICE]},
    },
}


MAX_VALUES = 1_000
"""Maximum number of values in metadata, names included. A body of 64 KiB can have so many that they take 2 MB."""


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
        Annotated[float, Field(strict=True, gt=0, le=MAX_EXPIRY_MINUTES)] | None, EMPTY_IS_ABSENT
    ] = Field(default=None, description="How long the code lives, in minutes after `timestamp`.", examples=[15])
    locale: Annotated[Annotated[str, AfterValidator(_locale)] | None, EMPTY_IS_ABSENT] = Field(
        default=None,
        description="Language of the template, such as `de` or `de-AT`.",
        examples=["en"],
        json_schema_extra={"pattern": f"^{LOCALE.pattern}$"},
    )
    template: Annotated[str, AfterValidator(_name), EMPTY_IS_ABSENT] = Field(
        default="otp",
        description="Which template to render.",
        examples=["otp", "welcome", "password_reset"],
        json_schema_extra={"pattern": f"^{NAME.pattern}$"},
    )
    purpose: str | None = Field(
        default=None,
        description="What the code is for. The built-in e-mails support `login`, `sign_up`, `verify_email`, "
        "`change_email`, `change_phone`, `change_password`, `confirm_payment`, `add_device` and `delete_account`.",
        examples=["login"],
    )
    time_zone: Annotated[Annotated[str, AfterValidator(_time_zone)] | None, EMPTY_IS_ABSENT] = Field(
        default=None,
        description="Time zone of times in the e-mail, as an IANA name. `DEFAULT_TIME_ZONE` when absent or unknown.",
        examples=["Europe/Berlin"],
        json_schema_extra={"pattern": f"^{TIME_ZONE.pattern}$"},
    )
    request: Annotated[
        Annotated[dict[str, Any], AfterValidator(_request), WithJsonSchema(_REQUEST_SCHEMA)] | None, EMPTY_IS_ABSENT
    ] = Field(
        default=None,
        description="Where the request came from. The e-mail shows it, so that people can tell whether it was theirs.",
        examples=[REQUEST_EXAMPLE],
    )
    tenant: Any = Field(
        default=None,
        description="On whose behalf: `TENANT_LIMIT` counts by it, if it is text or a number.",
        examples=["shop-17"],
        json_schema_extra={"type": "string"},
    )

    def without_excess(self) -> Self | None:
        """Return the same metadata with at most `MAX_VALUES` values in it; `None` if it has no more."""
        given = self.__pydantic_extra__ or {}
        # the tenant first: without it, the default tenant would send the job
        of_any_form = {name: it for name in ("tenant", "request") if (it := getattr(self, name)) is not None}
        known, left = _fitting(of_any_form, MAX_VALUES)
        extra, _ = _fitting(given, left)
        if len(known) == len(of_any_form) and len(extra) == len(given):
            return None
        request = known.get("request") or {
            name: it for name, it in (self.request or {}).items() if name in REQUEST_TEXTS
        }
        copy = self.model_copy()
        vars(copy).update(request=request or None, tenant=known.get("tenant"))
        # not setattr: the model is frozen
        object.__setattr__(copy, "__pydantic_extra__", extra)
        object.__setattr__(copy, "__pydantic_fields_set__", {it for it in vars(copy) if it in self.model_fields_set})
        return copy


def _fitting(fields: Mapping[str, Any], left: int) -> tuple[dict[str, Any], int]:
    """Return the first fields with no more than `left` values, without larger ones, and how many are left."""
    kept: dict[str, Any] = {}
    for name, value in fields.items():
        count = 1 + count_values(value, left)
        if count <= left:
            kept[name] = value
            left -= count
    return kept, left
