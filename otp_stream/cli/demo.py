"""The worker on an embedded broker with an embedded inbox: everything in one process, nothing to install."""

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import socket
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import aio_pika
import uvloop
from rich.console import Console
from rich.panel import Panel

from otp_stream.app import build
from otp_stream.embedded.inbox import Inbox
from otp_stream.settings import EMBEDDED_BROKER_PORT, load
from otp_stream.worker import OtpStream

HOST = "127.0.0.1"
_SMTP_PORT = 2525
_SAMPLES_S = 20.0
_PAUSE_S = 0.05
_APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND


@dataclass(frozen=True, slots=True)
class Demo:
    """The wired demo and where its parts listen."""

    app: OtpStream
    http_port: int
    broker_port: int
    inbox: Inbox


def run(*, port: int, samples: bool, log_level: str) -> None:
    """Run until a signal arrives."""
    demo = make(port=port, samples=samples, log_level=log_level)
    uvloop.run(demo.app.run(run_extra_options={"host": HOST, "port": str(demo.http_port)}))


def app() -> OtpStream:
    """Return the application for `faststream run otp_stream.cli.demo:app --factory --reload`."""
    return make(port=8000, samples=True, log_level="debug").app


def make(*, port: int, samples: bool, log_level: str) -> Demo:
    """Wire the demo. Ports that are taken are replaced by free ones."""
    _keep_secret_key()
    broker_port, smtp_port, http_port = (_free(it) for it in (EMBEDDED_BROKER_PORT, _SMTP_PORT, port))
    inbox = Inbox(HOST, smtp_port)
    settings, problems = load(
        worker=True,
        rabbitmq_url=f"memory://{HOST}:{broker_port}",
        sender_email="no-reply@example.com",
        brand_name=load(worker=False)[0].brand_name or "Example",
        smtp_host=HOST,
        smtp_port=smtp_port,
        smtp_tls="none",
        smtp_auth="none",
        smtp_fallback_urls=None,  # an .env may name real servers: the demo uses none of them
        redis_url=None,
        prefetch_count=200,
        log_level=log_level,
        app_env="development",
    )
    app = build(settings, problems)
    demo = Demo(app, http_port, broker_port, inbox)
    app.on_startup(inbox.start)
    app.after_startup(partial(_show, demo, samples))
    app.after_shutdown(inbox.stop)
    for path, route in inbox.routes().items():
        app.mount(path, route)
    return demo


def _keep_secret_key() -> None:
    """Write a `SECRET_KEY` into `.env` where none is set: the commands that are run beside the demo read it there."""
    settings, problems = load(worker=False)
    if settings.secret_key is not None or any("SECRET_KEY" in problem for problem in problems):
        return
    # in a folder that cannot be written to the key is derived from the passwords
    with contextlib.suppress(OSError), os.fdopen(os.open(".env", _APPEND, 0o600), "a", encoding="utf-8") as file:
        with contextlib.suppress(PermissionError):  # another user's
            os.fchmod(file.fileno(), os.fstat(file.fileno()).st_mode & 0o700)
        file.write(f"\nSECRET_KEY={secrets.token_hex(32)}\n")


def _free(port: int) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            probe.bind((HOST, 0))
        return probe.getsockname()[1]


async def _show(demo: Demo, samples: bool) -> None:
    if samples:
        await _publish(demo, _sample_jobs())
        await _received(demo, 2)
    page = f"http://{HOST}:{demo.http_port}"
    # without a URL, the commands try the demo's usual port
    found = demo.broker_port == EMBEDDED_BROKER_PORT and "rabbitmq_url" not in load(worker=False)[0].model_fields_set
    where = "" if found else f"RABBITMQ_URL=memory://{HOST}:{demo.broker_port} "
    Console().print(
        Panel.fit(
            f"[bold]Inbox[/]      {page}/inbox   what people received\n"
            f"[bold]Operations[/] {page}/        are codes going out?\n"
            f"[bold]AsyncAPI[/]   {page}/asyncapi\n"
            f"[bold]Broker[/]     amqp://guest:guest@{HOST}:{demo.broker_port}/   for your own producers\n\n"
            f"Send one more:   {where}{command()} send you@example.com\n"
            "Make it fail:    later@example.com (retried), nobody@example.com (rejected)\n"
            "Stop:            Ctrl-C",
            title="otp-stream is running",
            border_style="green",
        )
    )


def command() -> str:
    """Return what runs the command line of this installation: its name if the shell finds it, else its file."""
    name = "otp-stream"
    program = Path(sys.argv[0]).with_name(name)  # `faststream run` is in the same folder
    found = shutil.which(name)
    if not program.exists() or (found is not None and program.samefile(found)):
        return name
    return os.path.relpath(program) if program.is_relative_to(Path.cwd()) else str(program)


def _sample_jobs() -> list[bytes]:
    def job(email: str, otp: object, **metadata: object) -> bytes:
        made_ms = time.time_ns() // 1_000_000
        job_id = f"sample-{email.partition('@')[0]}"
        return json.dumps(
            {"email": email, "otp": otp, "jobId": job_id, "timestamp": made_ms, "metadata": metadata}
        ).encode()

    return [
        job("ada@example.com", "480213", userName="Ada", expiryMinutes=10),
        job("later@example.com", "730955", userName="Zoë", locale="de", template="welcome"),
        job("nobody@example.com", "118204", template="password_reset"),
        job("malformed@example.com", 123456),
    ]


async def _publish(demo: Demo, bodies: list[bytes]) -> None:
    settings = demo.app.settings
    async with await aio_pika.connect(settings.amqp_url) as connection:
        channel = await connection.channel()
        for body in bodies:
            message = aio_pika.Message(body, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
            await channel.default_exchange.publish(message, settings.rabbitmq_queue_name)


async def _received(demo: Demo, count: int) -> None:
    deadline = time.monotonic() + _SAMPLES_S
    while len(demo.inbox.mails) < count and time.monotonic() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(_PAUSE_S)
