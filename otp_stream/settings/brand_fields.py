"""Settings of the brand, and of the times, that the e-mails show."""

from pydantic import Field, field_validator

from . import brand_validators
from .base_fields import BaseFields
from .brand_validators import MAX_FOOTER, MAX_FOOTER_LINES, MAX_NAME, MAX_SUPPORT, MAX_URL


class BrandFields(BaseFields):
    """The settings that the built-in templates show."""

    brand_name: str | None = Field(
        default=None,
        description="Name of your company or product in the e-mails, and in From if `SENDER_EMAIL` has no name. One "
        f"line, {MAX_NAME} characters or fewer.",
        json_schema_extra={"maxLength": MAX_NAME},
    )
    brand_color: str | None = Field(
        default=None,
        description="Colour of the brand, `#rgb` or `#rrggbb`. The e-mails use a darker or lighter one where this one "
        "has too little contrast.",
        json_schema_extra={"pattern": "^#([0-9A-Fa-f]{3}|[0-9A-Fa-f]{6})$"},
    )
    brand_logo_url: str | None = Field(
        default=None,
        description="`https://` URL of your logo, a PNG or JPEG (many mail programs show no SVG). Needs `BRAND_NAME`, "
        "which is its alternative text.",
        json_schema_extra={"maxLength": MAX_URL, "pattern": "^https://"},
    )
    brand_support: str | None = Field(
        default=None,
        description="Contact for people who did not request the e-mail: an e-mail address, an `https://` URL or a "
        f"telephone number. {MAX_SUPPORT} characters or fewer.",
        json_schema_extra={"maxLength": MAX_SUPPORT},
    )
    brand_footer: str | None = Field(
        default=None,
        description=r"Text at the end of each e-mail, such as a postal address. `\n` starts a new line. "
        f"{MAX_FOOTER_LINES} lines and {MAX_FOOTER} characters or fewer.",
        json_schema_extra={"maxLength": MAX_FOOTER},
    )
    subject_time: bool = Field(
        default=False,
        description="Put the time of the request into the subject of `otp`, so that mail programs do not group codes "
        "into one thread.",
    )
    default_time_zone: str = Field(
        default="UTC",
        description="Time zone of times in the e-mails if a job has no `timeZone`, as an IANA name such as "
        "`Europe/Berlin`.",
    )

    _check_brand_name = field_validator("brand_name")(brand_validators.brand_name)
    _check_brand_color = field_validator("brand_color")(brand_validators.brand_color)
    _check_brand_logo_url = field_validator("brand_logo_url")(brand_validators.brand_logo_url)
    _check_brand_support = field_validator("brand_support")(brand_validators.brand_support)
    _check_brand_footer = field_validator("brand_footer")(brand_validators.brand_footer)
    _check_default_time_zone = field_validator("default_time_zone")(brand_validators.time_zone)
