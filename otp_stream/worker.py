"""The process: how it starts, what it says of itself, and how it stops step by step."""

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

from . import __version__
from .asgi import Receive, Scope, Send, refuse
from .broker import OtpBroker
from .core.state import Phase, RelayState, TablesState, WorkerState
from .http_connections import connection_limit, limit_connections
from .settings import Settings
from .tasks import cancelled, forever

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
"""How long open HTTP requests may hold the shutdown up; the jobs have a grace time of their own."""

_BACKLOG = 128
"""Connections that the system accepts ahead of us: all of them may take a descriptor in one turn of the event loop."""

_YOUNG = 10_000
"""Objects more than before at which the collector looks for dead ones: a full window of jobs holds as many."""

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Relay(Protocol):
    """What the process wants of the relay room."""

    def look(self) -> tuple[RelayState, ...]:
        """Return the relays as this worker sees them, in the order in which they are used."""
        ...

    def finish(self) -> None:
        """Give no more turns; mails on the wire go on to their end."""
        ...


@dataclass(slots=True)
class Stopping:
    """When the worker has been asked to stop, and how much patience is left."""

    grace_s: float
    deadline: float | None = None
    hurried: bool = False

    def ask(self) -> bool:
        """Take a signal; the first starts the grace time, any further one ends it. Returns whether it is the first."""
        first = self.deadline is None
        if first:
            self.deadline = time.monotonic() + self.grace_s
        else:
            self.hurried = True
        return first

    @property
    def over(self) -> bool:
        """Whether the grace time has passed."""
        return self.hurried or (self.deadline is not None and time.monotonic() >= self.deadline)


@dataclass(slots=True)
class Hooks:
    """What is done first of all, starts before the broker, runs beside it and closes after it."""

    first: Callable[[], object] = lambda: None
    start: Sequence[Callable[[], Awaitable[object]]] = ()
    beside: Sequence[Callable[[], Awaitable[object]]] = ()
    drained: Sequence[Callable[[], Awaitable[object]]] = ()
    """Done once no job is in hand, while what runs beside the broker still does."""
    close: Sequence[Callable[[], Awaitable[object]]] = ()
    last: Callable[[], object] = lambda: None
    """Done last of all: uvicorn ends the process by the signal that stopped it, without Python's own end."""


class Tables(Protocol):
    """What the process wants of the tables."""

    def finish(self) -> None:
        """Cancel whoever waits for Redis, or for another worker."""
        ...

    def look(self) -> TablesState:
        """Return the tables as this worker sees them."""
        ...


class OtpStream(AsgiFastStream):
    """FastStream's ASGI application as this worker: consumer and HTTP in one process."""

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
        self._hosts = settings.own_hosts
        self._stopping = Stopping(settings.shutdown_grace_ms / 1000)
        self._beside: list[asyncio.Task[None]] = []
        self._early: asyncio.Task[None] | None = None
        super().__init__(
            rabbit,
            logger=None,
            on_startup=[self._start],
            on_shutdown=[self._drain],
            after_shutdown=[self._close],
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer as FastStream does, but for what is not for us."""
        if scope["type"] == "lifespan":
            await super().__call__(scope, receive, send)
            return
        # behind a proxy that serves us below a path (--root-path), uvicorn puts that path before each of ours
        scope = {**scope, "path": scope["path"].removeprefix(scope.get("root_path", ""))}
        if not await refuse(scope, send, dict(self.routes), self._hosts):
            await super().__call__(scope, receive, send)

    def look(self) -> WorkerState:
        """Return the whole worker at this moment."""
        return WorkerState(
            phase=self._phase(),
            broker=self.rabbit.look() if self.settings.worker else None,
            relays=self._relay.look() if self.settings.worker else (),
            tables=self._tables.look() if self.settings.worker else None,
        )

    def _phase(self) -> Phase:
        if self._stopping.deadline is not None:
            return "stopping"
        if not self.settings.worker:
            return "http_only"
        return "consuming" if self.rabbit.running else "starting"

    async def run(self, log_level: int = logging.INFO, run_extra_options: dict[str, Any] | None = None) -> None:
        """Serve until a signal comes. Settings that cannot work end the process with 2, all named in one message."""
        if self.problems:
            self._say_problems()
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
            backlog=_BACKLOG,
            **{name: options[name] for name in _UVICORN_OPTIONS if options.get(name) is not None},
        )
        _log.info("serving HTTP", host=config.host, port=config.port)
        await _Server(config, self.asked_to_stop).serve()

    def asked_to_stop(self, signal_number: int) -> None:
        """Take a signal: stop intake at once, whatever the HTTP side still has to do; a second one hurries."""
        name = signal.Signals(signal_number).name
        if self._stopping.ask():
            _log.info("stopping: intake first", signal=name, grace_ms=self.settings.shutdown_grace_ms)
            self._early = asyncio.get_running_loop().create_task(self.rabbit.stop_intake())
        else:
            _log.warning("stopping at once", signal=name)

    def refuse_to_supervise(self) -> None:
        """End `faststream run --workers N` with 2 where settings cannot work.

        That process starts the workers, and starts each again that has ended: without this, for ever.
        """
        if self.problems and _is_supervisor(sys.argv, os.environ):
            self._say_problems()
            sys.exit(2)

    def _say_problems(self) -> None:
        lines = "\n".join(f"  {problem}" for problem in self.problems)
        sys.stderr.write(f"otp-stream cannot start. Fix {len(self.problems)} setting(s):\n{lines}\n")

    async def _start(self) -> None:
        if self.problems:  # started by something else than `faststream run`
            self._say_problems()
            raise RuntimeError("settings: " + "; ".join(self.problems))
        self.hooks.first()  # once more: with --workers, uvicorn runs the application without `run`
        smtp_connections = self.settings.smtp_pool_size * (1 + len(self.settings.fallbacks))
        limit_connections(connection_limit(smtp_connections))
        self._announce()
        for start in self.hooks.start:
            await start()
        self._beside = [asyncio.create_task(forever(run, "beside")) for run in self.hooks.beside]
        _leave_what_stands()

    def _announce(self) -> None:
        _log.info("otp-stream starts", version=__version__, **self.settings.shown())
        if not self.settings.worker:
            _log.warning("WORKER=false: serving HTTP only (health, documents, page); set WORKER=true to consume")
        elif self.settings.prefetch_count == 1:
            _log.warning("PREFETCH_COUNT=1: one job at a time, each waits for the one before; 200 is a good value")
        for warning in self.settings.warnings():
            _log.warning(warning)
        if self.settings.secret_key is None:
            _log.warning("SECRET_KEY is not set: the key of hashes and MACs is derived from the passwords")

    async def _drain(self) -> None:
        if self._stopping.deadline is None:
            self._stopping.ask()
        await self.rabbit.stop_intake()
        state = self.look()
        held = sum(lane.held for lane in state.broker.lanes) if state.broker else 0
        _log.info("stopping: intake has ended", held=held)
        # what is not on the wire goes back at once: another worker, or the next one, should have it
        self._relay.finish()
        self._tables.finish()
        returned = await self.rabbit.drain(lambda: self._stopping.over)
        _log.info("stopping: jobs are settled", finished=held - returned, returned=returned)

    async def _close(self) -> None:
        for drained in self.hooks.drained:
            await drained()
        await cancelled(*self._beside)
        for close in self.hooks.close:
            await close()
        _log.info("stopped")
        self.hooks.last()


def _is_supervisor(arguments: Sequence[str], environ: Mapping[str, str]) -> bool:
    """Whether this process is `faststream run … --workers N`: it imports the application, and never runs it."""
    if multiprocessing.parent_process() is not None or Path(arguments[0]).name not in {"faststream", "__main__.py"}:
        return False
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("command", nargs="?")
    parser.add_argument("-w", "--workers", default=environ.get("FASTSTREAM_WORKERS", "1"))
    known, _ = parser.parse_known_args(arguments[1:])
    return known.command == "run" and known.workers.isdecimal() and int(known.workers) > 1


def _leave_what_stands() -> None:
    """Spare the collector what was made at the start: to look at it took a twentieth of all time, in long pauses."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, 10, 10)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, on_signal: Callable[[int], None]) -> None:
        super().__init__(config)
        self._loop = asyncio.get_running_loop()
        self._on_signal = on_signal

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - a signal handler's face
        # Never uvicorn's forced exit: it would skip the shutdown, and with it the return of jobs.
        self._captured_signals.append(sig)
        self.should_exit = True
        self._loop.call_soon_threadsafe(self._on_signal, sig)
