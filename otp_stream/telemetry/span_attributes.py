"""The attributes of spans, by OpenTelemetry's semantic conventions for messaging and RabbitMQ (1.44).

No attribute contains the code or the address: a producer's texts that do are left out.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, assert_never

from opentelemetry.util.types import AttributeValue

from otp_stream.core.http_request import HttpRequest
from otp_stream.core.job import Job
from otp_stream.core.masking import is_secret_id
from otp_stream.core.messaging import Destination, Publication, ReceivedMessage, consumed_from
from otp_stream.core.outcome import (
    Accepted,
    Crashed,
    Deferred,
    Outcome,
    RecipientUnavailable,
    Rejected,
    Reply,
    Route,
    TimedOut,
    Unavailable,
    Uncertain,
)

from .messaging_metrics import Server

Attributes = dict[str, AttributeValue]
_ROUTING_KEY = "messaging.rabbitmq.destination.routing_key"
_MESSAGE_ID, _CONVERSATION_ID, _JOB_ID = "messaging.message.id", "messaging.message.conversation_id", "otp.job.id"


@lru_cache(1024)
def at_creation(to: Destination, operation: str, kind: str, server: Server | None) -> Mapping[str, AttributeValue]:
    """Return the attributes that samplers may need. They repeat, and most spans may not be sampled."""
    found: Attributes = {
        "messaging.system": "rabbitmq",
        "messaging.operation.name": operation,
        "messaging.operation.type": kind,
        "messaging.destination.name": to.name,
    }
    if to.template is not None:
        found["messaging.destination.template"] = to.template
    if server is not None:
        found |= {"server.address": server.address, "server.port": server.port}
    return found


def destination_of(job: Job, message: ReceivedMessage) -> tuple[Destination, str]:
    """Return where a job came from, and its routing key."""
    queue, exchange, routing_key = message.queue, message.exchange, message.routing_key
    if not exchange and routing_key == queue.name:
        return queue, routing_key
    routing_key = routing_key if routing_key == queue.name else _shown(routing_key, job)
    return consumed_from(_shown(exchange, job), routing_key, queue), routing_key


def of_job(job: Job, message: ReceivedMessage, routing_key: str) -> Attributes:
    """Return the other attributes of the span of a job."""
    found = of_unread(message, routing_key)
    found[_JOB_ID] = job.id
    found["otp.lane"] = job.lane
    found["otp.attempt"] = job.attempts_made + 1
    found["otp.template"] = job.request.shown_template
    if message_id := _shown(message.message_id, job):
        found[_MESSAGE_ID] = message_id
    if correlation_id := _shown(message.correlation_id, job):
        found[_CONVERSATION_ID] = correlation_id
    return found


def of_unread(message: ReceivedMessage, routing_key: str) -> Attributes:
    """Return the other attributes of the span of a message whose secrets are not known."""
    found: Attributes = {"messaging.message.body.size": message.body_size, "otp.lane": message.lane}
    if message.delivery_tag is not None:
        found["messaging.rabbitmq.message.delivery_tag"] = message.delivery_tag
    if routing_key:
        found[_ROUTING_KEY] = routing_key
    return found


def of_publish(publication: Publication, job: Mapping[str, Any]) -> Attributes:
    """Return the other attributes of a publish; `job` are those of the job's span."""
    found: Attributes = {name: job[name] for name in (_MESSAGE_ID, _CONVERSATION_ID, _JOB_ID) if name in job}
    if publication.routing_key:
        found[_ROUTING_KEY] = publication.routing_key
    if publication.body_size is not None:
        found["messaging.message.body.size"] = publication.body_size
    if len(publication.parents) > 1:
        found["messaging.batch.message_count"] = len(publication.parents)
    return found


def of_request(request: HttpRequest) -> Attributes:
    """Return the attributes of a request whose path has no parameters."""
    route = request.route or ""
    return {
        "http.request.method": request.method,
        "http.route": route,
        "url.path": route,
        "url.scheme": request.scheme,
    }


def of_outcome(outcome: Outcome) -> tuple[Attributes, str | None]:
    """Return the attributes of a send and its `error.type`: a reply code, or one of few words; `None` if accepted."""
    match outcome:
        case Accepted(_, route):
            return _sent(None, route), None
        case Deferred(reply, route) | Rejected(reply, route):
            return _sent(reply, route), str(reply.code)
        case RecipientUnavailable(_, reply, route):
            return _sent(reply, route), str(reply.code) if reply is not None else "recipient_unavailable"
        case Uncertain(_, _, route):
            return _sent(None, route), "uncertain"
        case Unavailable(reason, _, reply):
            return _sent(reply, None), reason
        case TimedOut():
            return {}, "timed_out"
        case Crashed():
            return {}, "crashed"
        case _:
            assert_never(outcome)


def _sent(reply: Reply | None, route: Route | None) -> Attributes:
    found: Attributes = {}
    if route is not None:
        host, _, port = route.relay.rpartition("/")[2].rpartition(":")
        found |= {"url.scheme": route.scheme, "server.address": host.strip("[]"), "server.port": int(port)}
    if reply is not None:
        found["otp.smtp.reply_code"] = reply.code
        if reply.enhanced:
            found["otp.smtp.enhanced_code"] = reply.enhanced
    return found


def _shown(text: str | None, job: Job) -> str:
    return text if text and not is_secret_id(text, job.request.email, job.request.otp) else ""
