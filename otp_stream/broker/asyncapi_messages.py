"""Messages of the AsyncAPI document: payloads, headers, examples."""

from typing import Any

from otp_stream.core.job_event import JobEvent
from otp_stream.core.otp_job import OtpJob

from .headers import (
    ALLOWED_AT,
    ATTEMPT,
    DIED_AT,
    ERASED,
    ERROR,
    FIRST_SEEN,
    FRESH,
    JOB_ID,
    LANE,
    MAC,
    MOVES,
    REASON,
    REPLAYED_AT,
    REPLAYED_BY,
    REPLY_CODE,
    SUSPECT,
    UNCERTAIN,
)

Node = dict[str, Any]

_INT64: Node = {"type": "integer", "format": "int64"}

_TRACE: Node = {
    "traceparent": {
        "type": "string",
        "description": "W3C trace context: the worker's spans join the producer's trace.",
        "examples": ["00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"],
    },
    "tracestate": {"type": "string", "description": "W3C trace context, vendors' part."},
}
_EVENT: Node = {
    "traceparent": _TRACE["traceparent"]
    | {"description": "W3C trace context of the job, for consumers that continue its trace. Only if it is traced."}
}
_COUNTED: Node = {
    ATTEMPT: {"type": "integer", "minimum": 0, "description": "Attempts made so far.", "examples": [1]},
    JOB_ID: {"type": "string", "description": "The job's id, made when the producer gave none."},
    FIRST_SEEN: {**_INT64, "description": "When a worker first saw the job, milliseconds since 1970 (UTC)."},
    MAC: {
        "type": "string",
        "description": "Keyed hash of the body and of all other `x-otp-` headers, which are ignored where it is wrong.",
    },
}
_WAITING: Node = {
    UNCERTAIN: {"type": "string", "description": "The relay that may have taken the mail before."},
    MOVES: {"type": "integer", "minimum": 1, "description": "How often it was moved to its tenant's queue."},
}
_MOVED: Node = {
    LANE: {"type": "string", "enum": ["high", "jobs", "due"], "description": "The lane from which it was moved."},
    SUSPECT: {"type": "string", "description": "Present if it was redelivered before it was moved."},
}
_REPLAYED: Node = {
    REPLAYED_AT: {
        **_INT64,
        "description": "When it was last replayed, if it was a dead letter before (ms since 1970).",
    },
    REPLAYED_BY: {"type": "string", "description": "Who did."},
    FRESH: {"type": "string", "description": "Present where the code's life counts from the replay."},
}
_DIED: Node = {
    REASON: {"$ref": "#/components/schemas/Reason"},
    ERROR: {"type": "string", "description": "The relay's reply, or the fault. No secrets."},
    REPLY_CODE: {"type": "integer", "description": "The relay's reply code, if it gave one.", "examples": [550]},
    DIED_AT: {**_INT64, "description": "When it died, milliseconds since 1970 (UTC)."},
    ALLOWED_AT: {
        **_INT64,
        "description": "With `throttled`: when it would be allowed, milliseconds since 1970 (UTC).",
    },
    ERASED: {
        **_INT64,
        "description": "When the code was erased from the body, because it had expired (ms since 1970).",
    },
}
_DEAD_LETTER: Node = _TRACE | _COUNTED | _DIED | _REPLAYED
_LATER, _NO_USER = "451 4.3.0 try later (to RCPT)", "550 5.1.1 no such user (to RCPT)"
_LATER_REPLY: Node = {"replyCode": 451, "replyClass": "system"}
_EVENTS: list[tuple[str, Node]] = [
    ("sent", {"outcome": "sent", "attempt": 1}),
    (
        "retrying",
        {
            "outcome": "retrying",
            "attempt": 1,
            "delayMs": 1130,
            "retryAt": 1672531201130,
            "error": _LATER,
            **_LATER_REPLY,
        },
    ),
    (
        "throttled",
        {
            "outcome": "throttled",
            "attempt": 0,
            "error": "over RECIPIENT_LIMIT=5/10m: allowed again at 2023-01-01T00:10:00Z",
            "allowedAt": 1672531800000,
        },
    ),
    ("rejected", {"outcome": "rejected", "attempt": 1, "error": _NO_USER, "replyCode": 550, "replyClass": "address"}),
]


CORRELATION_IDS: Node = {
    "jobId": {"description": "The id of the job, if its producer gave one.", "location": "$message.payload#/jobId"},
    "jobIdHeader": {"description": "The id of the job.", "location": f"$message.header#/{JOB_ID}"},
}


def messages() -> Node:
    """Return each message by its name."""
    jobs, retried = _job_examples(), _TRACE | _COUNTED | _WAITING | _REPLAYED
    made = {
        "otpJob": _message("OTP job", "Send this code to this address.", _TRACE, "OtpJob", jobs)
        | {"correlationId": {"$ref": "#/components/correlationIds/jobId"}},
        "dueJob": _message("OTP job, due again", "A job whose wait is over.", retried, "OtpJob", jobs),
        "tenantJob": _message(
            "OTP job, in the queue of its tenant", "A job of a tenant with many.", retried | _MOVED, "OtpJob", jobs
        ),
        "waitingJob": _message("OTP job, waiting", "A job before its next attempt.", retried, "OtpJob", jobs),
        "deadLetter": _message(
            "Dead letter", "A job that could not be sent, with its unchanged body.", _DEAD_LETTER, "OtpJob", jobs
        ),
        "erasedDeadLetter": _message(
            "Dead letter with an erased code",
            f"A dead letter whose code was erased, at the time in `{ERASED}`.",
            _DEAD_LETTER,
            "ErasedBody",
            [{"name": "erased", "payload": {"email": "user@example.com", "jobId": "optional-unique-id"}}],
        ),
        "malformedDeadLetter": _malformed(),
        "jobEvent": _message("Job event", "The outcome of a job.", _EVENT, "JobEvent", _event_examples())
        | {"correlationId": {"$ref": "#/components/correlationIds/jobId"}},
    }
    return {name: {"name": name, **message} for name, message in made.items()}


def _message(title: str, summary: str, headers: Node, schema: str, examples: list[Node]) -> Node:
    made: Node = {
        "title": title,
        "summary": summary,
        "contentType": "application/json",
        "payload": {"$ref": f"#/components/schemas/{schema}"},
        "examples": examples,
    }
    if headers:
        made["headers"] = {"type": "object", "properties": headers}
    if JOB_ID in headers:
        made["correlationId"] = {"$ref": "#/components/correlationIds/jobIdHeader"}
    return made


def _malformed() -> Node:
    summary = "A message that is not a valid job: any bytes, as they came."
    made = _message("Malformed message", summary, _DEAD_LETTER, "", [])
    del made["payload"], made["examples"]
    return made | {"contentType": "application/octet-stream"}


def _job_examples() -> list[Node]:
    full: Node = OtpJob.model_json_schema()["examples"][0]
    return [
        {"name": "smallest", "payload": {"email": full["email"], "otp": full["otp"]}},
        {"name": "complete", "payload": full},
    ]


def _event_examples() -> list[Node]:
    common = {
        "jobId": "5f0c2a3e",
        "recipient": "b7d1c0de5a6f4e0f9a8b7c6d5e4f3a2b",
        "template": "otp",
        "at": 1672531200250,
    }
    return [
        {"name": name, "payload": JobEvent.model_validate(common | part).model_dump(by_alias=True, exclude_none=True)}
        for name, part in _EVENTS
    ]
