"""Export of finished spans as OTLP (protobuf over HTTP): encoded here, and posted in batches by a separate thread.

The SDK makes a span of two dozen objects, and its exporter reads them again: with four spans for each job, that took
three times as long as the rest of the job. A test compares the encoding with the SDK's.
Format: opentelemetry-proto `trace.proto`; settings: the OTLP exporter's specification.
"""

import gzip
import re
import threading
from collections import deque
from collections.abc import Mapping
from functools import lru_cache
from struct import Struct
from typing import NamedTuple
from urllib.parse import unquote

import requests
import structlog

from otp_stream.urls import without_secrets

Value = str | int

_BATCH = 4_096
_QUEUE = 65_536
_RETRY_S = (1.0, 2.0, 4.0)
_RETRYABLE = frozenset({429, 502, 503, 504})
_TIMES = Struct("<BQBQ")
_FLAGS = Struct("<I")
_HAS_REMOTE, _REMOTE = 0x100, 0x200

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Span(NamedTuple):
    """One finished span. Ids are bytes, times nanoseconds since 1970; `kind` is OTLP's number."""

    trace_id: bytes
    span_id: bytes
    parent_id: bytes
    parent_is_remote: bool
    state: str
    """The producer's `tracestate`."""
    flags: int
    name: str
    kind: int
    started_ns: int
    ended_ns: int
    attributes: Mapping[str, Value]
    failed: bool


def encode_span(span: Span) -> bytes:
    """Return the span as a field of `ScopeSpans`."""
    parts = [b"\x0a\x10", span.trace_id, b"\x12\x08", span.span_id]
    if span.state:
        parts.append(_text(b"\x1a", span.state))
    if span.parent_id:
        parts += (b"\x22\x08", span.parent_id)
    parts += (_name_and_kind(span.name, span.kind), _TIMES.pack(0x39, span.started_ns, 0x41, span.ended_ns))
    parts += [encode_attribute(name, value) for name, value in span.attributes.items()]
    if span.failed:
        parts.append(b"\x7a\x02\x18\x02")
    flags = span.flags | _HAS_REMOTE | (_REMOTE if span.parent_is_remote else 0)
    parts.append(b"\x85\x01" + _FLAGS.pack(flags))
    return _field(b"\x12", b"".join(parts))


@lru_cache(64)
def _name_and_kind(name: str, kind: int) -> bytes:
    return _text(b"\x2a", name) + b"\x30" + bytes((kind,))


def encode_attribute(name: str, value: Value) -> bytes:
    """Return a `KeyValue` as a field of a span; a resource uses another field number."""
    if isinstance(value, str):
        return _field(b"\x4a", _key(name) + _field(b"\x12", _text(b"\x0a", value)))
    return _field(b"\x4a", _key(name) + _field(b"\x12", b"\x18" + _varint(value & (1 << 64) - 1)))


@lru_cache(256)
def _key(name: str) -> bytes:
    return _text(b"\x0a", name)


def _text(tag: bytes, text: str) -> bytes:
    return _field(tag, text.encode(errors="replace"))


def _field(tag: bytes, payload: bytes) -> bytes:
    size = len(payload)
    return tag + (bytes((size,)) if size < 0x80 else _varint(size)) + payload


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


class SpanExporter:
    """Posts spans to a collector in the background. Spans beyond its queue limit are dropped, counted and logged.

    `environ` holds the standard `OTEL_*` variables; `resource` and `scope` identify this worker.
    """

    def __init__(self, environ: Mapping[str, str], resource: Mapping[str, str], scope: tuple[str, str]) -> None:
        settings = _Settings(environ)
        self._url = settings.url
        self._masked_url = re.sub("//[^/]*@", "//", without_secrets(self._url))
        self._timeout_s = _number(settings("TIMEOUT"), 10)
        self._gzip = settings("COMPRESSION").lower() == "gzip"
        self._session = requests.Session()
        self._session.headers.update(settings.headers())
        # an argument of each request: REQUESTS_CA_BUNDLE overrides what is set on the session
        self._verify = settings("CERTIFICATE") or None
        certificate, key = settings("CLIENT_CERTIFICATE"), settings("CLIENT_KEY")
        self._certificate = (certificate, key) if key else certificate or None
        attributes = b"".join(b"\x0a" + encode_attribute(name, value)[1:] for name, value in resource.items())
        self._resource = _field(b"\x0a", attributes)
        self._scope = _field(b"\x0a", _text(b"\x0a", scope[0]) + _text(b"\x12", scope[1]))
        self._interval_s = _number(environ.get("OTEL_BSP_SCHEDULE_DELAY", ""), 5_000) / 1000
        self._limit = _number(environ.get("OTEL_BSP_MAX_QUEUE_SIZE", ""), _QUEUE)
        self._spans: deque[bytes] = deque()
        self._dropped = 0
        self._wake = threading.Event()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="spans", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread runs, so that spans are posted."""
        return self._thread.is_alive()

    def put(self, spans: list[bytes]) -> None:
        """Queue finished spans."""
        if len(self._spans) >= self._limit:
            self._dropped += len(spans)
            return
        self._spans.extend(spans)
        if len(self._spans) >= _BATCH:
            self._wake.set()

    def close(self, timeout_s: float) -> None:
        """Post the remaining spans; wait for `timeout_s` at most."""
        self._ending.set()
        self._wake.set()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            self._wake.wait(self._interval_s)
            self._wake.clear()
            while self._spans:
                batch = [self._spans.popleft() for _ in range(min(len(self._spans), _BATCH))]
                if not self._post(batch):
                    self._dropped += len(batch)
            if self._dropped:
                dropped, self._dropped = self._dropped, 0
                _log.warning("spans dropped", count=dropped, collector=self._masked_url)
            if self._ending.is_set():
                return

    def _post(self, batch: list[bytes]) -> bool:
        scope_spans = _field(b"\x12", self._scope + b"".join(batch))
        body = _field(b"\x0a", self._resource + scope_spans)
        headers = {"content-type": "application/x-protobuf"}
        if self._gzip:
            body, headers["content-encoding"] = gzip.compress(body), "gzip"
        for pause_s in (*_RETRY_S, None):
            try:
                response = self._session.post(
                    self._url, data=body, headers=headers, timeout=self._timeout_s,
                    verify=self._verify, cert=self._certificate,
                )  # fmt: skip
            except Exception as error:  # noqa: BLE001 - a missing certificate, a header that cannot be sent
                failure, retryable = type(error).__name__, isinstance(error, requests.RequestException)
            else:
                if response.ok:
                    return True
                failure, retryable = str(response.status_code), response.status_code in _RETRYABLE
            if pause_s is None or not retryable or self._ending.is_set():
                _log.warning("spans could not be exported", error=failure, collector=self._masked_url)
                return False
            self._ending.wait(pause_s)
        return False


def _number(value: str, default: float) -> float:
    try:
        number = float(value or default)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        _log.warning("tracing: not a number above zero, the default is used", value=value, default=default)
        return default
    return number


class _Settings:
    """The exporter's settings: a variable for traces takes precedence over the one for all signals."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ

    def __call__(self, name: str) -> str:
        value = self._environ.get(f"OTEL_EXPORTER_OTLP_TRACES_{name}") or self._environ.get(
            f"OTEL_EXPORTER_OTLP_{name}"
        )
        return (value or "").strip()

    @property
    def url(self) -> str:
        if own := self._environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "").strip():
            return own
        return (self("ENDPOINT") or "http://localhost:4318").rstrip("/") + "/v1/traces"

    def headers(self) -> dict[str, str]:
        pairs = (pair.partition("=") for pair in self("HEADERS").split(",") if "=" in pair)
        return {name.strip().lower(): unquote(value.strip()) for name, _, value in pairs}
