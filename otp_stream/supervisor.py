"""The parent process of `faststream run --workers N`, uvicorn's supervisor, and how workers end with it."""

import argparse
import asyncio
import logging
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from weakref import WeakKeyDictionary

import structlog
from uvicorn.config import LOGGING_CONFIG, STARTUP_FAILURE
from uvicorn.server import Server
from uvicorn.supervisors.multiprocess import Multiprocess, Process

_START_LIMIT_S = 60.0
"""How long a worker may take until it answers for the first time. On a busy machine, its imports take many seconds."""
_START_PAUSE_S = 3.0
"""Pause before a worker that failed to start is replaced: to start one takes a second of CPU time."""

_AT_ONCE = signal.SIGUSR1
"""For a worker that is stopping. It cannot count SIGTERMs: systemd sends one to all processes, like this parent."""
_JOIN_S = 0.1

_asked_at: WeakKeyDictionary[Process, float | None] = WeakKeyDictionary()
"""When each worker was asked for the first time, in monotonic seconds; `None` once it has answered."""
_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)
_uvicorn_log = logging.getLogger("uvicorn.error")
"""The logger of uvicorn's supervisor, for lines of the parent process."""


def is_supervisor(arguments: Sequence[str], environ: Mapping[str, str]) -> bool:
    """Return whether this is `faststream run … --workers N`, which imports the application but never runs it."""
    if multiprocessing.parent_process() is not None or Path(arguments[0]).name not in {"faststream", "__main__.py"}:
        return False
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("command", nargs="?")
    parser.add_argument("-w", "--workers", default=environ.get("FASTSTREAM_WORKERS", "1"))
    known, _ = parser.parse_known_args(arguments[1:])
    return known.command == "run" and known.workers.isdecimal() and int(known.workers) > 1


def adapt_supervisor(options: Mapping[str, object], finish_logs: Callable[[], object]) -> None:
    """Set `options` of uvicorn for each worker, and change what its supervisor does on signals and at a failed start.

    `finish_logs` writes the last lines of the parent process.
    """
    LOGGING_CONFIG["loggers"] = {}  # the lines of the parent process go where all others do
    # not by attributes, because pyright expects uvicorn's methods
    setattr(Multiprocess, "handle_hup", _pass_on_hangup)  # noqa: B010
    setattr(Multiprocess, "keep_subprocess_alive", _keep_alive)  # noqa: B010
    setattr(Multiprocess, "handle_term", _stop)  # noqa: B010
    setattr(Multiprocess, "join_all", _join_all)  # noqa: B010
    setattr(Multiprocess, "run", _run(Multiprocess.run, options, finish_logs))  # noqa: B010


def stop_with_supervisor() -> None:
    """Stop this worker, as by SIGTERM, when its parent process is killed: another one could not bind its port."""
    if (parent := multiprocessing.parent_process()) is None:
        return
    loop, sentinel = asyncio.get_running_loop(), parent.sentinel

    def stop() -> None:
        loop.remove_reader(sentinel)
        _log.warning("the parent process has ended: this worker stops")
        signal.raise_signal(signal.SIGTERM)

    loop.add_reader(sentinel, stop)


def stop_at_once_with_supervisor(stop: Callable[[], object]) -> None:
    """Call `stop` in the event loop when the parent process passes on a second SIGTERM."""
    if multiprocessing.parent_process() is None:
        return
    loop = asyncio.get_running_loop()

    def handle(*_: object) -> None:
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(stop)

    with suppress(ValueError):  # an application that runs in a thread leaves signals to its process
        signal.signal(_AT_ONCE, handle)


def never_force_exit() -> None:
    """Have uvicorn take SIGINT for SIGTERM: at a second SIGINT, it would skip the shutdown, which requeues jobs."""
    handle = signal.getsignal(signal.SIGINT)
    if callable(handle) and type(getattr(handle, "__self__", None)) is Server:
        with suppress(ValueError):  # an application that runs in a thread leaves signals to its process
            signal.signal(signal.SIGINT, lambda _, frame: handle(signal.SIGTERM, frame))


def _pass_on_hangup(supervisor: Multiprocess) -> None:
    """Have each worker read the secret files; one that is starting reads them anyway.

    uvicorn would replace the workers, and kill a new one that is not ready within five seconds.
    """
    for process in supervisor.processes:
        if process.pid is not None and process.is_ready(timeout=1):
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGHUP)


def _stop(supervisor: Multiprocess) -> None:
    """Stop all workers. A second signal that is read together with the first is kept for `_join_all`."""
    if supervisor.should_exit.is_set():
        supervisor.signal_queue.append(signal.SIGTERM)
    else:
        _uvicorn_log.info("Received SIGTERM, exiting.")
        supervisor.should_exit.set()


def _join_all(supervisor: Multiprocess) -> None:
    """Wait until all workers have ended, and pass on a further SIGTERM, which ends their grace time."""
    while running := [it.process for it in supervisor.processes if it.process.is_alive()]:
        if signal.SIGTERM in supervisor.signal_queue:
            supervisor.signal_queue.clear()
            _uvicorn_log.warning("Received another SIGTERM: the workers stop at once.")
            for process in running:
                if process.pid is not None:
                    with suppress(ProcessLookupError):
                        os.kill(process.pid, _AT_ONCE)
        running[0].join(_JOIN_S)
    for it in supervisor.processes:
        it.join()


def _keep_alive(supervisor: Multiprocess) -> None:
    """Replace the workers that have ended, or do not answer.

    One that fails to start does not stop the others, as it does with uvicorn: they still use the earlier content of a
    file that is invalid now. If no worker runs, the command ends.
    """
    for index, process in enumerate(supervisor.processes):
        if _is_alive(process, supervisor.config.timeout_worker_healthcheck):
            continue
        process.kill()
        process.join()
        if process.exitcode == STARTUP_FAILURE:
            if not any(it.is_ready(timeout=1) for it in supervisor.processes if it is not process):
                _uvicorn_log.error("A worker failed to start, and no other one runs. Stopping.")
                supervisor.should_exit.set()
                return
            _uvicorn_log.error("A worker failed to start. The others continue. Another one starts in a moment.")
            if _signalled_within(_START_PAUSE_S, supervisor):
                return
        else:
            _uvicorn_log.warning(
                "Worker [%s] has ended with exit code %s. Starting another one.", process.pid, process.exitcode
            )
        replacement = supervisor.processes[index] = Process(supervisor.config, supervisor.sockets)
        replacement.start()


def _is_alive(process: Process, timeout_s: float) -> bool:
    """Return whether a worker answers in time, or is still starting.

    uvicorn kills one that does not answer within five seconds, even while it starts: again and again on a busy machine.
    """
    if process not in _asked_at:
        _asked_at[process] = time.monotonic()
        process.parent_conn.send(b"ping")
    if (asked_at := _asked_at[process]) is None:
        return process.is_alive(timeout=timeout_s)
    if process.parent_conn.poll():
        process.parent_conn.recv()
        _asked_at[process] = None
        return True
    return process.process.is_alive() and time.monotonic() < asked_at + _START_LIMIT_S


def _signalled_within(pause_s: float, supervisor: Multiprocess) -> bool:
    """Wait for a signal, which must not wait for the pause. Returns whether there was one."""
    ends = time.monotonic() + pause_s
    while time.monotonic() < ends and not supervisor.signal_queue:
        time.sleep(0.1)
    return bool(supervisor.signal_queue)


def _run(
    run: Callable[[Multiprocess], None], options: Mapping[str, object], finish_logs: Callable[[], object]
) -> Callable[[Multiprocess], None]:
    def run_and_report(supervisor: Multiprocess) -> None:
        """Run until the end. If a worker failed to start, exit with its status, so that it is restarted."""
        for name, value in options.items():  # FastStream passes none to the workers
            setattr(supervisor.config, name, value)
        supervisor.config.log_level = logging.WARNING
        try:
            run(supervisor)
        finally:
            finish_logs()
        if any(it.exitcode == STARTUP_FAILURE for it in supervisor.processes):
            sys.exit(STARTUP_FAILURE)

    return run_and_report
