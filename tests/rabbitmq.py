"""A private RabbitMQ node that a test may stop and start, and a plain client for any node."""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage
from aio_pika.exceptions import ChannelClosed

SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
"""The program itself: the wrapper on the path changes user and folder."""
_START_S = 60
T = TypeVar("T")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


async def until(ask: Callable[[], Awaitable[T]], what: str, timeout: float = 20) -> T:  # noqa: ASYNC109
    """Ask until the answer is true, with a deadline; returns the answer."""
    ends = time.monotonic() + timeout
    while not (answer := await ask()):
        assert time.monotonic() < ends, f"no {what} within {timeout} s"
        await asyncio.sleep(0.02)
    return answer


@dataclass
class Node:
    """One RabbitMQ node with its files in `folder`."""

    folder: Path
    port: int = field(default_factory=free_port)
    dist_port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None
    tls: tuple[Path, Path, Path] | None = None
    """Authority, certificate and key for `tls_port`."""
    tls_port: int = field(default_factory=free_port)

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}/"

    def start(self) -> None:
        """Start it and wait until it speaks AMQP."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "rabbitmq.conf").write_text(
            f"listeners.tcp.1 = 127.0.0.1:{self.port}\nloopback_users = none\nlog.console = false\n"
            "disk_free_limit.absolute = 50MB\n" + self._tls_lines()
        )
        (self.folder / "plugins").write_text("[].\n")
        here = str(self.folder)
        env = {
            "PATH": os.environ["PATH"],
            "HOME": here,
            "LANG": "C.UTF-8",
            "RABBITMQ_NODENAME": f"n{self.port}@localhost",
            "RABBITMQ_DIST_PORT": str(self.dist_port),
            "RABBITMQ_CONFIG_FILE": f"{here}/rabbitmq.conf",
            "RABBITMQ_MNESIA_BASE": f"{here}/mnesia",
            "RABBITMQ_LOG_BASE": f"{here}/log",
            "RABBITMQ_PID_FILE": f"{here}/pid",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{here}/plugins",
        }
        with (self.folder / "out").open("ab") as out:
            self.process = subprocess.Popen([SERVER], env=env, stdout=out, stderr=out, cwd=here, start_new_session=True)
        ends = time.monotonic() + _START_S
        while not speaks_amqp(self.port):
            assert self.process.poll() is None, (self.folder / "out").read_text()
            assert time.monotonic() < ends, f"no RabbitMQ within {_START_S} s: {(self.folder / 'out').read_text()}"
            time.sleep(0.1)

    def _tls_lines(self) -> str:
        if self.tls is None:
            return ""
        authority, certificate, key = self.tls
        return (
            f"listeners.ssl.1 = 127.0.0.1:{self.tls_port}\nssl_options.cacertfile = {authority}\n"
            f"ssl_options.certfile = {certificate}\nssl_options.keyfile = {key}\n"
            "ssl_options.verify = verify_none\nssl_options.fail_if_no_peer_cert = false\n"
        )

    def control(self, *arguments: str) -> None:
        """Steer it with rabbitmqctl."""
        env = {"PATH": os.environ["PATH"], "HOME": str(self.folder), "LANG": "C.UTF-8"}
        command = [SERVER.parent / "rabbitmqctl", "-n", f"n{self.port}@localhost", *arguments]
        subprocess.run(command, env=env, check=True, capture_output=True, cwd=self.folder)

    def stop(self) -> None:
        """Kill it, as a machine that loses its power would."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def remove(self) -> None:
        """Kill it and delete its files."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


def speaks_amqp(port: int, host: str = "127.0.0.1") -> bool:
    """Tell whether an AMQP 0-9-1 server answers there."""
    try:
        with socket.create_connection((host, port), timeout=2) as probe:
            probe.settimeout(5)
            probe.sendall(b"AMQP\x00\x00\x09\x01")
            return probe.recv(1) == b"\x01"  # a method frame: Connection.Start
    except OSError:
        return False


@dataclass
class Rabbit:
    """A producer and onlooker, as there are many."""

    connection: aio_pika.abc.AbstractConnection
    queue: str
    prefix: str
    channel: AbstractChannel
    ladders: set[tuple[int, int, int]] = field(default_factory=lambda: {(1000, 30000, 3)})
    """Base and longest delay, milliseconds, and retries of every worker that made its wait queues here."""

    async def declare(self, name: str | None = None, **arguments: Any) -> None:
        """Declare the jobs queue as producers do: plain and durable (or with arguments, to be odd)."""
        await self.channel.declare_queue(name or self.queue, durable=True, arguments=arguments or None)

    async def publish(self, *bodies: bytes, to: str | None = None, **properties: Any) -> None:
        """Publish through the default exchange, persistent, with no other property unless given."""
        for body in bodies:
            message = aio_pika.Message(body, delivery_mode=2, **properties)
            await self.channel.default_exchange.publish(message, to or self.queue)

    async def depth(self, name: str | None = None) -> int | None:
        """Return how many messages are ready; `None` where there is no such queue."""
        channel = await self.connection.channel()
        try:
            queue = await channel.declare_queue(name or self.queue, passive=True)
        except ChannelClosed:
            return None
        finally:
            await channel.close()
        return queue.declaration_result.message_count

    async def dead(self, count: int = 1, timeout: float = 20) -> list[AbstractIncomingMessage]:  # noqa: ASYNC109
        """Wait for so many dead letters and take them."""
        return await self.take(f"{self.prefix}.dead", count, timeout)

    async def take(self, name: str, count: int = 1, timeout: float = 20) -> list[AbstractIncomingMessage]:  # noqa: ASYNC109
        """Wait for so many messages in a queue and take them."""
        queue = await self.channel.get_queue(name, ensure=False)
        taken: list[AbstractIncomingMessage] = []

        async def more() -> bool:
            while message := await queue.get(no_ack=True, fail=False):
                taken.append(message)
            return len(taken) >= count

        await until(more, f"{count} messages in {name}, only {len(taken)}", timeout)
        return taken

    async def remove(self) -> None:
        """Delete every queue and exchange of this test."""
        for name in self._names():
            await self.channel.queue_delete(name)
        for name in ("retry", "events"):
            await self.channel.exchange_delete(f"{self.prefix}.{name}")

    def _names(self) -> list[str]:
        from otp_stream.core.backoff import Backoff  # noqa: PLC0415 - ground.py starts without the package

        ours = [f"{self.prefix}.{name}" for name in ("dead", "retry.due")]
        # each quorum queue takes two file descriptors of the broker: a hundred tests that leave theirs stop it
        rungs = {f"{self.prefix}.retry.{ms}" for ladder in self.ladders for ms in Backoff(*ladder).rungs_ms}
        return [self.queue, f"{self.queue}.high", *ours, *rungs]


@asynccontextmanager
async def rabbit(url: str, queue: str, prefix: str) -> AsyncIterator[Rabbit]:
    """Connect; what the test left behind is deleted at the end."""
    connection = await aio_pika.connect(url)
    try:
        client = Rabbit(connection, queue, prefix, await connection.channel())
        yield client
        if not connection.is_closed:
            client.channel = await connection.channel()
            await client.remove()
    finally:
        await connection.close()
