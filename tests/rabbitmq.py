"""A private RabbitMQ node that a test may stop and start, and a simple client for any node."""

import asyncio
import contextlib
import itertools
import json
import os
import random
import re
import shutil
import signal
import socket
import struct
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from fcntl import LOCK_EX, LOCK_NB, flock
from functools import cache, partial
from pathlib import Path
from tempfile import gettempdir
from typing import Any, TypeVar

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage
from aio_pika.exceptions import AMQPError, ChannelClosed
from aiormq.abc import ChannelFrame
from pamqp import commands, frame
from pamqp.body import ContentBody
from patience import deadline, limit

INSTALLED = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
SERVER = Path(os.environ.get("OTP_TEST_RABBITMQ_SERVER", INSTALLED))
"""The program itself, because the wrapper in PATH changes user and folder. rabbitmqctl is in the same folder."""
_CONNECT_S = 20
_START_S = 120
_AWAY_S = 2
"""Time limit for a queue, because RabbitMQ 4 takes over a minute to answer for a classic queue whose node is down."""
_COOKIE = "OTPSTREAMTESTS"
_WATERMARK = "vm_memory_monitor:set_vm_memory_high_watermark"
_EXPRESSIONS = {
    ("add_user", 2): "rabbit_auth_backend_internal:add_user({0}, {1}, {by})",
    ("add_vhost", 1): "rabbit_vhost:add({0}, {by})",
    ("await_online_nodes", 1): "rabbit_nodes:await_running_count(binary_to_integer({0}), 300000)",
    ("change_password", 2): "rabbit_auth_backend_internal:change_password({0}, {1}, {by})",
    ("clear_password", 1): "rabbit_auth_backend_internal:clear_password({0}, {by})",
    ("clear_policy", 1): "rabbit_policy:delete({vhost}, {0}, {by})",
    ("close_all_connections", 1): "rabbit_networking:close_connections(rabbit_networking:connections(), {0})",
    ("close_all_user_connections", 2): "rabbit_networking:close_all_user_connections({0}, {1})",
    ("delete_user", 1): "rabbit_auth_backend_internal:delete_user({0}, {by})",
    ("set_disk_free_limit", 1): "rabbit_disk_monitor:set_disk_free_limit(binary_to_list({0}))",
    ("set_permissions", 4): "rabbit_auth_backend_internal:set_permissions({0}, {vhost}, {1}, {2}, {3}, {by})",
    ("set_vm_memory_high_watermark", 1): _WATERMARK + "(binary_to_float({0}))",
    ("set_vm_memory_high_watermark", 2): _WATERMARK + "({{absolute, binary_to_list({1})}})",
    ("set_policy", 3): 'rabbit_policy:parse_set({vhost}, {0}, {1}, {2}, 0, <<"all">>, {by})',
}
"""What a command of rabbitmqctl with this number of arguments calls in the node."""
T = TypeVar("T")
_BLOCKS = [range(first, first + 1_000) for first in range(10_000, 32_000, 1_000)]
_MANAGEMENT_PORTS = {15671, 15672}
"""The default ports of the management API, which some tests expect not to respond."""


@cache
def _own_ports() -> Iterator[int]:
    """Return the ports of this process, for ever: those of a block that no other test process has.

    Each process locks its block until it ends, so that another run of the tests on this machine does not get the port
    of a server that a test stops and starts again. If all blocks are locked, some processes share one.
    """
    number = os.getpid() % len(_BLOCKS)
    for it in range(len(_BLOCKS)):
        with contextlib.suppress(OSError):  # another user's file cannot be opened
            # never closed, which would end the lock
            lock = os.open(f"{gettempdir()}/otp-stream-ports-{it}.lock", os.O_CREAT | os.O_RDWR)
            try:
                flock(lock, LOCK_EX | LOCK_NB)
            except OSError:
                os.close(lock)
            else:
                number = it
                break
    own = sorted({*_BLOCKS[number]} - _MANAGEMENT_PORTS)
    return itertools.cycle(random.sample(own, len(own)))


def free_port() -> int:
    """Return a port that is not in use and that no outgoing connection gets.

    Linux uses ports from 32768 on for outgoing connections. Each test process has its own ports below.
    """
    for port in _own_ports():
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("unreachable: the ports are cycled")


def use_one_core(number: int) -> None:
    """Keep this process, and those that it starts from now on, on one core.

    Erlang's threads wake each other up all the time. On two cores of a virtual machine, a node takes two to four times
    as much CPU as on one core, and connections between processes also cost more.
    """
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[number % len(cores)]})


async def until(condition: Callable[[], Awaitable[T]], what: str, timeout: float = 20) -> T:  # noqa: ASYNC109
    """Poll until the condition returns a true value, with a deadline. Returns the value.

    The pauses grow from 10 ms to 100 ms: a worker that answers fifty times a second has little time for its jobs.
    """
    ends = deadline(timeout)
    pause_s = 0.01
    while not (value := await condition()):
        assert time.monotonic() < ends, f"no {what} within {limit(timeout)} s"
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 1.5, 0.1)
    return value


@dataclass
class Node:
    """A RabbitMQ node with its files in `folder`."""

    folder: Path
    port: int = field(default_factory=free_port)
    dist_port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None
    tls: tuple[Path, Path, Path] | None = None
    """Authority, certificate and key for `tls_port`."""
    wants_certificates: bool = False
    """Whether `tls_port` requires a certificate of its clients."""
    tls_port: int = field(default_factory=free_port)
    settings: tuple[str, ...] = ()
    """More lines of its configuration."""
    plugins: str = ""
    server: Path = SERVER

    @property
    def name(self) -> str:
        return f"n{self.port}@localhost"

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}/"

    def start(self) -> None:
        """Start it and wait until it responds to AMQP."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "rabbitmq.conf").write_text(
            f"listeners.tcp.1 = 127.0.0.1:{self.port}\nloopback_users = none\nlog.console = false\n"
            # the default of 10 s is too short for the first connections on a busy machine
            "handshake_timeout = 60000\n"
            "disk_free_limit.absolute = 50MB\n" + "".join(f"{line}\n" for line in self.settings) + self._tls_lines()
        )
        (self.folder / "plugins").write_text(f"[{self.plugins}].\n")
        here = str(self.folder)
        env = {
            "PATH": os.environ["PATH"],
            "HOME": here,
            "LANG": "C.UTF-8",
            "RABBITMQ_NODENAME": self.name,
            # by default, an idle scheduler busy-waits, which takes CPU time from the tests
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel net_ticktime 4 +sbwt none +sbwtdcpu none +sbwtdio none",
            "RABBITMQ_DIST_PORT": str(self.dist_port),
            "RABBITMQ_CONFIG_FILE": f"{here}/rabbitmq.conf",
            "RABBITMQ_MNESIA_BASE": f"{here}/mnesia",
            "RABBITMQ_LOG_BASE": f"{here}/log",
            "RABBITMQ_PID_FILE": f"{here}/pid",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{here}/plugins",
        }
        with (self.folder / "out").open("ab") as out:
            self.process = subprocess.Popen(
                [self.server], env=env, stdout=out, stderr=out, cwd=here, start_new_session=True
            )
        ends = deadline(_START_S)
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
            f"ssl_options.verify = {'verify_peer' if self.wants_certificates else 'verify_none'}\n"
            f"ssl_options.fail_if_no_peer_cert = {str(self.wants_certificates).lower()}\n"
        )

    def control(self, command: str, *arguments: str, program: str = "rabbitmqctl") -> str:
        """Do what one of RabbitMQ's programs does at this node. Returns its output.

        rabbitmqctl takes a second of CPU to start, `erl_call` of Erlang 10 ms.
        """
        if shutil.which("erl_call"):
            if command == "eval":
                return self._evaluate(arguments[0].rstrip("."))
            vhost, values = (arguments[1], arguments[2:]) if arguments[:1] == ("-p",) else ("/", arguments)
            if expression := _EXPRESSIONS.get((command, len(values))):
                texts = [_binary(it) for it in values]
                return self._evaluate("ok = " + expression.format(*texts, vhost=_binary(vhost), by=_binary("tests")))
        return self.run(program, command, *arguments)

    def run(self, program: str, *arguments: str) -> str:
        """Run one of RabbitMQ's programs for this node. Returns its output."""
        env = {"PATH": os.environ["PATH"], "HOME": str(self.folder), "LANG": "C.UTF-8"}
        command = [self.server.parent / program, "-q", "-n", self.name, *arguments]
        return subprocess.run(command, env=env, check=True, capture_output=True, cwd=self.folder, text=True).stdout

    def _evaluate(self, expression: str) -> str:
        env = {"PATH": os.environ["PATH"], "HOME": str(self.folder)}
        command = ["erl_call", "-r", "-sname", self.name, "-e"]  # a new name, because the last may still be connected
        call = partial(subprocess.run, command, env=env, check=False, capture_output=True, text=True)
        ends = deadline(_CONNECT_S)
        while True:
            done = call(input=f"{expression}.\n")
            # the new name is random, so another call may have it, and a busy node may be slow to connect
            if not re.search(r"can't create C node|\bconnect\b", done.stderr) or time.monotonic() > ends:
                break
            time.sleep(0.1)
        assert done.stdout.startswith("{ok, "), f"{expression}: {done.stdout} {done.stderr}"
        return done.stdout.removeprefix("{ok, ").removesuffix("}")

    @property
    def version(self) -> tuple[int, int]:
        """The first two numbers of its version."""
        major, minor, *_ = self.control("eval", "rabbit_misc:version().").strip('"\n').split(".")
        return int(major), int(minor)

    def stop(self) -> None:
        """Kill it, as a power failure does."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def remove(self) -> None:
        """Kill it and delete its files."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


def _binary(text: str) -> str:
    """Return a text as Erlang writes it."""
    return f"<<{json.dumps(text)}>>"


def with_management(port: int, host: str = "127.0.0.1") -> tuple[str, ...]:
    """Return the settings for the management API on this port, with new statistics every second."""
    return (
        f"management.tcp.port = {port}",
        f"management.tcp.ip = {host}",
        "collect_statistics_interval = 1000",
        *(f"management.sample_retention_policies.{it} = 1" for it in ("global.minute", "basic.minute", "detailed.10")),
    )


class Cluster:
    """Three nodes on this machine, of which a minority pauses."""

    def __init__(self, folder: Path) -> None:
        self.nodes = [Node(folder / str(at)) for at in range(3)]
        peers = [f"cluster_formation.classic_config.nodes.{at} = {it.name}" for at, it in enumerate(self.nodes, 1)]
        for node in self.nodes:
            node.settings = ("cluster_partition_handling = pause_minority", *peers)
        self.api_port = free_port()
        """The management API of the first node."""
        self.nodes[0].settings += with_management(self.api_port)
        self.nodes[0].plugins = "rabbitmq_management"

    def start(self) -> None:
        """Start all nodes at the same time, because a node waits for one of its peers."""
        for node in self.nodes:
            node.folder.mkdir(parents=True)
            cookie = node.folder / ".erlang.cookie"
            cookie.write_text(_COOKIE)
            cookie.chmod(0o400)
        with ThreadPoolExecutor() as pool:
            list(pool.map(Node.start, self.nodes))
        if self.nodes[0].version >= (4, 3):
            # as docs/rabbitmq.md recommends: otherwise jobs in flight at a dead node are redelivered after a minute
            timeout = '{"consumer-disconnected-timeout": 1000}'
            self.nodes[0].control("set_policy", "prompt", ".*", timeout, "--apply-to", "quorum_queues")

    def cut_off(self, node: Node) -> None:
        """Separate a running node from the others, as a network partition does."""
        others = [it.name for it in self.nodes if it is not node]
        apart = "".join(f"erlang:set_cookie('{it}', apart), erlang:disconnect_node('{it}'), " for it in others)
        node.control("eval", f"{apart} ok.")

    def join_again(self, node: Node) -> None:
        """Connect a node to the others again."""
        others = [it.name for it in self.nodes if it is not node]
        node.control("eval", "".join(f"erlang:set_cookie('{it}', '{_COOKIE}'), " for it in others) + "ok.")

    def move_leaders(self) -> None:
        """Move the leaders of all queues, as a rolling restart does, one node after the other."""
        for node in self.nodes:
            node.control("drain", program="rabbitmq-upgrade")
            node.control("revive", program="rabbitmq-upgrade")

    def remove(self) -> None:
        """Kill the nodes and delete their files."""
        for node in self.nodes:
            node.remove()


def speaks_amqp(port: int, host: str = "127.0.0.1") -> bool:
    """Return whether an AMQP 0-9-1 server listens on a port."""
    try:
        with socket.create_connection((host, port), timeout=2) as probe:
            probe.settimeout(5)
            probe.sendall(b"AMQP\x00\x00\x09\x01")
            return probe.recv(1) == b"\x01"  # a method frame: Connection.Start
    except OSError:
        return False


@dataclass
class Rabbit:
    """A client that publishes jobs and inspects queues."""

    url: str
    connection: aio_pika.abc.AbstractConnection
    queue: str
    prefix: str
    channel: AbstractChannel
    backoffs: set[tuple[int, int, int]] = field(default_factory=set[tuple[int, int, int]])
    """Base delay, maximum delay (milliseconds) and retries of every worker of this test."""
    tenants: Callable[[], set[str]] = set
    """Returns the tenants of every worker of this test, including `default`."""
    _spare: AbstractChannel | None = None
    """The last channel that read a queue: to open another one each time is twice the work."""

    async def reconnect(self, url: str | None = None) -> None:
        """Open a new connection, to another node if `url` is given."""
        self.url = url or self.url
        self._spare = None
        with contextlib.suppress(Exception):
            await asyncio.wait_for(self.connection.close(), 2)
        self.connection = await aio_pika.connect(self.url)
        self.channel = await self.connection.channel()

    @property
    def version(self) -> tuple[int, int]:
        """The first two numbers of the broker's version, on which some expectations depend."""
        transport: Any = self.connection.transport
        major, minor, *_ = transport.connection.server_properties["version"].split(".")
        return int(major), int(minor)

    async def declare(self, name: str | None = None, **arguments: Any) -> None:
        """Declare a queue as producers do, plain and durable, or with arguments. By default the jobs queue."""
        await self.channel.declare_queue(name or self.queue, durable=True, arguments=arguments or None)

    async def publish(self, *bodies: bytes, to: str | None = None, **properties: Any) -> None:
        """Publish persistent messages through the default exchange, with no properties but those given."""
        for body in bodies:
            message = aio_pika.Message(body, delivery_mode=2, **properties)
            await self.channel.default_exchange.publish(message, to or self.queue)

    async def publish_raw(self, body: bytes, flags: int, properties: bytes, to: str | None = None) -> None:
        """Publish with raw properties: their flags and bytes."""
        # over another channel, because aiormq would count the confirms of this one wrong from then on
        publishing = await self.connection.channel(publisher_confirms=False)
        channel: Any = await publishing.get_underlay_channel()
        header = struct.pack(">HHQH", 60, 0, len(body), flags) + properties
        payload = (
            frame.marshal(commands.Basic.Publish(exchange="", routing_key=to or self.queue), channel.number)
            + struct.pack(">BHI", 2, channel.number, len(header)) + header + b"\xce"
            + frame.marshal(ContentBody(body), channel.number)
        )  # fmt: skip
        await channel.connection.write_queue.put(ChannelFrame(payload=payload, should_close=False))
        await publishing.close()

    async def depth(self, name: str | None = None) -> int | None:
        """Return the number of ready messages, or `None` if the queue does not exist."""
        declared = await self._declared(name or self.queue)
        return declared.message_count if declared else None

    async def wait_depth(self, count: int, name: str | None = None) -> None:
        """Wait until a queue has this number of ready messages.

        RabbitMQ returns the unsettled messages of a closed channel a moment after it has confirmed the close.
        """

        async def reached() -> bool:
            return await self.depth(name) == count

        await until(reached, f"{count} messages in {name or self.queue}")

    async def depths(self) -> dict[str, int]:
        """Return the number of ready messages in each available queue of this test."""
        depths: dict[str, int] = {}
        channel = await self.connection.channel()
        for name in self.names():
            try:
                async with asyncio.timeout(_AWAY_S):
                    declared = await channel.declare_queue(name, passive=True)
            except (ChannelClosed, TimeoutError):
                channel = await self.connection.channel()
            else:
                depths[name] = declared.declaration_result.message_count or 0
        await channel.close()
        return depths

    async def consumers(self, name: str) -> int | None:
        """Return the number of consumers, or `None` if the queue does not exist."""
        declared = await self._declared(name)
        return declared.consumer_count if declared else None

    async def _declared(self, name: str) -> Any:
        channel, self._spare = self._spare, None
        if channel is None or channel.is_closed:
            channel = await self.connection.channel()
        try:
            declared = await channel.declare_queue(name, passive=True)
        except ChannelClosed:
            return None
        self._spare = channel
        return declared.declaration_result

    async def dead(self, count: int = 1, timeout: float = 20) -> list[AbstractIncomingMessage]:  # noqa: ASYNC109
        """Wait for `count` dead letters and take them."""
        return await self.take(f"{self.prefix}.dead", count, timeout)

    async def take(self, name: str, count: int = 1, timeout: float = 20) -> list[AbstractIncomingMessage]:  # noqa: ASYNC109
        """Wait for `count` messages in a queue and take them."""
        queue = await self.channel.get_queue(name, ensure=False)
        taken: list[AbstractIncomingMessage] = []

        async def more() -> bool:
            while message := await queue.get(no_ack=True, fail=False):
                taken.append(message)
            return len(taken) >= count

        await until(more, f"{count} messages in {name}, only {len(taken)}", timeout)
        return taken

    async def tidy(self) -> None:
        """Delete every queue and exchange of this test, as soon as the broker permits."""

        async def removed() -> bool:
            try:
                await self.reconnect()
                await self.remove()
            except AMQPError:
                return False
            return True

        await until(removed, "tidy broker", 60)

    async def remove(self, keep: tuple[str, ...] = ()) -> None:
        """Delete every queue and exchange of this test: those of workers, and of commands with default settings."""
        for name in (*self.names((1000, 30000, 3), *self.backoffs), f"{self.prefix}.audit"):
            if name not in keep:
                await self.channel.queue_delete(name)
        for name in ("retry", "events", "jobs"):
            await self.channel.exchange_delete(f"{self.prefix}.{name}")

    def names(self, *backoffs: tuple[int, int, int]) -> list[str]:
        """Return the names of all queues of this test, by default with the wait queues of its workers."""
        from otp_stream.core.backoff import Backoff  # noqa: PLC0415 - ground.py runs without the package

        ours = [f"{self.prefix}.dead", f"{self.prefix}.retry.due", *self._tenant_queues()]
        # each quorum queue takes two file descriptors of the broker, so leftovers of a hundred tests would stop it
        waits = {
            f"{self.prefix}.retry.{ms}"
            for backoff in backoffs or self.backoffs
            for ms in Backoff(*backoff, retry_greylisted=True).waits_ms
        }
        return [self.queue, f"{self.queue}.high", *ours, *waits]

    def _tenant_queues(self) -> list[str]:
        if not (tenants := self.tenants()):
            return []
        from otp_stream.broker.topology import Topology  # noqa: PLC0415 - most tests have no tenants
        from otp_stream.core.backoff import Backoff  # noqa: PLC0415

        topology = Topology(self.queue, self.prefix, Backoff(1000, 1000, 1))
        return [topology.tenant_queue(it) for it in tenants]


@asynccontextmanager
async def rabbit(url: str, queue: str, prefix: str, *, tidy: bool = True) -> AsyncIterator[Rabbit]:
    """Connect, and delete the test's queues and exchanges at the end."""
    connection = await aio_pika.connect(url)
    client = Rabbit(url, connection, queue, prefix, await connection.channel())
    try:
        yield client
        if tidy:
            await client.tidy()
    finally:
        await client.connection.close()
