"""`otp-stream topology`, as an operator uses it."""

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import AsyncMock

import aio_pika
import pytest
from cli import Ran, here, names, otp_stream
from conftest import Stage
from rabbitmq import Node, Rabbit, free_port, rabbit, until, with_management

from otp_stream.broker.lane import LaneConsumer
from otp_stream.broker.management_api import ManagementApi
from otp_stream.broker.queue_inspect import inspect_queue
from otp_stream.broker.topology import Topology
from otp_stream.broker.topology_admin import TopologyAdmin
from otp_stream.checks.management import ManagementStatus, read_descriptors
from otp_stream.checks.rabbitmq import RabbitmqCheck
from otp_stream.core.backoff import Backoff
from otp_stream.core.check_result import CheckResult
from otp_stream.embedded import EmbeddedBroker

HTTP_PORT = free_port()
API = ("--management-url", f"http://127.0.0.1:{HTTP_PORT}")
NO_API = ("--management-url", f"http://127.0.0.1:{free_port()}")
TOPOLOGY = Topology("jobs", "shop", Backoff(1000, 30000, 3, retry_greylisted=True))


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """Start a RabbitMQ with the management API and frequent statistics."""
    node = Node(tmp_path_factory.mktemp("node"), settings=with_management(HTTP_PORT), plugins="rabbitmq_management")
    node.start()
    node.control("eval", "application:set_env(rabbit, quorum_tick_interval, 500).")
    yield node
    node.remove()


def host(node: Node, name: str, *options: str) -> dict[str, str]:
    """Create a virtual host; return the settings of a worker there."""
    node.control("add_vhost", name, *options)
    node.control("set_permissions", "-p", name, "guest", ".*", ".*", ".*")
    return {"RABBITMQ_URL": f"{node.url}{name}", "RABBITMQ_QUEUE_NAME": "jobs", "RABBITMQ_PREFIX": "shop"}


async def shown(folder: Path, *options: str, **env: str) -> dict[str, Any]:
    return json.loads(
        (await asyncio.to_thread(here, folder, "topology", "show", "--json", *options, **env)).out.partition("\n}")[0]
        + "}"
    )


async def test_what_is_missing_is_reported_and_declared_once(stage: Stage) -> None:
    env = names(stage)
    before = await asyncio.to_thread(here, stage.folder, "topology", "show", **env)
    assert before.code == 1
    assert "16 missing: `otp-stream topology apply` declares them" in before.out
    dry = await asyncio.to_thread(here, stage.folder, "topology", "apply", "--dry-run", **env)
    assert dry.code == 1
    assert f"missing: queue {stage.rabbit.prefix}.retry.5200\n" in dry.out
    assert await stage.rabbit.depth(f"{stage.rabbit.prefix}.dead") is None
    applied = await asyncio.to_thread(here, stage.folder, "topology", "apply", "--json", **env)
    assert applied.code == 0, applied.out
    assert len(json.loads(applied.out)["declared"]) == 16
    again = await asyncio.to_thread(here, stage.folder, "topology", "apply", **env)
    assert again.code == 0
    assert "Everything exists.\n" in again.out
    policy = f"rabbitmqctl set_policy -p / {stage.rabbit.prefix}.dead"
    assert policy in " ".join(again.out.split())  # it has no management API
    await stage.rabbit.publish(b"one", b"two")

    async def arrived() -> bool:
        return await stage.rabbit.depth() == 2

    await until(arrived, "two jobs")
    found = await shown(stage.folder, *NO_API, **env)
    jobs = {it["name"]: it for it in found["queues"]}[stage.rabbit.queue]
    assert (jobs["state"], jobs["type"], jobs["ready"], jobs["consumers"]) == ("exists", "classic", 2, 0)
    assert {it["state"] for it in found["bindings"]} == {"unknown"}


async def test_the_high_lane_is_declared_as_a_quorum_queue_if_the_jobs_queue_is_one(stage: Stage) -> None:
    await stage.rabbit.declare(**{"x-queue-type": "quorum", "x-delivery-limit": 7})
    applied = await asyncio.to_thread(here, stage.folder, "topology", "apply", **names(stage))
    assert applied.code == 0, applied.out
    found = await inspect_queue(stage.rabbit.connection, f"{stage.rabbit.queue}.high", {})
    assert found is not None
    assert found.kind == "quorum"


async def test_a_queue_with_other_properties_is_reported_with_its_fix_and_nothing_is_declared(stage: Stage) -> None:
    await stage.rabbit.declare(f"{stage.rabbit.prefix}.dead")
    for command in ("show", "apply"):
        ran = await asyncio.to_thread(here, stage.folder, "topology", command, **names(stage))
        assert ran.code == 1
        assert (
            f"{stage.rabbit.prefix}.dead exists with other properties: x-queue-type is 'classic', must be 'quorum'"
            in ran.out
        )
        assert "drain and delete it, or set another RABBITMQ_PREFIX" in ran.out
    assert await stage.rabbit.depth(f"{stage.rabbit.prefix}.retry.due") is None


async def test_a_missing_broker_or_virtual_host_is_named(stage: Stage) -> None:
    nowhere = f"amqp://u:hunter2@127.0.0.1:{free_port()}/"
    for url, text in ((nowhere, "does not answer"), (f"{stage.url}nope", "has no virtual host nope")):
        ran = await asyncio.to_thread(here, stage.folder, "topology", "apply", RABBITMQ_URL=url)
        assert ran.code == 1
        assert text in ran.out
        assert "hunter2" not in ran.out


async def _ran(folder: Path, *command: str, **env: str) -> Ran:
    if command[0] == "send":  # it handles signals, as only a main thread can
        return await otp_stream(folder, *command, **env)
    return await asyncio.to_thread(here, folder, *command, **env)


async def test_a_refused_virtual_host_is_explained_by_every_command_and_by_the_worker(stage: Stage) -> None:
    url = f"{stage.url}nosuch"
    text = "has no virtual host nosuch, or guest may not use it (NOT_ALLOWED - vhost nosuch not found); correct"
    commands = ("topology", "show"), ("send", "a@example.com"), ("dead", "list"), ("dead", "drop", "--all", "--yes")
    for command in commands:
        ran = await _ran(stage.folder, *command, RABBITMQ_URL=url)
        assert ran.code != 0
        assert text in ran.out, command
        assert "object at" not in ran.out
    worker = stage.worker(url=url)
    await worker.start(ready=False)
    await worker.wait_log("waiting for RabbitMQ")
    await worker.wait_log(text)

    async def explained() -> str | None:
        status, body = await worker.get("/readyz")
        return body if status == 503 and text in body else None

    body = await until(explained, "status 503 with the reason")
    assert "away" not in body
    assert "object at" not in body + worker.log


async def test_a_port_that_never_answers_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"amqp://u:hunter2@127.0.0.1:{mute.getsockname()[1]}/"
        for command in (("topology", "show"), ("send", "a@example.com")):
            ran = await _ran(tmp_path, *command, RABBITMQ_URL=url)
            assert ran.code != 0
            assert "does not answer in time" in ran.out
            assert "()" not in ran.out


async def test_imported_definitions_match_what_the_worker_declares(node: Node, tmp_path: Path) -> None:
    env = host(node, "copy")
    written = await asyncio.to_thread(here, tmp_path, "topology", "show", "--definitions", **env)
    assert written.code == 0, written.out
    assert (await shown(tmp_path, *API, **env))["queues"][1]["state"] == "missing"  # writing declares nothing
    (tmp_path / "topology.json").write_text(written.out)
    node.control("import_definitions", str(tmp_path / "topology.json"))
    found = await shown(tmp_path, *API, **env)
    assert {it["state"] for kind in ("exchanges", "queues", "bindings") for it in found[kind]} == {"exists"}
    assert len(found["bindings"]) == len(TOPOLOGY.backoff.waits_ms) + 2
    async with rabbit(env["RABBITMQ_URL"], "jobs", "shop", tidy=False) as client:
        await TOPOLOGY.apply(client.connection)  # as a worker's start does: a mismatch would raise
        await client.channel.queue_delete("jobs")
        await client.declare("jobs", **{"x-queue-type": "quorum", "x-delivery-limit": 7})
    definitions = json.loads((await asyncio.to_thread(here, tmp_path, "topology", "show", "--definitions", **env)).out)
    arguments = {it["name"]: it["arguments"] for it in definitions["queues"]}
    assert arguments["jobs"] == {"x-queue-type": "quorum", "x-delivery-limit": 7}
    assert arguments["jobs.high"] == {"x-queue-type": "classic"}


async def test_a_type_that_is_the_default_of_the_virtual_host_is_recognised(node: Node, tmp_path: Path) -> None:
    env = host(node, "plain-is-quorum", "--default-queue-type", "quorum")
    async with rabbit(env["RABBITMQ_URL"], "jobs", "shop", tidy=False) as client:
        await client.declare("jobs")
        await client.declare("jobs.high", **{"x-queue-type": "classic"})
        admin = TopologyAdmin(lambda: env["RABBITMQ_URL"], TOPOLOGY)
        lanes = [
            cast("LaneConsumer", SimpleNamespace(lane=lane, queue=queue)) for lane, queue in TOPOLOGY.lanes.items()
        ]
        await admin.apply(lanes)
        await admin.close()
    # at a stop, messages of a quorum queue are published again, because the queue counts returned ones
    assert {it.lane: it.counts_returns for it in lanes} == {"high": False, "jobs": True, "due": True}
    found = {it["name"]: it["type"] for it in (await shown(tmp_path, *API, **env))["queues"]}
    assert (found["jobs"], found["jobs.high"]) == ("quorum", "classic")
    definitions = json.loads((await asyncio.to_thread(here, tmp_path, "topology", "show", "--definitions", **env)).out)
    kinds = {it["name"]: it["arguments"].get("x-queue-type") for it in definitions["queues"]}
    assert (kinds["jobs"], kinds["jobs.high"]) == ("quorum", "classic")
    checked = await asyncio.to_thread(here, tmp_path, "check", "--json", **env)
    assert "jobs: quorum queue, 0 jobs waiting" in checked.out
    assert "jobs.high: classic queue, 0 jobs waiting" in checked.out


async def test_definitions_need_no_broker(tmp_path: Path) -> None:
    url = f"amqp://u:hunter2@127.0.0.1:{free_port()}/shop%2Feu"
    ran = await asyncio.to_thread(here, tmp_path, "topology", "show", "--definitions", RABBITMQ_URL=url)
    assert ran.code == 0
    assert '"vhost": "shop/eu"' in ran.out
    assert "written as plain queues" in ran.out
    assert "hunter2" not in ran.out


async def old_wait_queue(client: Rabbit, wait_ms: int, *bodies: bytes, bind: bool = True) -> str:
    """Declare a wait queue of other settings that contains jobs."""
    name = TOPOLOGY.wait_queue(wait_ms)
    arguments = TOPOLOGY.arguments[TOPOLOGY.wait_queue(1150)] | {"x-message-ttl": wait_ms}
    queue = await client.channel.declare_queue(name, durable=True, arguments=arguments)
    if bind:
        await queue.bind(TOPOLOGY.retry.name, str(wait_ms))
    await client.publish(*bodies, to=name)
    return name


async def test_old_wait_queues_are_deleted_once_they_are_empty_and_no_other_queue_is(
    node: Node, tmp_path: Path
) -> None:
    env = host(node, "old")
    assert (await asyncio.to_thread(here, tmp_path, "topology", "apply", **env)).code == 0
    async with rabbit(env["RABBITMQ_URL"], "jobs", "shop", tidy=False) as client:
        await client.channel.queue_delete(TOPOLOGY.due)
        stuck = await old_wait_queue(client, 100, b"stuck")

        async def over() -> bool:
            return await client.depth(stuck) == 0

        await until(over, "the end of its wait")
        # RabbitMQ retries the hand-over after three minutes; until then AMQP counts no message
        await TOPOLOGY.apply(client.connection)
        empty, draining = await old_wait_queue(client, 500), await old_wait_queue(client, 4_000, b"soon")
        waiting = await old_wait_queue(client, 600_000, b"later")
        consumed = await old_wait_queue(client, 700)
        earlier = await old_wait_queue(client, 1_075, b"of an earlier version")
        await (await client.channel.get_queue(consumed)).consume(AsyncMock())
        await client.declare("shop.retry.77")
        listed = await asyncio.to_thread(here, tmp_path, "topology", "prune", "--dry-run", "--json", *API, **env)
        assert [it["queue"] for it in json.loads(listed.out)] == [stuck, empty, consumed, earlier, draining, waiting]
        refused = await asyncio.to_thread(here, tmp_path, "topology", "prune", *API, **env)
        assert refused.code == 1  # no one answers the question
        ran = await asyncio.to_thread(
            here, tmp_path, "topology", "prune", "--yes", "--json", "--wait", "12", *API, **env
        )
        assert ran.code == 1
        ended = {it["queue"]: (it["verdict"], it["messages"]) for it in json.loads(ran.out)}
        assert ended == {
            stuck: ("not empty", 1),
            empty: ("deleted", 0),
            earlier: ("deleted", 0),
            draining: ("deleted", 0),
            waiting: ("not empty", 1),
            consumed: ("in use", 0),
        }
        assert [await client.depth(it) for it in (stuck, empty, draining, waiting)] == [0, None, None, 1]
        assert await client.depth("shop.retry.77") == 0
        await client.take(TOPOLOGY.due, 2)
        left = await shown(tmp_path, *API, **env)
        assert left["old"] == [stuck, consumed, waiting]
        assert {it["state"] for it in left["queues"]} == {"exists"}


async def test_without_statistics_old_wait_queues_are_kept_soon_and_the_fix_is_named(
    node: Node, tmp_path: Path
) -> None:
    env = host(node, "blind")
    assert (await asyncio.to_thread(here, tmp_path, "topology", "apply", **env)).code == 0
    async with rabbit(env["RABBITMQ_URL"], "jobs", "shop", tidy=False) as client:
        old = await old_wait_queue(client, 500)
        node.control("eval", _DISABLE_STATISTICS.format("true"))
        try:
            began = time.monotonic()
            ran = await asyncio.to_thread(here, tmp_path, "topology", "prune", "--yes", *API, **env)
            took_s = time.monotonic() - began
        finally:
            node.control("eval", _DISABLE_STATISTICS.format("false"))
        assert ran.code == 1
        assert "reported no new statistics" in ran.out
        assert "rabbitmqctl delete_queue" in " ".join(ran.out.split())
        assert took_s < 40
        assert await client.depth(old) == 0


_DISABLE_STATISTICS = "application:set_env(rabbitmq_management_agent, disable_metrics_collector, {})."


async def test_check_reports_the_number_of_queues_and_of_free_descriptors(node: Node, tmp_path: Path) -> None:
    env = host(node, "sized")
    api = ManagementApi.of_broker(env["RABBITMQ_URL"], API[1])
    # a new node has no statistics for some seconds
    descriptors = await until(lambda: asyncio.to_thread(read_descriptors, api), "statistics")
    assert descriptors is not None
    assert 0 < descriptors.used < descriptors.total
    for total, level in ((descriptors.used + 125, "warning"), (descriptors.used + 126, "ok")):
        results: list[CheckResult] = []
        check = RabbitmqCheck(env["RABBITMQ_URL"], "rabbit", TOPOLOGY, results.append, shared=True)
        async with await aio_pika.connect(env["RABBITMQ_URL"]) as connection:
            await check.queues(connection, ManagementStatus(descriptors=replace(descriptors, total=total)))
        (size,) = (it for it in results if "14 queues with these settings, 9 of them wait queues" in it.text)
        assert size.level == level
        assert f"{total - descriptors.used} of {total} file descriptors free" in size.text


async def test_the_management_api_of_another_broker_is_refused(node: Node, stage: Stage) -> None:
    ran = await asyncio.to_thread(here, stage.folder, "topology", "prune", *API, **names(stage))
    assert f"belongs to {node.name.partition('@')[0]}@" in ran.out
    assert ", not to " in ran.out


async def test_without_the_management_api_old_wait_queues_are_listed_and_kept(stage: Stage) -> None:
    stage.worker(BASE_DELAY_MS="500")  # so that the end of the test removes its wait queues
    old = {**names(stage), "BASE_DELAY_MS": "500"}
    assert (await asyncio.to_thread(here, stage.folder, "topology", "apply", **old)).code == 0
    ran = await asyncio.to_thread(
        here, stage.folder, "topology", "prune", "--base-delay-ms", "500", *NO_API, **names(stage)
    )
    assert ran.code == 1
    assert f"{stage.rabbit.prefix}.retry.575 " in ran.out
    assert "does not answer" in ran.out
    assert "rabbitmqctl delete_queue" in ran.out
    assert await stage.rabbit.depth(f"{stage.rabbit.prefix}.retry.575") == 0
    none = await asyncio.to_thread(here, stage.folder, "topology", "prune", *NO_API, **old)
    assert none.code == 0
    assert "No wait queue of other settings was found." in none.out
    earlier = f"{stage.rabbit.prefix}.retry.1075"  # an earlier version declared more wait queues with the same settings
    await stage.rabbit.declare(earlier, **{"x-queue-type": "quorum"})
    try:
        ran = await asyncio.to_thread(here, stage.folder, "topology", "prune", *NO_API, **names(stage))
    finally:
        await stage.rabbit.channel.queue_delete(earlier)
    assert ran.code == 1
    assert f"{earlier} " in ran.out


async def test_with_the_embedded_broker_no_management_api_is_used(tmp_path: Path) -> None:
    url = f"memory://127.0.0.1:{free_port()}"
    broker = EmbeddedBroker.at(url)
    await broker.start()
    try:
        env = {"RABBITMQ_URL": url}
        shown = await otp_stream(tmp_path, "topology", "show", **env)
        assert "Bindings are not known: the embedded broker has no management API." in shown.out
        assert "otp.retry.due" in shown.out
        applied = await otp_stream(tmp_path, "topology", "apply", **env)
        assert "declared: queue otp.dead" in applied.out
        shown = await otp_stream(tmp_path, "topology", "show", **env)
        assert (shown.code, "15672" in shown.out, "missing" in shown.out) == (0, False, False)
        pruned = await otp_stream(tmp_path, "topology", "prune", "--yes", **env)
        assert (pruned.code, pruned.out.partition(":")[0]) == (0, "Nothing to prune")
        assert (await otp_stream(tmp_path, "topology", "prune", "--json", **env)).out == "[]\n"
    finally:
        await broker.stop()


async def apply(folder: Path, *words: str, **env: str) -> tuple[Ran, dict[str, Any]]:
    ran = await asyncio.to_thread(here, folder, "topology", "apply", "--json", *API, *words, **env)
    return ran, json.loads(ran.out)["policy"]


async def test_the_policy_is_set_updated_and_deleted_on_an_existing_queue(node: Node, tmp_path: Path) -> None:
    env = host(node, "plain")
    await asyncio.to_thread(here, tmp_path, "topology", "apply", **env, DEAD_LETTER_RETENTION="off")
    connection = await aio_pika.connect(env["RABBITMQ_URL"])
    async with connection:
        channel = await connection.channel()
        await channel.default_exchange.publish(aio_pika.Message(b"old"), "shop.dead")
        dry, planned = await apply(tmp_path, "--dry-run", **env)
        assert (dry.code, planned["state"]) == (0, "missing")
        _, policy = await apply(tmp_path, **env)
        assert policy == {
            "name": "shop.dead", "definition": {"message-ttl": 604_800_000}, "state": "set", "problem": None,
        }  # fmt: skip
        assert (await apply(tmp_path, **env))[1]["state"] == "exists"
        short = env | {"DEAD_LETTER_RETENTION": "1s", "DEAD_LETTER_MAX": "2"}
        assert (await apply(tmp_path, **short))[1]["state"] == "updated"

        async def depth() -> int | None:
            return (await channel.declare_queue("shop.dead", passive=True)).declaration_result.message_count

        async def is_applied() -> bool:
            # the limit of length also deletes what was there before
            for body in (b"a", b"b", b"c", b"d"):
                await channel.default_exchange.publish(aio_pika.Message(body), "shop.dead")
            return (await depth() or 0) <= 2

        await until(is_applied, "the policy in effect")

        async def is_empty() -> bool:
            return await depth() == 0

        await until(is_empty, "an empty queue")
        off = env | {"DEAD_LETTER_RETENTION": "off"}
        assert (await apply(tmp_path, **off))[1]["state"] == "deleted"
        assert (await apply(tmp_path, **off))[1]["state"] == "not needed"


async def test_another_policy_on_the_queue_is_not_changed_and_the_advice_says_what_to_add(
    node: Node, tmp_path: Path
) -> None:
    env = host(node, "theirs")
    node.control("set_policy", "-p", "theirs", "everything", ".*", '{"delivery-limit": 30}')
    _, policy = await apply(tmp_path, **env)
    assert policy["state"] == "other"
    assert (
        'the policy everything applies to the dead-letter queue, and only one can: add {"message-ttl"'
        in policy["problem"]
    )
    node.control("set_policy", "-p", "theirs", "everything", ".*", '{"delivery-limit": 30, "message-ttl": 604800000}')
    assert (await apply(tmp_path, **env))[1]["state"] == "exists"


async def test_without_the_management_api_the_command_is_shown_and_works(node: Node, tmp_path: Path) -> None:
    env = host(node, "bare")
    nowhere = f"http://127.0.0.1:{free_port()}"
    ran = await asyncio.to_thread(here, tmp_path, "topology", "apply", "--management-url", nowhere, **env)
    assert ran.code == 0, ran.out
    assert "the policy shop.dead was not set" in ran.out
    assert (
        r"""rabbitmqctl set_policy -p bare shop.dead '^shop\.dead$' '{"message-ttl": 604800000}' --apply-to queues"""
        in ran.out
    )
    node.control("set_policy", "-p", "bare", "shop.dead", r"^shop\.dead$", '{"message-ttl": 604800000}')
    assert (await apply(tmp_path, **env))[1]["state"] == "exists"
