"""Additions to the AsyncAPI document that FastStream generates: headers, arguments, examples, login."""

import json
from typing import Any

from otp_stream.core.decision import ENDINGS
from otp_stream.core.json_schemas import definitions
from otp_stream.core.otp_job import MAX_BODY_BYTES

from .asyncapi_messages import CORRELATION_IDS, messages
from .topology import Topology

Node = dict[str, Any]

_ABOUT = f"""\
The worker takes "send this one-time code" jobs from RabbitMQ and hands e-mails to a mail relay.

**To send a code**, publish an `OtpJob` as JSON to the queue `{{jobs}}` through the default exchange, persistent.
No property or header is required. A body may have up to {MAX_BODY_BYTES // 1024} KiB. Declare the queue as plain and
durable, or not at all; both orders work. `{{high}}` takes the same job and is served ahead of all.
Or publish it to the exchange `{{exchange}}`, with the name of the queue as routing key: a user with the permission for
it cannot write to other queues, as one with the permission for the default exchange can.

**To seal the code**, so that RabbitMQ does not store it in plain text, publish `otpSealed` in place of `otp`: a compact
JWE with a key of the operator. With such keys, the worker publishes no plain code, and the whole body of a retry or a
dead letter may be a JWE, with the content type `application/jose`.

**To learn what became of it**, bind a queue to the topic exchange `{{events}}`.

Delivery is at least once. A `jobId` that was sent is not sent again for 24 hours, unless the operator has set another
time; a job without one is known by its recipient, code, template and timestamp. Over a limit that the operator has set,
a job is not sent: its event and its dead letter, `throttled`, give the time at which it would be.
"""


_RECEIVED: dict[str, tuple[str, str]] = {
    "sendOtp": ("otpJob", "Send the code by e-mail."),
    "sendOtpHigh": ("otpJob", "Send the code by e-mail, before all other jobs."),
    "sendOtpDue": ("dueJob", "Try again to send the code, after a wait."),
    "sendOtpTenant": ("tenantJob", "Send the code of a tenant with many jobs."),
}
"""The message and the summary of each operation that consumes."""
_SENT: dict[str, tuple[str, str, str, bool]] = {
    "retry": ("retry", "waitingJob", "Let a job wait for its next attempt.", True),
    "dead": ("dead", "deadLetter", "Keep a job that cannot be sent, with the reason.", True),
    "deadErased": ("dead", "erasedDeadLetter", "Replace a dead letter whose code has expired.", True),
    "deadMalformed": ("dead", "malformedDeadLetter", "Keep a message that is not a valid job.", True),
    "events": ("events", "jobEvent", "Report the outcome of a job.", False),
}
"""The channel, the message and the summary of each operation that publishes, and whether it is mandatory."""


def document(found: Node, topology: Topology, version: str) -> Node:
    """Complete `found`, the AsyncAPI 3 document that FastStream generates."""
    found["info"] = _info(topology, version)
    components: Node = {
        "messages": messages(),
        "schemas": definitions("#/components/schemas/"),
        "correlationIds": CORRELATION_IDS,
    }
    _describe_server(found, components)
    _describe_channels(found["channels"], topology)
    found["operations"] = _operations()
    # FastStream keeps its subscribers in a set, so the order differs from run to run
    channels = {name: found["channels"][name] for name in found["operations"] if name in found["channels"]}
    for channel in channels.values():
        channel["messages"] = {}
    for operation in found["operations"].values():
        _, _, channel, _, name = operation["messages"][0]["$ref"].split("/")
        channels[channel]["messages"][name] = {"$ref": f"#/components/messages/{name}"}
    found["channels"], found["components"] = channels, components
    # a copy without shared parts, for which YAML would have anchors and aliases
    return json.loads(json.dumps(found))


def _operations() -> Node:
    received = {
        name: _operation("receive", name, message, summary, {"ack": True})
        for name, (message, summary) in _RECEIVED.items()
    }
    sent = {
        name: _operation("send", channel, message, summary, {"deliveryMode": 2, "mandatory": mandatory})
        for name, (channel, message, summary, mandatory) in _SENT.items()
    }
    return received | sent


def _operation(action: str, channel: str, message: str, summary: str, amqp: Node) -> Node:
    # one message each, because generators make another type of a choice of messages
    return {
        "action": action,
        "summary": summary,
        "channel": {"$ref": f"#/channels/{channel}"},
        "messages": [{"$ref": f"#/channels/{channel}/messages/{message}"}],
        "bindings": {"amqp": {**amqp, "bindingVersion": "0.3.0"}},
    }


def _info(topology: Topology, version: str) -> Node:
    return {
        "title": "otp-stream",
        "version": version,
        "description": _ABOUT.format(
            jobs=topology.jobs,
            high=topology.high,
            exchange=topology.jobs_exchange.name,
            events=topology.events.name,
        ),
        "license": {"name": "ISC"},
        "tags": [{"name": "rabbitmq"}, {"name": "e-mail"}, {"name": "one-time code"}],
    }


def _describe_server(found: Node, components: Node) -> None:
    (server,) = found["servers"].values()
    found["servers"] = {"rabbitmq": server | {"security": [{"$ref": "#/components/securitySchemes/login"}]}}
    components["securitySchemes"] = {
        "login": {
            "type": "userPassword",
            "description": "A RabbitMQ user that may write to the exchange for jobs, or to the default exchange.",
        }
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
    for name in ("sendOtp", "sendOtpHigh"):
        address = channels[name]["address"]
        exchange = {"name": topology.jobs_exchange.name, "type": "direct", "durable": True, "vhost": "/"}
        channels[name]["x-exchange-bindings"] = [
            {"exchange": exchange, "routingKey": it.routing_key} for it in topology.job_bindings if it.queue == address
        ]
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
