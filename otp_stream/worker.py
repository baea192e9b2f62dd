"""The worker process: start, signals and graceful shutdown."""

import asyncio
import gc
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack, suppress
from types import FrameType
from typing import Any

import structlog
import uvicorn
from faststream.asgi import AsgiFastStream
from faststream.asgi.app import cast_uvicorn_params
from starlette.types import ASGIApp, Receive, Scope, Send

from . import __version__
from .asgi import NOT_FOUND, SecureApp
from .http_connections import connection_limit, limit_connections
from .http_input import limit_input
from .parts import Parts
from .settings import find_warnings, tenant_warnings
from .supervisor import (
    adapt_supervisor,
    is_supervisor,
    never_force_exit,
    stop_at_once_with_supervisor,
    stop_with_supervisor,
)
from .telemetry import close_log_export, configure_logs, flush_logs, resource_attributes

_UVICORN_OPTIONS = (
    "host",
    "port",
    "uds",
    "fd",
    "root_path",
    "proxy_headers",
    "forwarded_allow_ips",
)
_NO_TLS = (
    "--ssl-…: the worker serves plain HTTP, because connections that never begin TLS cannot be limited: remove these "
    "options, and put a proxy with TLS in front"
)
_KNOWN_OPTIONS = {
    *_UVICORN_OPTIONS, "app_dir", "extension", "ext", "factory", "log_config", "log_level", "loop", "reload",
    "reload_ext", "reload_extension", "workers",
}  # fmt: skip
"""Those that we pass to uvicorn, and FastStream's own."""
_HTTP_GRACE_S = 2
"""How long open HTTP requests may delay the shutdown. SHUTDOWN_GRACE_MS applies to jobs only."""

_LISTEN_BACKLOG = 128
"""Size of the kernel's accept queue. One iteration of the event loop may accept all of it, one descriptor each."""

_SERVER_OPTIONS: dict[str, Any] = {
    "log_config": None,
    "access_log": False,
    "server_header": False,
    "timeout_graceful_shutdown": _HTTP_GRACE_S,
    "backlog": _LISTEN_BACKLOG,
}
"""Options of uvicorn for a worker, also for each of several."""

_GC_THRESHOLD = 10_000
"""Generation-0 GC threshold; the jobs of a full prefetch allocate about this many objects."""

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class OtpStream(AsgiFastStream):
    """FastStream's ASGI application: consumer and HTTP in one process."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.settings = parts.settings
        self.problems = parts.problems
        self._http = SecureApp(super().__call__, parts.settings.own_hosts)
        self._below: dict[str, ASGIApp] = {}
        self._stack = AsyncExitStack()
        """Stops what `_start` has started."""
        self._cancelling_consumers: asyncio.Task[None] | None = None
        super().__init__(
            parts.broker,
            logger=None,
            on_startup=[self._start],
            on_shutdown=[self._drain],
            after_shutdown=[self._close],
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Respond as FastStream does, with security headers, and refuse requests for other hosts."""
        await (super().__call__ if scope["type"] == "lifespan" else self._http)(scope, receive, send)

    async def not_found(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Respond to a path below a mounted prefix. Refuse any other path, and a WebSocket."""
        below = scope["type"] == "http" and next((it for it in self._below if scope["path"].startswith(it)), None)
        await (self._below[below] if below else NOT_FOUND)(scope, receive, send)

    def mount_below(self, prefix: str, app: ASGIApp) -> None:
        """Mount an ASGI application for all paths with a prefix, which `mount` does for one path."""
        self._below[prefix] = app

    async def run(self, log_level: int = logging.INFO, run_extra_options: dict[str, Any] | None = None) -> None:
        """Serve until a signal arrives. With invalid settings, list all of them and exit with status 2."""
        self._exit_if_invalid(run_extra_options or {})
        self._configure_logs()
        self._handle_hangup()
        options = cast_uvicorn_params(run_extra_options or {})
        config = uvicorn.Config(
            self,
            log_level=max(log_level, logging.WARNING),
            **_SERVER_OPTIONS,
            **{name: options[name] for name in _UVICORN_OPTIONS if options.get(name) is not None},
        )
        _log.info("serving HTTP", host=config.host, port=config.port)
        await _Server(config, self.handle_signal).serve()

    def handle_signal(self, signal_number: int) -> None:
        """Cancel the consumers at once, before open HTTP requests end; a second signal ends the grace time."""
        name = signal.Signals(signal_number).name
        if self.parts.stopping.request():
            _log.info("stopping: cancelling consumers", signal=name, grace_ms=self.settings.shutdown_grace_ms)
            self._cancelling_consumers = asyncio.get_running_loop().create_task(self.parts.broker.stop_consumers())
        else:
            _log.warning("stopping at once", signal=name)

    def _stop_at_once(self) -> None:
        stopping = self.parts.stopping
        stopping.request()
        stopping.at_once = True
        _log.warning("stopping at once", signal="SIGTERM")

    def _handle_hangup(self) -> None:
        """On SIGHUP, which would otherwise end the process, read the files again at once."""
        loop = asyncio.get_running_loop()

        def handle(*_: object) -> None:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._read_files)

        with suppress(ValueError):  # an application that runs in a thread leaves signals to its process
            # not by the loop, which would remove the handler before the process ends
            signal.signal(signal.SIGHUP, handle)

    def _read_files(self) -> None:
        files = [f"{name.upper()}_FILE" for name in self.parts.secrets.files]
        files += ["TENANTS_FILE"] if self.parts.tenants.watched else []
        files += ["HTTP_TOKENS_FILE"] if self.parts.tokens.watched else []
        files += ["TEMPLATES_DIR"] if self.parts.settings.templates_dir is not None else []
        _log.info("SIGHUP: reading files", settings=files)
        self.parts.read_files()

    def prepare_supervisor(self) -> None:
        """Prepare `faststream run --workers N`, if this process is it: exit with status 2 if the settings are invalid.

        That process restarts every worker that exits, so it would do so forever.
        """
        if not is_supervisor(sys.argv, os.environ):
            return
        given = [it[2:].partition("=")[0].replace("-", "_") for it in sys.argv if it.startswith("--")]
        # alone, the worker ignores them; here uvicorn would use them: some lift limits on requests and connections
        unknown = sorted(it for it in given if it not in _KNOWN_OPTIONS and not it.startswith("ssl"))
        self.problems = [*self.problems, *map(_not_used, unknown)]
        self._exit_if_invalid(given)
        self._configure_logs()
        adapt_supervisor(_SERVER_OPTIONS, _finish_logs)

    def _exit_if_invalid(self, options: Iterable[str]) -> None:
        if any(it.startswith("ssl") for it in options):
            self.problems = [*self.problems, _NO_TLS]
        if self.problems:
            self._print_problems()
            sys.exit(2)

    def _print_problems(self) -> None:
        lines = "\n".join(f"  {problem}" for problem in self.problems)
        sys.stderr.write(f"otp-stream cannot start. Fix {len(self.problems)} setting(s):\n{lines}\n")

    async def _start(self) -> None:
        if self.problems:  # not started by `faststream run`
            self._print_problems()
            raise RuntimeError("settings: " + "; ".join(self.problems))
        # again: with --workers, uvicorn runs the application without calling `run`
        self._configure_logs()
        self._handle_hangup()
        never_force_exit()
        stop_with_supervisor()
        stop_at_once_with_supervisor(self._stop_at_once)
        smtp_connections = self.settings.smtp_pool_size * (1 + len(self.settings.fallbacks))
        limit_connections(connection_limit(smtp_connections))
        limit_input()
        self._announce()
        async with AsyncExitStack() as stack:
            # not by `atexit`: uvicorn raises the stop signal again at the end, which kills the process
            stack.callback(flush_logs)
            stack.callback(_log.info, "stopped")
            await self.parts.start(stack)
            self._stack = stack.pop_all()
        _tune_gc()
        _forbid_core_dumps()

    def _configure_logs(self) -> None:
        configure_logs(
            level=self.settings.effective_log_level,
            format=self.settings.effective_log_format,
            resource=resource_attributes(self.settings.app_env),
        )

    def _announce(self) -> None:
        _log.info("otp-stream starts", version=__version__, **self.settings.shown())
        if not self.settings.worker:
            _log.warning("WORKER=false: serving HTTP only (health, documents, page); set WORKER=true to consume")
            if self.parts.tokens.accepts_jobs(self.settings):
                _log.warning("the HTTP intake refuses all jobs, because it needs the worker's connection to RabbitMQ")
        elif self.settings.prefetch_count == 1:
            _log.warning("PREFETCH_COUNT=1: one job at a time, each waits for the one before; 200 is a good value")
        for warning in (*find_warnings(self.settings), *tenant_warnings(self.settings, self.parts.tenants.current)):
            _log.warning(warning)
        if self.settings.secret_key is None:
            _log.warning("SECRET_KEY is not set: the key of hashes and MACs is derived from the passwords")

    async def _drain(self) -> None:
        parts = self.parts
        if parts.stopping.deadline is None:
            parts.stopping.request()
        await parts.broker.stop_consumers()
        unacked = parts.unacked
        _log.info("stopping: consumers are cancelled", unacked=unacked)
        # jobs that are not being sent are requeued at once, so that another worker can send them
        parts.finish()
        returned = await parts.broker.drain(lambda: parts.stopping.over)
        _log.info("stopping: jobs are settled", finished=unacked - returned, returned=returned)

    async def _close(self) -> None:
        await self._stack.aclose()


def _not_used(option: str) -> str:
    return f"--{option.replace('_', '-')}: is not an option of a worker; remove it"


def _finish_logs() -> None:
    close_log_export()
    flush_logs()


def _tune_gc() -> None:
    """Exclude the objects of the start from GC: scanning them took 5 % of the CPU time, in long pauses."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GC_THRESHOLD, 10, 10)


def _forbid_core_dumps() -> None:
    """Write no memory to disk if this process crashes: it contains codes, keys and passwords.

    With a limit of one byte, Linux writes no file and starts no program such as systemd-coredump, which it does with 0.
    """
    with suppress(ValueError, OSError):  # an environment that sets the hard limit to 0 permits no file either
        resource.setrlimit(resource.RLIMIT_CORE, (1, 1))


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
