"""RabbitMQ's users with exactly the permissions of their roles, as `otp-stream topology permissions` creates them."""

import asyncio
import base64
import json
import re
import shlex
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from secrets import randbelow
from typing import Any, get_args
from urllib.parse import quote
from uuid import uuid4

import aio_pika
import pytest
from aio_pika.exceptions import ChannelClosed, DeliveryError
from cli import Ran, here, otp_stream
from conftest import Stage, set_stage
from rabbitmq import Node, until, with_management
from tenants import at, job_of, tenants_toml
from visitor import TOKEN, Visitor
from worker import CODE, job

from otp_stream.broker.topology import Topology
from otp_stream.checks.roles import Role, RoleName, roles_of
from otp_stream.client import ClientError, OtpClient, OtpJob
from otp_stream.core.backoff import Backoff

# its own address: the management API is expected at its default port
HOST = f"127.{randbelow(250) + 1}.{randbelow(250) + 1}.{randbelow(250) + 1}"
QUEUE, PREFIX = "send", "otp"
NAMES = {"RABBITMQ_QUEUE_NAME": QUEUE, "RABBITMQ_PREFIX": PREFIX}
ROLES = roles_of(Topology(QUEUE, PREFIX, Backoff(1000, 1000, 1)))

_TRACE = """
Tracer = spawn(fun() ->
  ets:new(otp_checks, [named_table, public]),
  (fun Loop() ->
    receive
      {trace, Pid, call, {_, _, [Resource, User, _]}} -> put({any, Pid}, {element(2, User), element(4, Resource), any});
      {trace, Pid, call, {_, _, [User, Resource, Action, _]}} ->
        put(Pid, {element(2, User), element(4, Resource), Action});
      {trace, Pid, return_from, {_, _, 3}, _} -> erase({any, Pid});
      {trace, Pid, exception_from, {_, _, 3}, _} -> ets:insert(otp_checks, {erase({any, Pid}), false});
      {trace, Pid, How, {_, _, 4}, _} ->
        case get({any, Pid}) of
          undefined -> ets:insert(otp_checks, {get(Pid), How =:= return_from});
          _ -> ok
        end
    end,
    Loop()
  end)()
end),
[erlang:trace_pattern({rabbit_channel, Function, Arity}, [{'_', [], [{exception_trace}]}], [local])
 || {Function, Arity} <- [{check_resource_access, 4}, {check_any_resource_access_permitted, 3}]],
erlang:trace(all, true, [call, {tracer, Tracer}])
"""
"""Records each permission that RabbitMQ checks, and whether it is granted.

For a passive declare, RabbitMQ checks nothing before 4.2.6. Since then, it tries one permission after another until one
is granted. These single checks are not recorded, because none of them is needed; if all are refused, that is recorded
as the action `any`. A channel remembers what was granted, so what is traced is its own function, not that of the users.
"""


@dataclass(frozen=True)
class Checked:
    """A permission that RabbitMQ has checked for a user."""

    user: str
    action: str
    name: str
    granted: bool


@dataclass
class Deployment:
    """A virtual host with the users of one deployment."""

    node: Node
    name: str
    folder: Path
    passwords: dict[str, str]

    def url(self, role: str) -> str:
        return f"amqp://{PREFIX}-{role}:{quote(self.passwords[role])}@{HOST}:{self.node.port}/{self.name}"

    @property
    def admin(self) -> str:
        """The URL of the administrator."""
        return f"amqp://guest:guest@{HOST}:{self.node.port}/{self.name}"

    def env(self, role: str) -> dict[str, str]:
        return {"RABBITMQ_URL": self.url(role), **NAMES}

    async def run(self, role: str, *words: str, **env: str) -> Ran:
        """Run a command as the user with a role."""
        return await otp_stream(self.folder, *words, **{**env, **self.env(role)})

    def permissions(self, *options: str, **env: str) -> Ran:
        """Run `topology permissions` as the administrator."""
        login = {"RABBITMQ_URL": self.admin, **NAMES, **env}
        return here(self.folder, "topology", "permissions", *options, **login)

    def ask(self, role: str, path: str, method: str = "GET", **content: Any) -> tuple[int, Any]:
        """Send a request to the management API as the user with a role. Returns the status and the answer."""
        login = base64.b64encode(f"{PREFIX}-{role}:{self.passwords[role]}".encode()).decode()
        headers = {"Authorization": f"Basic {login}", "Content-Type": "application/json"}
        data = json.dumps(content).encode() if content else None
        url = f"http://{HOST}:15672/api/{path}"
        try:
            with urllib.request.urlopen(urllib.request.Request(url, data, headers, method=method), timeout=10) as it:
                return it.status, json.loads(it.read() or b"null")
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    def checked(self) -> list[Checked]:
        """Return every permission that RabbitMQ has checked so far."""
        file = self.node.folder / "checks"
        rows = 'io_lib:format("~s ~s ~s ~s~n", [U, A, N, R]) || {{U, N, A}, R} <- ets:tab2list(otp_checks)'
        self.node.control("eval", f'file:write_file("{file}", [{rows}]).')
        found = (line.split(" ") for line in file.read_text().splitlines())
        # the default exchange has no name, and this one in permissions
        return [Checked(user, action, name or "amq.default", result == "true") for user, action, name, result in found]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """Start a RabbitMQ with the management API that records which permissions it checks."""
    node = Node(tmp_path_factory.mktemp("node"), plugins="rabbitmq_management")
    node.settings = (f"listeners.tcp.2 = {HOST}:{node.port}", *with_management(15672, HOST))
    node.start()
    node.control("eval", " ".join(_TRACE.split()) + ".")
    yield node
    node.remove()


@pytest.fixture
def deployment(node: Node, tmp_path: Path) -> Iterator[Deployment]:
    """Create a virtual host, and the users by the command."""
    found = Deployment(node, f"shop{uuid4().hex[:6]}", tmp_path, {})
    node.control("add_vhost", found.name)
    node.control("set_permissions", "-p", found.name, "guest", ".*", ".*", ".*")
    created = found.permissions("--apply", "--json")
    assert created.code == 0, created.out
    found.passwords = {it["role"]: it["password"] for it in json.loads(created.out.partition("\n]")[0] + "]")}
    yield found
    for role in get_args(RoleName):
        node.control("delete_user", f"{PREFIX}-{role}")
    node.control("eval", f'rabbit_vhost:delete(<<"{found.name}">>, <<"tests">>).')


@pytest.fixture
async def stage(deployment: Deployment) -> AsyncIterator[Stage]:
    """Set up a stage whose workers have the worker's user, and whose client is the administrator."""
    async with set_stage(deployment.admin, deployment.folder, tidy=False, names=(QUEUE, PREFIX)) as stage:
        stage.url = deployment.url("worker")
        yield stage


async def test_each_role_can_do_its_work_and_needs_each_of_its_permissions(
    deployment: Deployment, stage: Stage
) -> None:
    await _worker_works(deployment, stage)
    await _operator_works(deployment, stage)
    await _deployer_works(deployment, stage)
    checked = [it for it in deployment.checked() if it.user in {f"{PREFIX}-{role}" for role in ROLES}]
    assert [it for it in checked if not it.granted] == []
    for role in ROLES.values():
        asked = [it for it in checked if it.user == f"{PREFIX}-{role.name}"]
        assert _unneeded(role, asked) == []


def _unneeded(role: Role, checked: list[Checked]) -> list[tuple[str, str]]:
    """Return the parts of the role's patterns that matched nothing that RabbitMQ has checked."""
    return [
        (action, part)
        for action, parts in (("configure", role.configure), ("write", role.write), ("read", role.read))
        for part in parts
        if not any(it.action == action and re.fullmatch(part, it.name) for it in checked)
    ]


async def _worker_works(deployment: Deployment, stage: Stage) -> None:
    """Two processes of a worker start from nothing and process jobs of every kind; a viewer follows the events."""
    (stage.folder / "tenants.toml").write_text(tenants_toml({"acme": at(stage.relay)}))
    worker = stage.worker(TENANTS_FILE=str(stage.folder / "tenants.toml"), HTTP_TOKEN=TOKEN, PREFETCH_COUNT="20")
    worker.options = ("--workers", "2")
    await worker.start()
    stage.relay.then("rcpt", "451 4.3.0 later", to="later@example.com")
    stage.relay.always("rcpt", "550 5.1.1 no such user", to="nobody@example.com")
    producer = OtpClient(deployment.url("producer"), queue=QUEUE, exchange=f"{PREFIX}.jobs", prefix=PREFIX)
    viewer = OtpClient(deployment.url("viewer"), queue=QUEUE, prefix=PREFIX)
    async with producer, viewer, viewer.follow("later") as later, viewer.follow("nobody") as nobody:
        await producer.publish(OtpJob(email="later@example.com", otp=CODE, job_id="later"))
        await producer.publish(OtpJob(email="nobody@example.com", otp=CODE, job_id="nobody"), high_lane=True)
        await producer.publish(job_of("acme"))
        async with asyncio.timeout(30):
            assert [it.outcome async for it in later] == ["retrying", "sent"]
            assert [it.outcome async for it in nobody] == ["rejected"]
    visitor = Visitor(worker)
    await asyncio.to_thread(visitor.ask, "/login", token=TOKEN)
    stage.relay.always("rcpt", None, to="nobody@example.com")
    group = {"reason": "rejected", "code": "550", "domain": "example.com"}

    async def replayed() -> bool:
        key = await asyncio.to_thread(visitor.key)
        await asyncio.to_thread(visitor.ask, "/replay", key=key, **group)
        return {"later", "nobody", "acme0"} <= {it.recipient.partition("@")[0] for it in stage.relay.accepted}

    await until(replayed, "mails")


OTHER_WAITS = {"BASE_DELAY_MS": "1000", "MAX_DELAY_MS": "1000", "MAX_RETRIES": "1"}


async def _operator_works(deployment: Deployment, stage: Stage) -> None:
    """An operator uses every command that changes no queue."""

    async def succeeds(*words: str, **env: str) -> Ran:
        ran = await deployment.run("operator", *words, **env)
        assert ran.code == 0, (words, ran.out)
        return ran

    await succeeds("send", "one@example.com")
    await succeeds("livecheck", "two@example.com", "--jobs-exchange")
    await succeeds("load", "--count", "3", "--yes")
    stage.relay.always("rcpt", "550 5.1.1 no such user", to="gone@example.com")
    await deployment.run("operator", "send", "gone@example.com", "--repeat", "3")
    assert "3 dead letters" in (await succeeds("dead", "list")).out
    await succeeds("dead", "export", "--raw", "--out", str(stage.folder / "letters"))
    await succeeds("dead", "replay", "--all", "--yes", "--fresh-expiry")

    async def dead_again() -> bool:
        return "3 dead letters" in (await succeeds("dead", "list")).out

    await until(dead_again, "dead letters")

    async def swept() -> bool:
        return any(it.name == f"{PREFIX}.dead.hands.sweep" for it in await asyncio.to_thread(deployment.checked))

    await until(swept, "sweep by a worker", 60)
    dropped = await succeeds("dead", "drop", "--all", "--yes")
    assert "audit record" not in dropped.out  # it is stored
    await stage.workers[0].stop()


async def _deployer_works(deployment: Deployment, stage: Stage) -> None:
    """A deployer declares the topology from nothing, sets the policy, and deletes old queues."""
    await stage.rabbit.remove()
    tenants = {"TENANTS_FILE": str(stage.folder / "tenants.toml")}
    applied = await deployment.run("deployer", "topology", "apply", **tenants)  # with longer delays
    assert applied.code == 0, applied.out
    assert f"set: policy {PREFIX}.dead" in applied.out
    assert "audit record" not in applied.out
    pruned = await deployment.run("deployer", "topology", "prune", "--yes", **OTHER_WAITS)
    assert pruned.code == 0, pruned.out
    assert "deleted" in pruned.out


async def test_an_operator_and_a_deployer_can_check_everything_but_what_others_alone_need(
    deployment: Deployment, stage: Stage
) -> None:
    worker = await stage.run()
    hides = stage.rabbit.version >= (4, 3)
    """Whether RabbitMQ answers a passive declare only to a user with a permission for the queue."""
    if hides:  # the management API reports what the operator sees, some seconds late
        await until(lambda: _has_statistics(deployment), "statistics of all queues")
    for role in ("operator", "deployer"):
        checked = await deployment.run(role, "check", "--json", **worker.env)
        results = [it for it in json.loads(checked.out)["results"] if it["about"] == "RabbitMQ"]
        assert [it for it in results if it["level"] in {"problem", "warning"}] == []
        assert any(f"has the permissions of the role {role}" in it["text"] for it in results)
        assert any("file descriptors free" in it["text"] for it in results)  # it has the tag monitoring
        assert any(f"{QUEUE}: " in it["text"] and "0 jobs waiting, 1 worker" in it["text"] for it in results)
        unknown = any("their properties were not checked" in it["text"] for it in results)
        assert unknown == (role == "operator")  # to compare them takes permission to declare, and so to delete
        shown = await deployment.run(role, "topology", "show", "--json", **worker.env)
        states = {it["name"]: (it["state"], it["ready"]) for it in json.loads(shown.out)["queues"]}
        assert shown.code == 0
        assert set(states.values()) == {("unknown" if unknown else "exists", 0)}
    refused = {it.name for it in deployment.checked() if (it.user, it.action) == (f"{PREFIX}-operator", "any")}
    assert (QUEUE in refused, f"{PREFIX}.dead" in refused) == (hides, False)


async def _has_statistics(deployment: Deployment) -> bool:
    _, found = await asyncio.to_thread(deployment.ask, "operator", f"queues/{deployment.name}")
    # a new queue gets its statistics one after another
    consumers = {it["name"]: it["consumers"] for it in found if {"messages_ready", "consumers"} <= it.keys()}
    return len(consumers) == len(found) and consumers[QUEUE] == 1


async def test_without_the_management_api_an_operator_can_check_what_rabbitmq_reports_to_it(
    deployment: Deployment, stage: Stage
) -> None:
    worker = await stage.run()
    tags = f'rabbit_auth_backend_internal:set_tags(<<"{PREFIX}-operator">>, [], <<"tests">>).'
    deployment.node.control("eval", tags)
    hides = stage.rabbit.version >= (4, 3)
    checked = await deployment.run("operator", "check", "--json", **worker.env)
    results = [it for it in json.loads(checked.out)["results"] if it["about"] == "RabbitMQ"]
    assert [it for it in results if it["level"] in {"problem", "warning"}] == []
    hidden = [it["text"] for it in results if "does not report to otp-operator whether they exist" in it["text"]]
    assert len(hidden) == hides
    for name in (QUEUE, f"{PREFIX}.retry.due", f"{PREFIX}.retry.1", f"{PREFIX}.retry,") if hides else ():
        assert name in hidden[0]
    unchecked = next(it["text"] for it in results if "their properties were not checked" in it["text"])
    assert f"{PREFIX}.dead" in unchecked
    assert f"{PREFIX}.jobs" in unchecked
    assert (QUEUE in unchecked) != hides
    shown = await deployment.run("operator", "topology", "show", "--json", **worker.env)
    states = {it["name"]: (it["state"], it["ready"]) for it in json.loads(shown.out)["queues"]}
    assert shown.code == 0
    assert (states[QUEUE], states[f"{PREFIX}.dead"]) == (("unknown", None if hides else 0), ("unknown", 0))
    await worker.stop()
    sent = await deployment.run("operator", "send", "user@example.com", "--wait", "0.5")
    state = "does not report the state of the queue to otp-operator" if hides else "no worker consumes this queue"
    assert state in sent.out


async def test_an_operator_cannot_have_jobs_copied_redirected_or_deleted(deployment: Deployment, stage: Stage) -> None:
    worker = await stage.run()
    await worker.stop()
    await stage.rabbit.publish(job())
    async with await aio_pika.connect(deployment.url("operator")) as connection:

        async def own(channel: Any, exchange: str, key: str) -> None:
            await (await channel.declare_queue(exclusive=True)).bind(exchange, key)

        for work in (
            lambda channel: own(channel, f"{PREFIX}.jobs", QUEUE),
            lambda channel: own(channel, f"{PREFIX}.retry", "1150"),
            lambda channel: _queue(channel).get(fail=False),
            lambda channel: _queue(channel).purge(),
            lambda channel: _queue(channel).delete(if_unused=False, if_empty=False),
            lambda channel: _queue(channel).unbind(f"{PREFIX}.jobs", QUEUE),
            lambda channel: _queue(channel, f"{PREFIX}.audit").delete(if_unused=False, if_empty=False),
            lambda channel: _queue(channel, f"{PREFIX}.tenant.default").get(fail=False),
            lambda channel: channel.exchange_delete(f"{PREFIX}.jobs"),
        ):
            channel = await connection.channel()
            with pytest.raises(ChannelClosed, match="ACCESS_REFUSED"):
                await work(channel)
    policy = {"message-ttl": 0, "dead-letter-exchange": "", "dead-letter-routing-key": f"{PREFIX}.dead"}
    path = f"policies/{deployment.name}/mine"
    status, _ = await asyncio.to_thread(
        deployment.ask, "operator", path, "PUT", pattern=f"^{QUEUE}$", definition=policy
    )
    assert status == 401
    assert [await stage.rabbit.depth(it) for it in (QUEUE, f"{PREFIX}.dead")] == [1, 0]


async def test_a_producer_can_publish_jobs_to_the_exchange_and_nothing_else(
    deployment: Deployment, stage: Stage
) -> None:
    worker = await stage.run()
    await worker.stop()
    url = deployment.url("producer")
    async with OtpClient(url, queue=QUEUE, exchange=f"{PREFIX}.jobs") as client:
        await client.publish(OtpJob(email="user@example.com", otp=CODE))
    await stage.rabbit.wait_depth(1, QUEUE)
    async with await aio_pika.connect(url) as connection:
        for exchange, key in (
            ("", QUEUE), ("", f"{PREFIX}.retry.due"), ("", f"{PREFIX}.dead"), ("", f"{PREFIX}.retry.1150"),
            (f"{PREFIX}.retry", "1150"), (f"{PREFIX}.events", "otp.sent"), ("amq.direct", QUEUE),
            ("amq.topic", "otp.sent"), ("amq.fanout", ""),
        ):  # fmt: skip
            assert await _refusal(connection, exchange, key), (exchange, key)
        for key in (f"{PREFIX}.retry.due", f"{PREFIX}.dead", f"{PREFIX}.retry.1150", "1150", "otp.sent"):
            # a key that no job has reaches no queue
            assert await _refusal(connection, f"{PREFIX}.jobs", key) == "returned", key
        for work in (
            lambda channel: channel.declare_queue("mine", durable=True),
            lambda channel: channel.declare_queue(exclusive=True),
            lambda channel: channel.declare_queue(QUEUE, durable=True),
            lambda channel: channel.declare_exchange("mine"),
            lambda channel: _queue(channel).get(fail=False),
            lambda channel: _queue(channel).purge(),
            lambda channel: _queue(channel).delete(if_unused=False, if_empty=False),
            lambda channel: _queue(channel).bind("amq.direct", "key"),
            lambda channel: _queue(channel).unbind(f"{PREFIX}.jobs", QUEUE),
            lambda channel: channel.exchange_delete(f"{PREFIX}.jobs"),
        ):
            channel = await connection.channel()
            with pytest.raises(ChannelClosed, match="ACCESS_REFUSED"):
                await work(channel)
    # nor with the headers that route copies
    keys = [f"{PREFIX}.dead", f"{PREFIX}.retry.due"]
    async with await aio_pika.connect(url) as connection:
        exchange = await (await connection.channel()).get_exchange(f"{PREFIX}.jobs", ensure=False)
        await exchange.publish(aio_pika.Message(job(), headers={"CC": keys, "BCC": keys}), QUEUE)
    sent = await deployment.run("producer", "send", "user@example.com", "--wait", "0")
    assert "ACCESS_REFUSED" in sent.out
    sent = await deployment.run("producer", "send", "user@example.com", "--wait", "0", "--jobs-exchange")
    assert sent.code == 0, sent.out
    async with OtpClient(url, queue=QUEUE, prefix=PREFIX) as client:
        with pytest.raises(ClientError, match="as a user that may read events"):
            async with client.follow("job"):
                pass
    await stage.rabbit.wait_depth(3, QUEUE)
    assert [await stage.rabbit.depth(f"{PREFIX}.{it}") for it in ("dead", "retry.due")] == [0, 0]


def _queue(channel: Any, name: str = QUEUE) -> Any:
    return aio_pika.Queue(channel, name, True, False, False, None)


async def _refusal(connection: aio_pika.abc.AbstractConnection, exchange: str, key: str) -> str:
    """Publish. Returns why that failed; an empty text if it did not."""
    channel = await connection.channel(on_return_raises=True)
    try:
        target = await channel.get_exchange(exchange, ensure=False) if exchange else channel.default_exchange
        await target.publish(aio_pika.Message(job()), key, mandatory=True)
    except ChannelClosed as error:
        assert "ACCESS_REFUSED" in str(error)  # noqa: PT017 - the other kind is a return
        return "refused"
    except DeliveryError:
        return "returned"
    return ""


async def test_a_viewer_follows_events_sees_queues_and_changes_nothing(deployment: Deployment, stage: Stage) -> None:
    worker = await stage.run()
    await worker.stop()
    await stage.rabbit.publish(job(), to=f"{PREFIX}.dead")
    await stage.rabbit.wait_depth(1, f"{PREFIX}.dead")
    host = deployment.name

    status, queues = deployment.ask("viewer", f"queues/{host}")
    assert status == 200
    assert {QUEUE, f"{PREFIX}.dead"} <= {it["name"] for it in queues}
    get = {"count": 1, "ackmode": "ack_requeue_true", "encoding": "auto"}
    publish = {"routing_key": QUEUE, "payload": "x", "payload_encoding": "string", "properties": {}}
    for path, method, content in (
        (f"queues/{host}/{PREFIX}.dead/get", "POST", get),
        (f"queues/{host}/{PREFIX}.dead/contents", "DELETE", {}),
        (f"queues/{host}/{PREFIX}.dead", "DELETE", {}),
        (f"queues/{host}/mine", "PUT", {"durable": True}),
        (f"exchanges/{host}/amq.default/publish", "POST", publish),
        (f"exchanges/{host}/{PREFIX}.jobs/publish", "POST", publish),
        (f"policies/{host}/mine", "PUT", {"pattern": ".*", "definition": {"max-length": 1}}),
        ("users", "GET", {}),
        (f"permissions/{host}/{PREFIX}-viewer", "PUT", {"configure": ".*", "write": ".*", "read": ".*"}),
    ):
        status, answer = deployment.ask("viewer", path, method, **content)
        assert status in {400, 401, 403}, (path, method)
        assert status != 400 or b"ACCESS_REFUSED" in answer, answer
    for words in (
        ("dead", "list"), ("dead", "drop", "--all", "--yes"), ("send", "user@example.com"), ("topology", "apply"),
        ("topology", "prune", "--yes", "--base-delay-ms", "5"),
    ):  # fmt: skip
        ran = await deployment.run("viewer", *words)
        assert ran.code != 0, words
        assert "REFUSED" in ran.out or "refuses" in ran.out, ran.out
    assert [await stage.rabbit.depth(it) for it in (QUEUE, f"{PREFIX}.dead")] == [0, 1]


async def test_a_topic_permission_limits_a_viewer_to_some_outcomes(deployment: Deployment, stage: Stage) -> None:
    worker = await stage.run()
    await worker.stop()
    limits = (f"{PREFIX}-viewer", f"{PREFIX}.events", "^$", r"^otp\.sent$")
    await asyncio.to_thread(deployment.node.control, "set_topic_permissions", "-p", deployment.name, *limits)
    async with await aio_pika.connect(deployment.url("viewer")) as connection:
        channel = await connection.channel()
        queue = await channel.declare_queue(exclusive=True)
        await queue.bind(f"{PREFIX}.events", "otp.sent")
        with pytest.raises(ChannelClosed, match="ACCESS_REFUSED"):
            await queue.bind(f"{PREFIX}.events", "otp.#")


async def test_the_documented_policy_ends_a_viewers_queue_and_not_a_followers(
    deployment: Deployment, stage: Stage
) -> None:
    worker = await stage.run()
    await worker.stop()
    documented = (Path(__file__).parents[2] / "docs/rabbitmq.md").read_text()
    (command,) = re.findall(r"rabbitmqctl (set_operator_policy -p / .*)", documented)
    words = shlex.split(command.replace("-p /", f"-p {deployment.name}").replace("60000", "1000"))
    await asyncio.to_thread(deployment.node.control, *words)
    viewer = OtpClient(deployment.url("viewer"), queue=QUEUE, prefix=PREFIX)
    async with await aio_pika.connect(deployment.url("viewer")) as connection:
        kept = await (await connection.channel()).declare_queue(durable=True)
        await kept.bind(f"{PREFIX}.events", "#")

    async def queues() -> list[str]:
        _, found = await asyncio.to_thread(deployment.ask, "viewer", f"queues/{deployment.name}")
        return [it["name"] for it in found if it["name"].startswith("amq.gen-")]

    async def ended() -> bool:
        return kept.name not in await queues()

    async with viewer, viewer.follow("j"):
        await until(ended, "end of the queue")
        assert len(await queues()) == 1


_REMOVED = [
    ("configure", rf"{PREFIX}\.dead", rf"{PREFIX}.dead cannot be declared"),
    ("configure", rf"{PREFIX}\.retry\.[0-9]+", "cannot be declared"),
    ("write", r"amq\.default", "cannot be declared"),
    ("write", rf"{PREFIX}\.retry\.[0-9]+", "cannot be declared or bound"),
    ("write", QUEUE, "producers cannot use the exchange for jobs"),
    ("read", QUEUE, "ACCESS_REFUSED"),
    ("read", rf"{PREFIX}\.retry\.due", "cannot be declared"),
    ("read", rf"{PREFIX}\.jobs", "producers cannot use the exchange for jobs"),
]


@pytest.mark.parametrize(("action", "part", "text"), _REMOVED, ids=[f"{it[0]} {it[1]}" for it in _REMOVED])
async def test_without_one_of_its_permissions_a_worker_names_what_it_cannot_do(
    deployment: Deployment, stage: Stage, action: str, part: str, text: str
) -> None:
    role = ROLES["worker"]
    parts = {"configure": role.configure, "write": role.write, "read": role.read}
    assert part in parts[action]
    parts[action] = tuple(it for it in parts[action] if it != part)
    reduced = Role("worker", "", **parts).patterns
    deployment.node.control("set_permissions", "-p", deployment.name, f"{PREFIX}-worker", *reduced.values())
    worker = stage.worker()
    await worker.start(ready=False)
    await worker.wait_log(text)
    checked = await asyncio.to_thread(deployment.permissions, "--check")
    assert checked.code == 1
    assert f"{PREFIX}-worker: {action} is " in checked.out


async def test_a_worker_with_the_permissions_of_an_earlier_version_works_and_names_what_is_missing_once(
    deployment: Deployment, stage: Stage
) -> None:
    earlier = (rf"^({QUEUE}(\.high)?|{PREFIX}\..*)$", rf"^(amq\.default|{PREFIX}\..*)$")
    configure, write = earlier
    deployment.node.control("set_permissions", "-p", deployment.name, f"{PREFIX}-worker", configure, write, configure)
    worker = await stage.run(HEARTBEAT_INTERVAL_MS="1000")
    await stage.rabbit.publish(job())

    async def sent() -> bool:
        return len(stage.relay.accepted) == 1

    await until(sent, "mail")
    await worker.wait_log('"event":"health"', times=worker.log.count('"event":"health"') + 3)
    assert worker.log.count("producers cannot use the exchange for jobs") == 1
    checked = await deployment.run("worker", "check", "--json", **worker.env)
    (text,) = (it for it in json.loads(checked.out)["results"] if "lacks permissions" in it["text"])
    assert text["level"] == "warning"
    assert f"for the exchange {PREFIX}.jobs" in text["text"]
    assert f"write {QUEUE}, {QUEUE}.high" in text["text"]
    applied = await deployment.run("worker", "topology", "apply", **worker.env)
    assert applied.code == 1
    assert "topology permissions" in applied.out
    assert "policy" in applied.out  # it did the rest


def test_users_are_created_once_checked_and_corrected(deployment: Deployment) -> None:
    worker, producer = f"{PREFIX}-worker", f"{PREFIX}-producer"
    assert len(set(deployment.passwords.values())) == 5
    again = deployment.permissions("--apply")
    assert (again.code, again.out.count("unchanged"), "amqp://" in again.out) == (0, 5, False)
    checked = deployment.permissions("--check")
    assert (checked.code, checked.out.count("has exactly the permissions of the role")) == (0, 5)
    before = _account(deployment, worker)
    deployment.node.control("eval", f'rabbit_auth_backend_internal:set_tags(<<"{worker}">>, [administrator], <<"t">>).')
    deployment.node.control("set_permissions", "-p", deployment.name, producer, "", ".*", "")
    checked = deployment.permissions("--check", "--json")
    assert checked.code == 1
    found = {it["user"]: it["texts"] for it in json.loads(checked.out.partition("\n]")[0] + "]")}
    assert found[worker] == ["has the tags administrator, must have no tags"]
    assert found[producer] == [
        "configure is '', must be '^$'", r"write is '.*', must be '^(otp\.jobs)$'", "read is '', must be '^$'"
    ]  # fmt: skip
    corrected = deployment.permissions("--apply")
    assert f"{worker} (worker): tags changed\n" in corrected.out
    assert f"{producer} (producer): permissions set\n" in corrected.out
    assert _account(deployment, worker) == before  # with the same password
    assert deployment.permissions("--check").code == 0


def _account(deployment: Deployment, user: str) -> dict[str, Any]:
    login = base64.b64encode(b"guest:guest").decode()
    request = urllib.request.Request(
        f"http://{HOST}:15672/api/users/{user}", headers={"Authorization": f"Basic {login}"}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.loads(answer.read())


def test_users_have_the_given_names_and_passwords(deployment: Deployment, tmp_path: Path) -> None:
    (tmp_path / "passwords").write_text("shop eu=Zq7x=1\n\nfront=Zq7x2\n")
    names = ("--producer", "shop eu", "--producer", "front")
    try:
        ran = deployment.permissions(*names, "--apply", "--passwords", str(tmp_path / "passwords"))
        assert (ran.code, ran.out.count("created"), "Zq7x" in ran.out) == (0, 2, False)
        url = f"amqp://shop%20eu:Zq7x%3D1@{HOST}:{deployment.node.port}/{deployment.name}"
        asyncio.run(_connects(url))
        (tmp_path / "passwords").write_text("front=Zq7x3\n")
        ran = deployment.permissions(*names, "--apply", "--passwords", str(tmp_path / "passwords"))
        assert "shop eu (producer): unchanged" in ran.out
        assert "front (producer): password changed" in ran.out
        asyncio.run(_connects(url.replace("shop%20eu:Zq7x%3D1", "front:Zq7x3")))
    finally:
        for name in names[1::2]:
            deployment.node.control("delete_user", name)


async def _connects(url: str) -> None:
    async with OtpClient(url) as client:
        await client.connect()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--apply", "--check"), "--apply and --check: pass one of them"),
        (("--passwords", "-"), "--passwords: is used with --apply only"),
        (("--producer", "a", "--worker", "a"), "--worker a: is named twice"),
        (("--producer", " "), "--producer: a user needs a printable name"),
        (("--operator", "guest", "--apply"), "--operator guest: is the user of RABBITMQ_URL"),
        (("--apply", "--passwords", "none"), "--passwords: none cannot be read"),
        (("--apply", "--passwords", "bad"), "--passwords, line 2: must be USER=PASSWORD for one of these users"),
    ],
)
def test_arguments_that_cannot_be_used_are_named(
    deployment: Deployment, tmp_path: Path, options: tuple[str, ...], text: str
) -> None:
    (tmp_path / "bad").write_text("otp-worker=Zq7x\nZq7x\n")
    ran = deployment.permissions(*options)
    assert ran.code == 2
    assert text in ran.out
    assert "Zq7x" not in ran.out


def test_a_user_that_is_no_administrator_is_named_with_the_tag_that_it_needs(deployment: Deployment) -> None:
    for option in ("--apply", "--check"):
        ran = deployment.permissions(option, "--producer", "new", RABBITMQ_URL=deployment.url("operator"))
        assert ran.code == 1
        assert "for users `administrator`" in ran.out


def test_the_commands_that_are_printed_grant_what_the_option_would(deployment: Deployment) -> None:
    shown = deployment.permissions()
    assert shown.code == 0
    for line in shown.out.splitlines():
        words = shlex.split(line) if line.startswith("rabbitmqctl") else []
        if words[1:2] == ["set_permissions"]:
            deployment.node.control(*words[1:])
    assert r"write      ^(otp\.jobs)$" in shown.out
    assert f"rabbitmqctl set_user_tags {PREFIX}-deployer monitoring policymaker" in shown.out
    assert deployment.permissions("--check").code == 0
    listed = json.loads(deployment.permissions("--json").out)
    assert listed["virtualHost"] == deployment.name
    assert [it["role"] for it in listed["users"]] == list(get_args(RoleName))
