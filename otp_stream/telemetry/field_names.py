"""The names of log fields in Elastic Common Schema and OpenTelemetry. All other fields are `otp.<name>` in both."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from otp_stream.core.decision import GOOD

ECS_VERSION = "8.11.0"


class _Names(NamedTuple):
    ecs: str
    otel: str | None
    """`None`: not an attribute but another part of a log record."""


_NAMES = {
    "timestamp": _Names("@timestamp", None),
    "level": _Names("log.level", None),
    "event": _Names("message", None),
    "trace_id": _Names("trace.id", None),
    "span_id": _Names("span.id", None),
    "logger": _Names("log.logger", "otp.logger"),
    "error": _Names("error.message", "otp.error"),
    "exception": _Names("error.stack_trace", "exception.stacktrace"),
    "job_id": _Names("otp.job.id", "otp.job.id"),
}
_SUCCESS = {f"job {ending}" for ending in GOOD}
_FAILURE = {"job is dead-lettered", "job will be retried"}


def ecs_fields(event: Mapping[str, Any], service: Mapping[str, str]) -> dict[str, Any]:
    """Return the fields of a line by ECS, the ones that it requires first. `service` are the resource's attributes."""
    message = str(event.get("event"))
    found: dict[str, Any] = {
        "@timestamp": event.get("timestamp"),
        "log.level": event.get("level"),
        "message": message,
        "ecs.version": ECS_VERSION,
        "service.name": service["service.name"],
        "service.version": service["service.version"],
        "service.environment": service["deployment.environment.name"],
        "service.node.name": service["service.instance.id"],
        "event.dataset": f"{service['service.name']}.log",
    }
    if (outcome := _outcome(message)) is not None:
        found["event.outcome"] = outcome
    for name, value in event.items():
        if name not in {"timestamp", "level", "event"}:
            found[_NAMES[name].ecs if name in _NAMES else f"otp.{name}"] = value
    return found


def otel_attributes(event: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes of a log record: all fields but those that are other parts of it."""
    known = {name: _NAMES.get(name, _Names("", f"otp.{name}")).otel for name in event if not name.startswith("_")}
    return {attribute: event[name] for name, attribute in known.items() if attribute is not None}


def _outcome(message: str) -> str | None:
    return "success" if message in _SUCCESS else "failure" if message in _FAILURE else None
