"""The state of RabbitMQ, as its connections and requests report it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import structlog
from aio_pika.abc import AbstractConnection

from otp_stream.clock import now_ms
from otp_stream.connection_errors import refusal
from otp_stream.core.masking import SHOWN
from otp_stream.core.shown_secrets import ShownSecrets
from otp_stream.core.state import BrokerState
from otp_stream.urls import secrets_of

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class StateTracker:
    """Keeps the latest state. `on_lost` is called when a connection is lost."""

    def __init__(self, url: Callable[[], str], shown_url: str, on_lost: Callable[[], None]) -> None:
        self._url = url
        self._on_lost = on_lost
        self._state = BrokerState(url=shown_url, since_ms=now_ms(), error=None)
        self._lost: set[AbstractConnection | None] = set()
        self._stopping = False
        self._shown = ShownSecrets()

    @property
    def state(self) -> BrokerState:
        """The latest state, without lanes."""
        return self._state

    def stop(self) -> None:
        """Ignore lost connections from now on, because the worker closes them."""
        self._stopping = True

    def connection_lost(self, connection: AbstractConnection | None, error: BaseException | None) -> None:
        """Record that a connection was lost."""
        if self._stopping:
            return
        self._lost.add(connection)
        failure = self._failure(error) if error else {"error": "connection closed"}
        # it is retried every second, so only changes are logged
        if self._state.connected or failure["error"] != self._state.error:
            _log.warning("RabbitMQ is away, connecting again", broker=self._state.url, error=failure["error"])
        # the last report is outdated: after a reconnect, the queues may no longer exist
        self.update(connected=False, reported_ms=None, **failure)
        self._on_lost()

    def reconnected(self, connection: AbstractConnection | None) -> None:
        """Record that a connection is open again."""
        self._lost.discard(connection)
        if self._lost:
            return
        self.update(connected=True, error=None)
        _log.info("RabbitMQ is back", broker=self._state.url)

    def closed(self) -> None:
        """Record that this worker has closed all connections."""
        self._lost.clear()

    def failed(self, error: BaseException, **changes: Any) -> None:
        """Record that a request failed."""
        self.update(**changes, **self._failure(error))

    def update(self, **changes: Any) -> None:
        """Change fields of the state. A new report or a new connection ends the last error."""
        if changes.get("connected", self._state.connected) != self._state.connected:
            changes["since_ms"] = now_ms()
        if changes.get("connected") or "reported_ms" in changes:
            changes.setdefault("error", None)
        if "error" in changes:
            changes.setdefault("refused", False)
        self._state = replace(self._state, **changes)

    def _failure(self, error: BaseException) -> dict[str, Any]:
        url = self._url()
        self._shown.add(*secrets_of(url))
        if found := refusal(error, url):
            return {"error": self._shown.redact("; ".join(found)), "refused": True}
        return {"error": self._shown.redact(f"{type(error).__name__}: {error}", SHOWN).removesuffix(":")}
