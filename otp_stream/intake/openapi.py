"""The OpenAPI document of the intake."""

from collections.abc import Mapping
from typing import Any, get_args

from otp_stream.core.job_status import OUTCOMES, JobState
from otp_stream.core.json_schemas import DIALECT, definitions
from otp_stream.core.lenient import MAX_JOB_ID
from otp_stream.core.outcome import ReplyClass

from .problem import CONTENT_TYPE
from .requests import MAX_KEY

_SCHEMAS = "#/components/schemas/"
_KEY = r'^("([ !#-\[\]-~]|\\["\\])+"|[!#-~][ -~]*)$'
"""Printable ASCII: in quotes, of which those inside have a backslash before them, or without."""
_OF_A_JOB = ("Metadata", "OtpJob", "Priority", "RequestOrigin")
_REFUSALS = {
    400: "The body is not JSON, or `Idempotency-Key` is invalid.",
    401: "No token, or a wrong or expired one.",
    403: "The token does not send for this tenant.",
    404: "This worker does not know the job.",
    408: "The body did not arrive in time.",
    413: "The body is larger than 64 KiB.",
    415: "The body is not `application/json`.",
    422: "The job is invalid, or the key was used with another body.",
    429: "Too many requests with this token.",
    503: "RabbitMQ has not confirmed the job, or the worker is stopping or not connected. Send the request again.",
}
_TEXT_REFUSALS = {
    "414": "The query has more than 2,048 bytes.",
    "431": "The request has more than 100 headers.",
}
"""Those of the whole server, in plain text."""
_FOR_HOOKS: Mapping[str, tuple[str, list[dict[str, list[str]]]]] = {
    "supabase": ("The send-email hook of Supabase Auth", [{"webhookSignature": []}]),
    "zitadel": ("The HTTP provider of Zitadel", [{"zitadelSignature": []}]),
    "kratos": ("The HTTP courier of Ory Kratos", [{"token": []}, {"basic": []}]),
    "logto": ("The HTTP e-mail connector of Logto", [{"token": []}]),
}
_STATUS: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        "jobId": {"type": "string"},
        "state": {
            "type": "string",
            "enum": list(get_args(JobState)),
            "description": "`queued`: in RabbitMQ or a worker. `sent`: the relay has accepted the mail. `failed`: this "
            "code is not sent.",
        },
        "outcome": {
            "type": ["string", "null"],
            "enum": [*OUTCOMES, None],
            "description": "The outcome of the job's last event; null before the first one.",
        },
        "at": {"type": "integer", "format": "int64", "description": "When, in milliseconds since 1970 (UTC)."},
        "attempt": {"type": "integer", "minimum": 0, "description": "Attempts made."},
        "replyClass": {
            "type": ["string", "null"],
            "enum": [*get_args(ReplyClass), None],
            "description": "What the relay's refusal is about (RFC 3463 §3), if it gave an enhanced code. `address`, "
            "`mailbox`: another address may help.",
        },
    },
    "required": ["jobId", "state", "outcome", "at", "attempt", "replyClass"],
}
_ACCEPTED: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        "jobId": {"type": "string", "description": "The job's own id, or one made from the key or at random."},
        "state": {"const": "queued"},
        "lenient": {
            "type": "array",
            "description": "Optional fields that did not match and were coerced or ignored.",
            "items": {
                "type": "object",
                "properties": {"field": {"type": "string"}, "what": {"type": "string"}},
                "required": ["field", "what"],
            },
        },
    },
    "required": ["jobId", "state"],
}
_PROBLEM: Mapping[str, Any] = {
    "type": "object",
    "description": "RFC 9457. `detail` names the field and the fix, and quotes no value.",
    "properties": {
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "jobId": {"type": "string", "description": "With 503: the id of the job, which may be in RabbitMQ."},
    },
    "required": ["title", "status", "detail"],
}


def openapi(version: str) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document."""
    jobs = definitions(_SCHEMAS)
    return {
        "openapi": "3.1.1",
        "jsonSchemaDialect": DIALECT,
        "info": {
            "title": "otp-stream HTTP intake",
            "version": version,
            "description": "Jobs over HTTP: see docs/http.md. Off by default.",
            "license": {"name": "ISC", "identifier": "ISC"},
        },
        "servers": [{"url": "/"}],
        "paths": {
            "/v1/jobs": {"post": _post_job()},
            "/v1/jobs/{jobId}": {"get": _get_job()},
            **{f"/v1/hooks/{name}": {"post": _post_hook(name)} for name in _FOR_HOOKS},
        },
        "components": {
            "schemas": {
                **{name: jobs[name] for name in _OF_A_JOB},
                "Accepted": _ACCEPTED,
                "JobStatus": _STATUS,
                "Problem": _PROBLEM,
            },
            "securitySchemes": _security_schemes(),
        },
    }


def _security_schemes() -> dict[str, Any]:
    return {
        "token": {"type": "http", "scheme": "bearer", "description": "A token of `INTAKE_TOKEN`, or with the role "
                  "`producer`."},
        "basic": {"type": "http", "scheme": "basic", "description": "Any user, and the token as the password."},
        "webhookSignature": {"type": "apiKey", "in": "header", "name": "webhook-signature",
                             "description": "Standard Webhooks, with `INTAKE_SUPABASE_SECRET`."},
        "zitadelSignature": {"type": "apiKey", "in": "header", "name": "ZITADEL-Signature",
                             "description": "HMAC with `INTAKE_ZITADEL_KEY`."},
    }  # fmt: skip


def _post_job() -> dict[str, Any]:
    return {
        "operationId": "sendJob",
        "summary": "Send a one-time code",
        "security": [{"token": []}],
        "parameters": [
            {
                "name": "Idempotency-Key",
                "in": "header",
                "description": "The same key with the same job sends the code once. With or without quotes around it.",
                "schema": {"type": "string", "minLength": 1, "maxLength": MAX_KEY, "pattern": _KEY},
                "example": '"8e03978e-40d5-43dd-bc93-6894a57f9324"',
            }
        ],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": f"{_SCHEMAS}OtpJob"}}},
        },
        "responses": {
            "202": {
                "description": "RabbitMQ has confirmed the job.",
                "headers": {"Location": {"description": "The path of its status.", "schema": {"type": "string"}}},
                "content": {"application/json": {"schema": {"$ref": f"{_SCHEMAS}Accepted"}}},
                "links": {
                    "status": {"operationId": "getJob", "parameters": {"jobId": "$response.body#/jobId"}},
                },
            },
            **_refusals(400, 401, 403, 408, 413, 415, 422, 429, 503),
        },
    }


def _get_job() -> dict[str, Any]:
    return {
        "operationId": "getJob",
        "summary": "Get the status of a job",
        "security": [{"token": []}],
        "parameters": [
            {
                "name": "jobId",
                "in": "path",
                "required": True,
                "description": "The job's id, percent-encoded.",
                "schema": {"type": "string", "minLength": 1, "maxLength": MAX_JOB_ID},
            }
        ],
        "responses": {
            "200": {
                "description": "The status of the job.",
                "content": {"application/json": {"schema": {"$ref": f"{_SCHEMAS}JobStatus"}}},
            },
            **_refusals(401, 404, 429),
        },
    }


def _post_hook(name: str) -> dict[str, Any]:
    about, security = _FOR_HOOKS[name]
    return {
        "operationId": f"{name}Hook",
        "summary": about,
        "description": "The payload is documented by the server that sends it: see docs/http.md.",
        "security": security,
        "requestBody": {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}},
        "responses": {
            "200": {
                "description": "RabbitMQ has confirmed every job of the hook.",
                "content": {"application/json": {"schema": {"type": "object"}}},
            },
            **_refusals(),
            "default": {
                "description": "An error in the format that the server reads.",
                "content": {
                    CONTENT_TYPE: {"schema": {"$ref": f"{_SCHEMAS}Problem"}},
                    "application/json": {"schema": {"type": "object"}},
                },
            },
        },
    }


def _refusals(*statuses: int) -> dict[str, Any]:
    content = {CONTENT_TYPE: {"schema": {"$ref": f"{_SCHEMAS}Problem"}}}
    later = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}
    text = {"text/plain": {"schema": {"type": "string"}}}
    own = {
        str(status): {
            "description": _REFUSALS[status],
            **({"headers": later} if status in {429, 503} else {}),
            "content": content,
        }
        for status in statuses
    }
    whole = {status: {"description": about, "content": text} for status, about in _TEXT_REFUSALS.items()}
    return dict(sorted({**own, **whole}.items()))
