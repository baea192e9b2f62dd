"""The span of a publish, if the application uses OpenTelemetry."""

import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from otp_stream import __version__
from otp_stream.core.messaging import SCHEMA_URL, published_to


@contextmanager
def publish_span(
    exchange: str, routing_key: str, body_size: int, server: tuple[str, int]
) -> Generator[dict[str, Any] | None]:
    """Open the span of a publish. Yields the headers that carry its context, `traceparent` and `tracestate`, or `None`.

    Of an error, only the type is recorded, because its text may contain the message.
    """
    if "opentelemetry.trace" not in sys.modules:
        yield None
        return
    from opentelemetry.trace import SpanKind, StatusCode, get_tracer  # noqa: PLC0415 - optional
    from opentelemetry.trace.propagation.tracecontext import (  # noqa: PLC0415 - as above
        TraceContextTextMapPropagator,
    )

    to = published_to(exchange, routing_key).name
    attributes: dict[str, str | int] = {
        "messaging.system": "rabbitmq",
        "messaging.operation.name": "publish",
        "messaging.operation.type": "send",
        "messaging.destination.name": to,
        "messaging.rabbitmq.destination.routing_key": routing_key,
        "messaging.message.body.size": body_size,
        "server.address": server[0],
        "server.port": server[1],
    }
    tracer = get_tracer("otp-stream", __version__, schema_url=SCHEMA_URL)
    with tracer.start_as_current_span(
        f"publish {to}",
        kind=SpanKind.PRODUCER,
        attributes=attributes,
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        headers: dict[str, Any] = {}
        # not with the application's propagator, which may add baggage, and that may contain an address
        TraceContextTextMapPropagator().inject(headers)
        try:
            yield headers or None
        except BaseException as error:
            span.set_attribute("error.type", type(error).__name__)
            span.set_status(StatusCode.ERROR)
            raise
