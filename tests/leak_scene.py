"""One deployment in which every secret is marked, and everything that shows something of it.

Secrets may be in the mails and in the SMTP conversation; addresses in RabbitMQ's files, and codes that no one sealed,
because producers publish them; all of them in the environment and the memory of our processes. Nowhere else.
"""

import asyncio
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import aio_pika
import redis
from aio_pika.abc import AbstractIncomingMessage
from amqp_proxy import AmqpProxy, amqp_proxy
from cli import otp_stream
from collector import Collector
from leak_jobs import CHANGES, DOMAINS, SEALABLE, TEMPLATES, Message, Person, job, malformed
from leak_marks import Marks, QuotingRelay
from leak_search import Leak, LeakSearch
from rabbitmq import Node, Rabbit, rabbit, until
from redis_server import RedisServer
from template_folders import write
from tenants import at, tenants_toml
from visitor import Visitor
from worker import Worker

from otp_stream.core.sealed_code import seal_code
from otp_stream.core.sealing_keys import read_keys

USER, QUEUE, PREFIX = "otp-stream", "codes", "leaks"
PAGES = (
    "/", "/dead", "/dead?reason=rejected", "/templates", "/templates?template=subject", "/preview?template=otp",
    "/health", "/livez", "/readyz", "/metrics", "/asyncapi", "/asyncapi.json", "/asyncapi.yaml", "/nowhere",
)  # fmt: skip
COMMANDS = (
    "check", "check --json", "topology show", "topology show --json", "tables", "tables --json", "tenants list",
    "tenants show shop", "tenants check", "templates list", "templates lint", "templates preview otp", "dead list",
    "dead list --each --json", "dead export", "dead show nothing", "asyncapi",
    "dead replay reason=expired --yes", "sealing public", "--help",
)  # fmt: skip
_WAITS = (QUEUE, f"{QUEUE}.high", f"{PREFIX}.retry.due", f"{PREFIX}.retry.100", f"{PREFIX}.retry.200",
          f"{PREFIX}.tenant.default", f"{PREFIX}.tenant.shop")  # fmt: skip


@dataclass
class Scene:
    """A broker, a Redis, relays, a collector and workers. `folder` has their files."""

    marks: Marks
    folder: Path
    node: Node
    redis: RedisServer
    rabbit: Rabbit
    relays: list[QuotingRelay]
    collector: Collector
    proxy: AmqpProxy
    env: dict[str, str]
    chance: random.Random
    sealed: bool = False
    """Whether the producers seal every code."""
    workers: list[Worker] = field(default_factory=list)
    outputs: defaultdict[str, bytearray] = field(default_factory=lambda: defaultdict(bytearray))
    """What was seen so far, by channel."""

    async def run(self, app: str = "otp_stream.app:app", **changes: str) -> Worker:
        """Start a worker."""
        worker = Worker(self.folder / f"worker{len(self.workers)}", self.env | changes, app=app)
        self.workers.append(worker)
        await worker.start()
        return worker

    def leaks(self, more: Mapping[str, str] | None = None) -> dict[str, list[Leak]]:
        """Return what was seen of the secrets, and of `more`, by channel.

        RabbitMQ's files are searched for codes only if all are `sealed`.
        """
        at_broker = self.marks.of_deployment | (self.marks.of_jobs if self.sealed else {}) | dict(more or {})
        search, search_broker = LeakSearch(self.marks.of_people | self.marks.of_jobs | at_broker), LeakSearch(at_broker)
        found = {
            channel: (search_broker if channel == "RabbitMQ" else search).find(bytes(output))
            for channel, output in self.outputs.items()
        }
        return {channel: leaks for channel, leaks in found.items() if leaks}

    def messages(self, count: int) -> Iterable[Message]:
        """Yield jobs and messages that are none, each for another person."""
        changes = list(CHANGES)
        for number in range(count):
            local, code = self.chance.choice(self.marks.locals), self.chance.choice(self.marks.codes)
            person = Person(f"{local}{number}@{self.chance.choice(DOMAINS)}", code)
            for relay in self.relays:
                relay.codes[person.address] = code
            if self.sealed:
                yield job(number, person, SEALABLE[number % len(SEALABLE)], self._seal)
            elif number % 8 == 7:
                yield malformed(number, person, self.chance)
            else:
                yield job(number, person, changes[number % len(changes)] if number % 3 else "plain")

    def _seal(self, code: str, address: str, job_id: str, tenant: object) -> str:
        return seal_code(read_keys(self.marks.sealing_keys), code, address, job_id, tenant)

    async def publish(self, messages: Iterable[Message]) -> None:
        """Publish messages, each with a confirm."""

        async def publish(message: Message) -> None:
            it = aio_pika.Message(message.body, delivery_mode=2, **message.properties)
            await self.rabbit.channel.default_exchange.publish(it, QUEUE + message.lane)

        tasks: list[asyncio.Task[None]] = []
        for message in messages:
            tasks.append(asyncio.create_task(publish(message)))
            if len(tasks) == 200:
                await asyncio.gather(*tasks)
                tasks.clear()
        await asyncio.gather(*tasks)

    async def ended(self, timeout: float = 240) -> None:  # noqa: ASYNC109
        """Wait until every job has ended."""

        async def idle() -> bool:
            if any([await self.rabbit.depth(name) for name in _WAITS]):
                return False
            return not any([await it.may_have_unacked() for it in self.workers if it.is_running])

        for _ in range(2):  # while a wait queue dead-letters a message, its depth is 0
            await until(idle, "end of every job", timeout)
            await asyncio.sleep(0.1)

    def see(self, channel: str, *outputs: bytes | str) -> None:
        """Add outputs of a channel, to be searched."""
        encoded = [it.encode(errors="replace") if isinstance(it, str) else it for it in outputs]
        self.outputs[channel] += b"".join(it + b"\n" for it in encoded)

    async def look(self, commands: Iterable[str] = COMMANDS) -> None:
        """See everything, with the output of these commands, and stop the workers."""
        running = [it for it in self.workers if it.is_running]
        for worker in running[:1]:
            await self._look_at_pages(worker)
        for worker in running:
            self.see("metrics", (await worker.get("/metrics"))[1])
            self.see("processes", *_command_lines(worker))
        for command in commands:
            self.see("commands", (await otp_stream(self.folder, *command.split(), **self.env)).out)
        for dead in await self.rabbit.dead(0):
            self.see(
                "headers", *(f"{name}: {value}" for name, value in dead.headers.items() if name.startswith("x-otp-"))
            )
        for worker in self.workers:
            if worker.is_running:
                await worker.stop()  # exports the last spans, too
            self.see("log", worker.log_path.read_bytes())
            self.see("files", *(it.read_bytes() for it in _files(worker.folder) if it != worker.log_path))
        self.see("telemetry", self.collector.raw)
        with suppress(redis.ConnectionError):
            server = redis.Redis.from_url(self.env["REDIS_URL"])
            server.save()
            server.close()
        self.see("Redis", *(it.read_bytes() for it in _files(self.redis.folder)))
        self.see("RabbitMQ", *(it.read_bytes() for it in _files(self.node.folder)))

    async def _look_at_pages(self, worker: Worker) -> None:
        for headers in ({}, {"Authorization": f"Bearer {self.marks.http_token}"}):
            visitor = Visitor(worker)
            for path in PAGES:
                self.see("pages", (await asyncio.to_thread(visitor.ask, path, headers))[1])
        wrong = {"token": self.marks.http_token[:-1], "key": self.marks.http_token}
        for path in ("/login", "/replay", "/probe", "/logout"):
            self.see("pages", (await asyncio.to_thread(visitor.ask, path, {}, **wrong))[1])

    async def see_event(self, event: AbstractIncomingMessage) -> None:
        """Add an event of a job."""
        self.see("events", event.body, f"{event.routing_key} {event.headers} {event.properties}")


def _files(folder: Path) -> list[Path]:
    return [it for it in folder.rglob("*") if it.is_file()]


def _command_lines(worker: Worker) -> list[bytes]:
    """Return the command lines of a worker and its descendants."""
    assert worker.process is not None
    found, left = [], [worker.process.pid]
    while left:
        process = Path("/proc", str(left.pop()))
        with suppress(FileNotFoundError, ProcessLookupError):  # a process that composes mails may end
            found.append((process / "cmdline").read_bytes() + (process / "comm").read_bytes())
            for task in (process / "task").iterdir():
                with suppress(FileNotFoundError, ProcessLookupError):  # a thread that reads a file ends within a moment
                    left += [int(it) for it in (task / "children").read_text().split()]
    return found


@asynccontextmanager
async def leak_scene(folder: Path, seed: int = 1) -> AsyncIterator[Scene]:
    """Start everything but workers."""
    marks, chance = Marks(), random.Random(seed)  # noqa: S311 - not for secrets
    node, server = Node(folder / "node"), RedisServer(folder / "redis")
    server.settings = ("--requirepass", marks.redis_password, "--appendonly", "yes", "--rdbcompression", "no")
    try:
        server.start()
        await asyncio.to_thread(node.start)
        node.control("add_user", USER, marks.amqp_password)
        node.control("set_permissions", USER, ".*", ".*", ".*")
        async with AsyncExitStack() as stack:
            collector = await stack.enter_async_context(Collector())
            passwords = (marks.smtp_password, marks.fallback_password, marks.tenant_password)
            relays = [QuotingRelay(login=("sender", it), quotes=(it,), chance=chance) for it in passwords]
            for relay in relays:
                await stack.enter_async_context(relay)
            proxy, url = await stack.enter_async_context(amqp_proxy(node.url))
            client = await stack.enter_async_context(rabbit(node.url, QUEUE, PREFIX, tidy=False))
            env = _env(folder, marks, relays, server, collector)
            env["RABBITMQ_URL"] = url.replace("guest:guest", f"{USER}:{quote(marks.amqp_password, safe='')}")
            events = await client.channel.declare_queue("seen", durable=False)
            await client.channel.declare_exchange(f"{PREFIX}.events", "topic", durable=True)
            await events.bind(f"{PREFIX}.events", "#")
            scene = Scene(marks, folder, node, server, client, relays, collector, proxy, env, chance)
            await events.consume(scene.see_event, no_ack=True)
            try:
                yield scene
            finally:
                for worker in scene.workers:
                    await worker.kill()
    finally:
        server.remove()
        node.remove()


def _env(
    folder: Path, marks: Marks, relays: list[QuotingRelay], server: RedisServer, collector: Collector
) -> dict[str, str]:
    secrets, templates = folder / "secrets", folder / "templates"
    secrets.mkdir()
    for name in ("smtp_password", "secret_key", "tenant_password"):
        (secrets / name).write_text(getattr(marks, name) + "\n")
    for name, body in TEMPLATES.items():
        write(templates, name, body_txt=body)
    write(templates, "subject", subject_txt="{{ otp }} is your code")
    first, fallback, own = relays
    tenant = at(own, smtp_auth="login", smtp_user="sender", smtp_pass_file=str(secrets / "tenant_password"))
    (folder / "tenants.toml").write_text(tenants_toml({"shop": tenant}))
    return {
        "WORKER": "true", "NODE_ENV": "staging", "LOG_LEVEL": "debug",
        "RABBITMQ_QUEUE_NAME": QUEUE, "RABBITMQ_PREFIX": PREFIX, "PREFETCH_COUNT": "200",
        "SENDER_EMAIL": "Example <no-reply@example.com>", "SMTP_HOST": "127.0.0.1", "SMTP_PORT": str(first.port),
        "SMTP_TLS": "none", "SMTP_USER": "sender", "SMTP_PASS_FILE": str(secrets / "smtp_password"),
        "SMTP_FALLBACK_URLS":
            f"smtp://sender:{quote(marks.fallback_password, safe='')}@127.0.0.1:{fallback.port}?tls=none",
        "REDIS_URL": f"redis://:{quote(marks.redis_password, safe='')}@127.0.0.1:{server.port}/0",
        "SECRET_KEY_FILE": str(secrets / "secret_key"), "SEALING_KEYS": marks.sealing_keys,
        "HTTP_TOKEN": marks.http_token,
        "TENANTS_FILE": str(folder / "tenants.toml"), "TEMPLATES_DIR": str(templates),
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "OTEL_METRICS_EXPORTER": "otlp", "OTEL_LOGS_EXPORTER": "otlp",
        "OTEL_EXPORTER_OTLP_HEADERS": f"authorization=Bearer%20{marks.collector_token}",
        "MAX_RETRIES": "1", "BASE_DELAY_MS": "100", "MAX_DELAY_MS": "200", "RECIPIENT_LIMIT": "3/10m",
        "SUPERSEDE": "latest", "HEARTBEAT_INTERVAL_MS": "500",
    }  # fmt: skip
