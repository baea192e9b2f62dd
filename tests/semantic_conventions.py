"""Compares exported telemetry with OpenTelemetry's semantic conventions (`tests/semconv`)."""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

REGISTRY = json.loads((Path(__file__).parent / "semconv" / "registry.json").read_text())
SCHEMA_URL = f"https://opentelemetry.io/schemas/{REGISTRY['version']}"
OWN = "otp."
_ERROR_TYPE = re.compile(r"[a-z_]{4,24}|[A-Z][A-Za-z]{4,40}|[45]\d\d|_OTHER")
_KINDS = {"string_value": "string", "int_value": "int", "double_value": "double", "bool_value": "boolean"}


def attributes(it: Any) -> dict[str, Any]:
    """Return the attributes of a span, a data point, a log record or a resource."""
    return {pair.key: getattr(pair.value, str(pair.value.WhichOneof("value"))) for pair in it.attributes}


def faults(it: Any) -> Iterator[str]:
    """Yield what is wrong with the attributes: a name that is not in the registry, or a value of another type."""
    for pair in it.attributes:
        known = REGISTRY["attributes"].get(pair.key)
        kind = _KINDS.get(str(pair.value.WhichOneof("value")))
        if known is None:
            if not pair.key.startswith(OWN):
                yield f"{pair.key} is not in the registry"
        elif kind != known["type"]:
            yield f"{pair.key} is {kind}, not {known['type']}"
        elif pair.key == "error.type":  # any word, but one of few
            if not _ERROR_TYPE.fullmatch(pair.value.string_value):
                yield f"error.type is {pair.value.string_value}"
        elif "values" in known and (value := attributes(it)[pair.key]) not in known["values"]:
            yield f"{pair.key} is {value}"


def metric_faults(metrics: Iterable[Any]) -> Iterator[str]:
    """Yield what is wrong with metrics."""
    for metric in metrics:
        kind = metric.WhichOneof("data")
        data = getattr(metric, kind)
        yield from (f"{metric.name}: {it}" for point in data.data_points for it in faults(point))
        known = REGISTRY["metrics"].get(metric.name)
        if known is None:
            if not metric.name.startswith(OWN):
                yield f"{metric.name} is not in the registry"
            continue
        instrument = ("counter" if data.is_monotonic else "updowncounter") if kind == "sum" else kind
        if (instrument, metric.unit) != (known["instrument"], known["unit"]):
            yield f"{metric.name} is a {instrument} in {metric.unit}"
        for point in data.data_points:
            if unknown := attributes(point).keys() - {*known["attributes"]}:
                yield f"{metric.name} has {unknown}"
            if "buckets" in known and list(point.explicit_bounds) != known["buckets"]:
                yield f"{metric.name} has other buckets"


def span_faults(spans: Iterable[Any]) -> Iterator[str]:
    """Yield what is wrong with spans."""
    for span in spans:
        found = attributes(span)
        yield from (f"{span.name}: {it}" for it in faults(span))
        failed = span.status.code == Status.STATUS_CODE_ERROR
        if failed != ("error.type" in found) or span.status.code == Status.STATUS_CODE_OK:
            yield f"{span.name}: error.type and status differ"
        if "http.request.method" in found:
            yield from _request_faults(span, found)
        kind = found.get("messaging.operation.type")
        if kind is None:
            continue
        expected = REGISTRY["spans"][kind]
        batch = "messaging.batch.message_count" in found
        if Span.SpanKind.Name(span.kind) != ("SPAN_KIND_CLIENT" if batch else f"SPAN_KIND_{expected['kind']}"):
            yield f"{span.name}: is a {Span.SpanKind.Name(span.kind)}"
        if missing := {*expected["required"], *expected["at_creation"]} - found.keys():
            yield f"{span.name}: has no {missing}"
        destination = found.get("messaging.destination.template", found["messaging.destination.name"])
        if span.name != f"{found['messaging.operation.name']} {destination}":
            yield f"{span.name}: is not called after its operation and destination"


def _request_faults(span: Any, found: dict[str, Any]) -> Iterator[str]:
    expected = REGISTRY["spans"]["server"]
    if Span.SpanKind.Name(span.kind) != f"SPAN_KIND_{expected['kind']}":
        yield f"{span.name}: is a {Span.SpanKind.Name(span.kind)}"
    if missing := {*expected["required"], *expected["at_creation"]} - found.keys():
        yield f"{span.name}: has no {missing}"
    if span.name != f"{found['http.request.method']} {found['http.route']}":
        yield f"{span.name}: is not called after its method and route"
