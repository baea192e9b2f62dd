"""The worker process: start, signals and graceful shutdown."""

import argparse
import asyncio
import gc
import logging
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import structlog
import uvicorn
from faststream.asgi import AsgiFastStream
from faststream.asgi.app import cast_uvicorn_params
from starlette.types import Receive, Scope, Send

from . import __version__
from .asgi import NOT_FOUND, SecureApp
from .broker import OtpBroker
from .core.state import Phase, RelayState, TablesState, WorkerState
from .http_connections import connection_limit, limit_connections
from .settings import Settings, find_warnings
from .tasks import cancel_and_wait, forever

_UVICORN_OPTIONS = (
    "host",
    "port",
    "uds",
    "fd",
    "root_path",
    "proxy_headers",
    "forwarded_allow_ips",
    "ssl_keyfile",
    "ssl_certfile",
)
_HTTP_GRACE_S = 2
"""How long open HTTP requests may delay the shutdown; SHUTDOWN_GRACE_MS applies to jobs only."""

_LISTEN_BACKLOG = 128
"""Connections in the kernel's accept queue: one iteration of the event loop may accept them all, a descriptor each."""

_GC_THRESHOLD = 10_000
"""Generation-0 GC threshold; a full prefetch window allocates about this many objects."""

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Relay(Protocol):
    """The mail relays."""

    def state(self) -> tuple[RelayState, ...]:
        """Return the state of each relay, in the order in which they are used."""
        ...

    def finish(self) -> None:
        """Start no more sends; mails being sent are finished."""
        ...


@dataclass(slots=True)
class Stopping:
    """Whether the worker is stopping, and whether its grace time is over."""

    grace_s: float
    deadline: float | None = None
    at_once: bool = False

    def request(self) -> bool:
        """Handle a signal: the first starts the grace time, any other ends it. Returns whether it is the first."""
        first = self.deadline is None
        if first:
            self.deadline = time.monotonic() + self.grace_s
        else:
            self.at_once = True
        return first

    @property
    def over(self) -> bool:
        """Whether the grace time has passed."""
        return self.at_once or (self.deadline is not None and time.monotonic() >= self.deadline)


@dataclass(slots=True)
class Hooks:
    """Functions to call at the steps of the process's life, in this order."""

    first: Callable[[], object] = lambda: None
    """Before anything else."""
    start: Sequence[Callable[[], Awaitable[object]]] = ()
    """Before the broker connects."""
    background: Sequence[Callable[[], Awaitable[object]]] = ()
    """Background tasks, restarted whenever they end."""
    drained: Sequence[Callable[[], Awaitable[object]]] = ()
    """When no job is in flight any more, while the background tasks still run."""
    close: Sequence[Callable[[], Awaitable[object]]] = ()
    last: Callable[[], object] = lambda: None
    """After everything else. `atexit` is no substitute: uvicorn ends the process by the signal that stopped it."""


class Tables(Protocol):
    """The tables of claims, sent records and limits."""

    def finish(self) -> None:
        """Cancel every call that waits for Redis, or for another worker."""
        ...

    def state(self) -> TablesState:
        """Return the state of the tables."""
        ...


class OtpStream(AsgiFastStream):
    """FastStream's ASGI application: consumer and HTTP in one process."""

    def __init__(
        self,
        settings: Settings,
        problems: Sequence[str],
        *,
        rabbit: OtpBroker,
        relay: Relay,
        tables: Tables,
        hooks: Hooks,
    ) -> None:
        self.settings = settings
        self.problems = list(problems)
        self.rabbit = rabbit
        self._relay = relay
        self._tables = tables
        self.hooks = hooks
        self._http = SecureApp(super().__call__, settings.own_hosts)
        self._stopping = Stopping(settings.shutdown_grace_ms / 1000)
        self._background: list[asyncio.Task[None]] = []
        self._cancelling_consumers: asyncio.Task[None] | None = None
        super().__init__(
            rabbit,
            logger=None,
            on_startup=[self._start],
            on_shutdown=[self._drain],
            after_shutdown=[self._close],
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Respond as FastStream does, with security headers, and refuse requests for other hosts."""
        await (super().__call__ if scope["type"] == "lifespan" else self._http)(scope, receive, send)

    async def not_found(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse an unknown path, or a WebSocket."""
        await NOT_FOUND(scope, receive, send)

    def state(self) -> WorkerState:
        """Return the current state of the whole worker."""
        return WorkerState(
            phase=self._phase(),
            broker=self.rabbit.state() if self.settings.worker else None,
            relays=self._relay.state() if self.settings.worker else (),
            tables=self._tables.state() if self.settings.worker else None,
        )

    def _phase(self) -> Phase:
        if self._stopping.deadline is not None:
            return "stopping"
        if not self.settings.worker:
            return "http_only"
        return "consuming" if self.rabbit.running else "starting"

    async def run(self, log_level: int = logging.INFO, run_extra_options: dict[str, Any] | None = None) -> None:
        """Serve until a signal arrives. With invalid settings, list all of them and exit with status 2."""
        if self.problems:
            self._print_problems()
            sys.exit(2)
        self.hooks.first()
        options = cast_uvicorn_params(run_extra_options or {})
        config = uvicorn.Config(
            self,
            log_config=None,
            log_level=max(log_level, logging.WARNING),
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=_HTTP_GRACE_S,
            backlog=_LISTEN_BACKLOG,
            **{name: options[name] for name in _UVICORN_OPTIONS if options.get(name) is not None},
        )
        _log.info("serving HTTP", host=config.host, port=config.port)
        await _Server(config, self.handle_signal).serve()

    def handle_signal(self, signal_number: int) -> None:
        """Cancel the consumers at once, before open HTTP requests end; a second signal ends the grace time."""
        name = signal.Signals(signal_number).name
        if self._stopping.request():
            _log.info("stopping: cancelling consumers", signal=name, grace_ms=self.settings.shutdown_grace_ms)
            self._cancelling_consumers = asyncio.get_running_loop().create_task(self.rabbit.stop_intake())
        else:
            _log.warning("stopping at once", signal=name)

    def refuse_to_supervise(self) -> None:
        """Exit `faststream run --workers N` with status 2 if settings are invalid.

        That process restarts each worker that has ended: without this, it would do so forever.
        """
        if self.problems and _is_supervisor(sys.argv, os.environ):
            self._print_problems()
            sys.exit(2)

    def _print_problems(self) -> None:
        lines = "\n".join(f"  {problem}" for problem in self.problems)
        sys.stderr.write(f"otp-stream cannot start. Fix {len(self.problems)} setting(s):\n{lines}\n")

    async def _start(self) -> None:
        if self.problems:  # not started by `faststream run`
            self._print_problems()
            raise RuntimeError("settings: " + "; ".join(self.problems))
        self.hooks.first()  # again: with --workers, uvicorn runs the application without calling `run`
        smtp_connections = self.settings.smtp_pool_size * (1 + len(self.settings.fallbacks))
        limit_connections(connection_limit(smtp_connections))
        self._announce()
        for start in self.hooks.start:
            await start()
        self._background = [asyncio.create_task(forever(run, "background")) for run in self.hooks.background]
        _tune_gc()

    def _announce(self) -> None:
        _log.info("otp-stream starts", version=__version__, **self.settings.shown())
        if not self.settings.worker:
            _log.warning("WORKER=false: serving HTTP only (health, documents, page); set WORKER=true to consume")
        elif self.settings.prefetch_count == 1:
            _log.warning("PREFETCH_COUNT=1: one job at a time, each waits for the one before; 200 is a good value")
        for warning in find_warnings(self.settings):
            _log.warning(warning)
        if self.settings.secret_key is None:
            _log.warning("SECRET_KEY is not set: the key of hashes and MACs is derived from the passwords")

    async def _drain(self) -> None:
        if self._stopping.deadline is None:
            self._stopping.request()
        await self.rabbit.stop_intake()
        state = self.state()
        unacked = sum(lane.unacked for lane in state.broker.lanes) if state.broker else 0
        _log.info("stopping: consumers are cancelled", unacked=unacked)
        # jobs that are not being sent are requeued at once, so that another worker can send them
        self._relay.finish()
        self._tables.finish()
        returned = await self.rabbit.drain(lambda: self._stopping.over)
        _log.info("stopping: jobs are settled", finished=unacked - returned, returned=returned)

    async def _close(self) -> None:
        for drained in self.hooks.drained:
            await drained()
        await cancel_and_wait(*self._background)
        for close in self.hooks.close:
            await close()
        _log.info("stopped")
        self.hooks.last()


def _is_supervisor(arguments: Sequence[str], environ: Mapping[str, str]) -> bool:
    """Whether this process is `faststream run … --workers N`, which imports the application but never runs it."""
    if multiprocessing.parent_process() is not None or Path(arguments[0]).name not in {"faststream", "__main__.py"}:
        return False
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("command", nargs="?")
    parser.add_argument("-w", "--workers", default=environ.get("FASTSTREAM_WORKERS", "1"))
    known, _ = parser.parse_known_args(arguments[1:])
    return known.command == "run" and known.workers.isdecimal() and int(known.workers) > 1


def _tune_gc() -> None:
    """Exclude the objects made at start from GC: scanning them took 5 % of the time, in long pauses."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GC_THRESHOLD, 10, 10)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, on_signal: Callable[[int], None]) -> None:
        super().__init__(config)
        self._loop = asyncio.get_running_loop()
        self._on_signal = on_signal

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the signature of a signal handler
        # Never uvicorn's forced exit: it would skip the shutdown, which requeues jobs.
        self._captured_signals.append(sig)
        self.should_exit = True
        self._loop.call_soon_threadsafe(self._on_signal, sig)
