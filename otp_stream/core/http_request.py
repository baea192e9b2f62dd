"""A request to the intake, with the names of OpenTelemetry's conventions for HTTP."""

from dataclasses import dataclass

_METHODS = {"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"}


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """What telemetry shows of a request. Its path is not shown, because it may contain the id of a job."""

    method: str
    """One of the standard methods, or `_OTHER`."""
    route: str | None
    """The path's template, such as `/v1/jobs/{jobId}`; `None` if there is nothing at the path."""
    scheme: str
    traceparent: str | None = None
    """The client's trace (W3C). Its `tracestate` is not shown, because it may contain the code or the address."""


def known_method(method: str) -> str:
    """Return a standard method as it is, and any other one as `_OTHER`: a label of metrics needs few values."""
    return method if method in _METHODS else "_OTHER"
