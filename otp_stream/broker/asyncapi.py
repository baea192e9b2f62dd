"""Additions to the AsyncAPI document that FastStream generates: headers, arguments, examples, login."""

from typing import Any

from pydantic import BaseModel

from otp_stream.core.decision import ENDINGS, REASONS
from otp_stream.core.job_event import JobEvent
from otp_stream.core.otp_job import MAX_BODY_BYTES, OtpJob

from .headers import (
    ALLOWED_AT,
    ATTEMPT,
    DIED_AT,
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
from .topology import Topology

Node = dict[str, Any]

_ABOUT = f"""\
The worker takes "send this one-time code" jobs from RabbitMQ and hands e-mails to a mail relay.

**To send a code**, publish an `OtpJob` as JSON to the queue `{{jobs}}` through the default exchange, persistent.
No property or header is required. A body may have up to {MAX_BODY_BYTES // 1024} KiB. Declare the queue as plain and
durable, or not at all; both orders work. `{{high}}` takes the same job and is served ahead of all.

**To learn what became of it**, bind a queue to the topic exchange `{{events}}`.

Delivery is at least once. A `jobId` that was sent is not sent again for 24 hours, unless the operator has set another
time; a job without one is known by its recipient, code, template and timestamp. Over a limit that the operator has set,
a job is not sent: its event and its dead letter, `throttled`, give the time at which it would be.
"""

_TRACE: Node = {
    "traceparent": {
        "type": "string",
        "description": "W3C trace context: the worker's spans join the producer's trace.",
        "examples": ["00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"],
    },
    "tracestate": {"type": "string", "description": "W3C trace context, vendors' part."},
}
_COUNTED: Node = {
    ATTEMPT: {"type": "integer", "minimum": 0, "description": "Attempts made so far.", "examples": [1]},
    JOB_ID: {"type": "string", "description": "The job's id, made when the producer gave none."},
    FIRST_SEEN: {"type": "integer", "description": "When a worker first saw the job, milliseconds since 1970 (UTC)."},
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
        "type": "integer",
        "description": "When it was last replayed, if it was a dead letter before (ms since 1970).",
    },
    REPLAYED_BY: {"type": "string", "description": "Who did."},
    FRESH: {"type": "string", "description": "Present where the code's life counts from the replay."},
}
_DIED: Node = {
    REASON: {"type": "string", "enum": list(REASONS), "description": "Why it died."},
    ERROR: {"type": "string", "description": "The relay's reply, or the fault. No secrets."},
    REPLY_CODE: {"type": "integer", "description": "The relay's reply code, if it gave one.", "examples": [550]},
    DIED_AT: {"type": "integer", "description": "When it died, milliseconds since 1970 (UTC)."},
    ALLOWED_AT: {
        "type": "integer",
        "description": "With `throttled`: when it would be allowed, milliseconds since 1970 (UTC).",
    },
}
_RETRIED: Node = _COUNTED | _WAITING | _REPLAYED
_DEAD_LETTER: Node = _COUNTED | _DIED | _REPLAYED
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


def document(found: Node, topology: Topology, version: str) -> Node:
    """Complete `found`, the AsyncAPI 3 document that FastStream generates."""
    channels, components = found["channels"], found["components"]
    found["info"] = _info(topology, version)
    _describe_server(found, components)
    _describe_channels(channels, topology)
    for name in ("sendOtp", "sendOtpHigh"):
        _describe(components, f"{name}:SubscribeMessage", "OTP job", _TRACE, _job_examples())
    _describe(
        components,
        "sendOtpDue:SubscribeMessage",
        "OTP job, due again",
        _TRACE | _RETRIED,
        _job_examples(),
    )
    _describe(
        components,
        "sendOtpTenant:SubscribeMessage",
        "OTP job, in the queue of its tenant",
        _TRACE | _RETRIED | _MOVED,
        _job_examples(),
    )
    _describe(components, "retry:Message", "OTP job, waiting", _TRACE | _RETRIED, _job_examples())
    _describe(components, "dead:Message", "Dead letter", _TRACE | _DEAD_LETTER, _job_examples())
    _describe(components, "events:Message", "Job event", {}, _event_examples())
    for operation in found["operations"].values():
        if operation["action"] == "send":
            operation["bindings"]["amqp"]["deliveryMode"] = 2
            operation["bindings"]["amqp"].pop("cc", None)
    return _in_order(found)


def _in_order(found: Node) -> Node:
    # FastStream keeps its subscribers in a set, so the order differs from run to run
    for part in ("channels", "operations"):
        found[part] = dict(sorted(found[part].items()))
    found["components"] = {name: dict(sorted(part.items())) for name, part in sorted(found["components"].items())}
    return found


def _info(topology: Topology, version: str) -> Node:
    return {
        "title": "otp-stream",
        "version": version,
        "description": _ABOUT.format(jobs=topology.jobs, high=topology.high, events=topology.events.name),
        "license": {"name": "ISC"},
        "tags": [{"name": "rabbitmq"}, {"name": "e-mail"}, {"name": "one-time code"}],
    }


def _describe_server(found: Node, components: Node) -> None:
    (server,) = found["servers"].values()
    found["servers"] = {"rabbitmq": server | {"security": [{"$ref": "#/components/securitySchemes/login"}]}}
    components["securitySchemes"] = {
        "login": {"type": "userPassword", "description": "A RabbitMQ user with write access to the jobs queue."}
    }


def _describe_channels(channels: Node, topology: Topology) -> None:
    for channel in channels.values():
        channel["servers"] = [{"$ref": "#/servers/rabbitmq"}]
        amqp = channel["bindings"]["amqp"]
        for part in ("queue", "exchange"):
            if part in amqp:
                amqp[part]["vhost"] = "/"
    for name in ("sendOtpDue", "dead"):
        channels[name]["x-queue-arguments"] = topology.arguments[channels[name]["address"]]
    channels["sendOtpTenant"]["x-queue-arguments"] = topology.tenant_arguments
    channels["sendOtpTenant"]["parameters"] = {
        "tenant": {"description": "The tenant's name in `TENANTS_FILE`; `default` for jobs without a tenant."}
    }
    channels["dead"]["bindings"]["amqp"] = {
        "is": "queue",
        "queue": {"name": topology.dead, "durable": True, "exclusive": False, "autoDelete": False, "vhost": "/"},
        "bindingVersion": "0.3.0",
    }
    channels["retry"]["parameters"] = {
        "delay_ms": {
            "description": "The wait in milliseconds: one queue each, so that no wait is held up by another.",
            "enum": [str(wait_ms) for wait_ms in topology.backoff.waits_ms],
        }
    }
    channels["retry"]["x-wait-queues"] = {
        topology.wait_queue(wait_ms): topology.arguments[topology.wait_queue(wait_ms)]
        for wait_ms in topology.backoff.waits_ms
    }
    channels["events"]["parameters"] = {
        "outcome": {
            "description": "How the job ended, or `retrying`.",
            "enum": [*ENDINGS, "retrying"],
        }
    }


def _describe(components: Node, name: str, title: str, headers: Node, examples: list[Node]) -> None:
    message: Node = components["messages"][name]
    message.pop("correlationId", None)  # FastStream's default: producers need not send one
    message |= {"title": title, "contentType": "application/json", "examples": examples}
    if headers:
        message["headers"] = {"type": "object", "properties": headers}


def _job_examples() -> list[Node]:
    full: Node = _examples(OtpJob)[0]
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


def _examples(model: type[BaseModel]) -> list[Node]:
    return model.model_json_schema()["examples"]
