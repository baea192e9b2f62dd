"""The event of a job outcome, typed."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel
from pydantic.config import JsonDict

from .decision import Ending, Reason
from .outcome import ReplyClass

_INT64: JsonDict = {"format": "int64"}


class JobEvent(BaseModel):
    """The outcome of a job. Never the code, never the address in the clear."""

    model_config = ConfigDict(frozen=True, alias_generator=to_camel, populate_by_name=True)

    outcome: Ending | Reason | Literal["retrying"] = Field(description="How the job ended, or that it is tried again.")
    job_id: str = Field(description="The producer's `jobId`, or the id made for the job.")
    recipient: str | None = Field(default=None, description="Keyed hash of the address: equal for equal addresses.")
    template: str | None = Field(default=None, description="The template that was asked for.", examples=["otp"])
    tenant: str | None = Field(
        default=None, description="The job's tenant, if it is listed in `TENANTS_FILE`.", examples=["shop-17"]
    )
    attempt: int = Field(ge=0, description="Attempts made.")
    at: int = Field(description="When, in milliseconds since 1970 (UTC).", json_schema_extra=_INT64)
    delay_ms: int | None = Field(
        default=None, description="With `retrying`: the wait before the next attempt.", json_schema_extra=_INT64
    )
    retry_at: int | None = Field(
        default=None,
        description="With `retrying`: when the next attempt is due, in milliseconds since 1970 (UTC).",
        json_schema_extra=_INT64,
    )
    reply_code: int | None = Field(
        default=None, description="The relay's reply code, where it gave one.", examples=[550]
    )
    reply_class: ReplyClass | None = Field(
        default=None,
        description="What the reply is about (RFC 3463 §3), if it has an enhanced code. `address`, `mailbox`: another "
        "address may help; `policy`: the relay does not want this mail; the others are no fault of the person's.",
    )
    relay: str | None = Field(
        default=None,
        description="The relay that the outcome is from, if the mail was sent to one: `host:port`.",
        examples=["smtp.example.com:587"],
    )
    switched_from: str | None = Field(
        default=None,
        description="The relay that the mail was taken from before, because it was slow.",
    )
    allowed_at: int | None = Field(
        default=None,
        description="With `throttled`: when it would be allowed, in milliseconds since 1970 (UTC).",
        json_schema_extra=_INT64,
    )
    error: str | None = Field(default=None, description="The relay's reply, or the fault. No secrets.")
