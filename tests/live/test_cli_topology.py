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

from otp_stream.broker import queue_inspect as standing
from otp_stream.broker.control import Control
from otp_stream.broker.lane import LaneConsumer
from otp_stream.broker.management_api import Management, Seen, descriptors
from otp_stream.broker.topology import Topology
from otp_stream.checks.rabbitmq import Checkup
from otp_stream.core.backoff import Backoff
from otp_stream.core.check_result import Finding
from otp_stream.embedded import EmbeddedBroker

HTTP_PORT = free_port()
API = ("--management-url", f"http://127.0.0.1:{HTTP_PORT}")
NO_API = ("--management-url", f"http://127.0.0.1:{free_port()}")
TODAY = Topology("jobs", "shop", Backoff(1000, 30000, 3, retry_greylisted=True))


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """Start a RabbitMQ with the management API, whose figures come every second."""
    node = Node(tmp_path_factory.mktemp("node"), settings=with_management(HTTP_PORT), plugins="rabbitmq_management")
    node.start()
    node.control("eval", "application:set_env(rabbit, quorum_tick_interval, 500).")
    yield node
    node.remove()


def host(node: Node, name: str, *options: str) -> dict[str, str]:
    """Make a virtual host; returns the settings of a worker there."""
    node.control("add_vhost", name, *options)
    node.control("set_permissions", "-p", name, "guest", ".*", ".*", ".*")
    return {"RABBITMQ_URL": f"{node.url}{name}", "RABBITMQ_QUEUE_NAME": "jobs", "RABBITMQ_PREFIX": "shop"}


async def shown(folder: Path, *options: str, **env: str) -> dict[str, Any]:
    return json.loads(
        (await asyncio.to_thread(here, folder, "topology", "show", "--json", *options, **env)).out.partition("\n}")[0]
        + "}"
    )


async def test_what_is_missing_is_told_and_made_once(stage: Stage) -> None:
    env = names(stage)
    before = await asyncio.to_thread(here, stage.folder, "topology", "show", **env)
    assert before.code == 1
    assert "15 missing: `otp-stream topology apply` makes them" in before.out
    told = await asyncio.to_thread(here, stage.folder, "topology", "apply", "--dry-run", **env)
    assert told.code == 1
    assert f"missing: queue {stage.rabbit.prefix}.retry.5200\n" in told.out
    assert await stage.rabbit.depth(f"{stage.rabbit.prefix}.dead") is None
    made = await asyncio.to_thread(here, stage.folder, "topology", "apply", "--json", **env)
    assert made.code == 0, made.out
    assert len(json.loads(made.out)["made"]) == 15
    again = await asyncio.to_thread(here, stage.folder, "topology", "apply", **env)
    assert (again.code, again.out) == (0, "Everything stands.\n")
    await stage.rabbit.publish(b"one", b"two")

    async def arrived() -> bool:
        return await stage.rabbit.depth() == 2

    await until(arrived, "two jobs")
    found = await shown(stage.folder, *NO_API, **env)
    jobs = {it["name"]: it for it in found["queues"]}[stage.rabbit.queue]
    assert (jobs["state"], jobs["type"], jobs["ready"], jobs["consumers"]) == ("stands", "classic", 2, 0)
    assert {it["state"] for it in found["bindings"]} == {"unknown"}


async def test_the_high_lane_is_made_as_a_quorum_queue_beside_one(stage: Stage) -> None:
    await stage.rabbit.declare(**{"x-queue-type": "quorum", "x-delivery-limit": 7})
    made = await asyncio.to_thread(here, stage.folder, "topology", "apply", **names(stage))
    assert made.code == 0, made.out
    found = await standing.queue(stage.rabbit.connection, f"{stage.rabbit.queue}.high", {})
    assert found is not None
    assert found.kind == "quorum"


async def test_what_stands_with_other_properties_is_told_with_its_cure_and_nothing_is_made(stage: Stage) -> None:
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


async def test_a_broker_or_virtual_host_that_is_not_there_is_named(stage: Stage) -> None:
    nowhere = f"amqp://u:hunter2@127.0.0.1:{free_port()}/"
    for url, told in ((nowhere, "does not answer"), (f"{stage.url}nope", "has no virtual host nope")):
        ran = await asyncio.to_thread(here, stage.folder, "topology", "apply", RABBITMQ_URL=url)
        assert ran.code == 1
        assert told in ran.out
        assert "hunter2" not in ran.out


async def _ran(folder: Path, *command: str, **env: str) -> Ran:
    if command[0] == "send":  # it handles signals, as only a main thread can
        return await otp_stream(folder, *command, **env)
    return await asyncio.to_thread(here, folder, *command, **env)


async def test_a_refused_virtual_host_is_explained_by_every_command_and_by_the_worker(stage: Stage) -> None:
    url = f"{stage.url}nosuch"
    told = "has no virtual host nosuch, or guest may not use it (NOT_ALLOWED - vhost nosuch not found); correct"
    commands = ("topology", "show"), ("send", "a@example.com"), ("dead", "list"), ("dead", "drop", "--all", "--yes")
    for command in commands:
        ran = await _ran(stage.folder, *command, RABBITMQ_URL=url)
        assert ran.code != 0
        assert told in ran.out, command
        assert "object at" not in ran.out
    worker = stage.worker(url=url)
    await worker.start(ready=False)
    await worker.wait_log("waiting for RabbitMQ")
    status, body = await worker.get("/readyz")
    assert status == 503
    assert told in body
    assert told in worker.log
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


async def test_definitions_that_are_imported_are_what_the_worker_wants(node: Node, tmp_path: Path) -> None:
    env = host(node, "copy")
    written = await asyncio.to_thread(here, tmp_path, "topology", "show", "--definitions", **env)
    assert written.code == 0, written.out
    assert (await shown(tmp_path, *API, **env))["queues"][1]["state"] == "missing"  # to write it makes nothing
    (tmp_path / "topology.json").write_text(written.out)
    node.control("import_definitions", str(tmp_path / "topology.json"))
    found = await shown(tmp_path, *API, **env)
    assert {it["state"] for kind in ("exchanges", "queues", "bindings") for it in found[kind]} == {"stands"}
    assert len(found["bindings"]) == len(TODAY.backoff.waits_ms)
    async with rabbit(env["RABBITMQ_URL"], "jobs", "shop", tidy=False) as client:
        await TODAY.apply(client.connection)  # as a worker's start does: a mismatch would raise
        await client.channel.queue_delete("jobs")
        await client.declare("jobs", **{"x-queue-type": "quorum", "x-delivery-limit": 7})
    told = json.loads((await asyncio.to_thread(here, tmp_path, "topology", "show", "--definitions", **env)).out)
    arguments = {it["name"]: it["arguments"] for it in told["queues"]}
    assert arguments["jobs"] == {"x-queue-type": "quorum", "x-delivery-limit": 7}
    assert arguments["jobs.high"] == {"x-queue-type": "classic"}


async def test_a_type_that_is_the_virtual_hosts_default_is_known(node: Node, tmp_path: Path) -> None:
    env = host(node, "plain-is-quorum", "--default-queue-type", "quorum")
    async with rabbit(env["RABBITMQ_URL"], "jobs", "shop", tidy=False) as client:
        await client.declare("jobs")
        await client.declare("jobs.high", **{"x-queue-type": "classic"})
        control = Control(env["RABBITMQ_URL"], TODAY)
        lanes = [cast("LaneConsumer", SimpleNamespace(lane=lane, queue=queue)) for lane, queue in TODAY.lanes.items()]
        await control.apply(lanes)
        await control.close()
    # a stop publishes the messages of a quorum queue as new ones, because it counts what comes back
    assert {it.lane: it.counts_returns for it in lanes} == {"high": False, "jobs": True, "due": True}
    found = {it["name"]: it["type"] for it in (await shown(tmp_path, *API, **env))["queues"]}
    assert (found["jobs"], found["jobs.high"]) == ("quorum", "classic")
    told = json.loads((await asyncio.to_thread(here, tmp_path, "topology", "show", "--definitions", **env)).out)
    kinds = {it["name"]: it["arguments"].get("x-queue-type") for it in told["queues"]}
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


async def old_rung(client: Rabbit, wait_ms: int, *bodies: bytes, bind: bool = True) -> str:
    """Make a wait queue of other settings, with jobs in it."""
    name = TODAY.rung(wait_ms)
    arguments = TODAY.arguments[TODAY.rung(1150)] | {"x-message-ttl": wait_ms}
    queue = await client.channel.declare_queue(name, durable=True, arguments=arguments)
    if bind:
        await queue.bind(TODAY.retry.name, str(wait_ms))
    await client.publish(*bodies, to=name)
    return name


async def test_old_wait_queues_are_deleted_once_they_hold_nothing_and_no_other_queue_is(
    node: Node, tmp_path: Path
) -> None:
    env = host(node, "old")
    assert (await asyncio.to_thread(here, tmp_path, "topology", "apply", **env)).code == 0
    async with rabbit(env["RABBITMQ_URL"], "jobs", "shop", tidy=False) as client:
        await client.channel.queue_delete(TODAY.due)
        stuck = await old_rung(client, 100, b"stuck")

        async def over() -> bool:
            return await client.depth(stuck) == 0

        await until(over, "the end of its wait")
        await TODAY.apply(client.connection)  # it is tried again after three minutes; till then AMQP counts nothing
        empty, draining = await old_rung(client, 500), await old_rung(client, 4_000, b"soon")
        waiting = await old_rung(client, 600_000, b"later")
        consumed = await old_rung(client, 700)
        earlier = await old_rung(client, 1_075, b"of an earlier version")
        await (await client.channel.get_queue(consumed)).consume(AsyncMock())
        await client.declare("shop.retry.77")
        told = await asyncio.to_thread(here, tmp_path, "topology", "prune", "--dry-run", "--json", *API, **env)
        assert [it["queue"] for it in json.loads(told.out)] == [stuck, empty, consumed, earlier, draining, waiting]
        refused = await asyncio.to_thread(here, tmp_path, "topology", "prune", *API, **env)
        assert refused.code == 1  # nobody is there to say yes
        ran = await asyncio.to_thread(
            here, tmp_path, "topology", "prune", "--yes", "--json", "--wait", "12", *API, **env
        )
        assert ran.code == 1
        ended = {it["queue"]: (it["verdict"], it["messages"]) for it in json.loads(ran.out)}
        assert ended == {
            stuck: ("holds", 1),
            empty: ("deleted", 0),
            earlier: ("deleted", 0),
            draining: ("deleted", 0),
            waiting: ("holds", 1),
            consumed: ("in use", 0),
        }
        assert [await client.depth(it) for it in (stuck, empty, draining, waiting)] == [0, None, None, 1]
        assert await client.depth("shop.retry.77") == 0
        await client.take(TODAY.due, 2)
        left = await shown(tmp_path, *API, **env)
        assert left["old"] == [stuck, consumed, waiting]
        assert {it["state"] for it in left["queues"]} == {"stands"}


async def test_where_no_figures_are_collected_old_wait_queues_are_left_soon_and_the_advice_helps(
    node: Node, tmp_path: Path
) -> None:
    env = host(node, "blind")
    assert (await asyncio.to_thread(here, tmp_path, "topology", "apply", **env)).code == 0
    async with rabbit(env["RABBITMQ_URL"], "jobs", "shop", tidy=False) as client:
        old = await old_rung(client, 500)
        node.control("eval", _COLLECTS_NOTHING.format("true"))
        try:
            began = time.monotonic()
            ran = await asyncio.to_thread(here, tmp_path, "topology", "prune", "--yes", *API, **env)
            took_s = time.monotonic() - began
        finally:
            node.control("eval", _COLLECTS_NOTHING.format("false"))
        assert ran.code == 1
        assert "reported no fresh statistics" in ran.out
        assert "rabbitmqctl delete_queue" in " ".join(ran.out.split())
        assert took_s < 40
        assert await client.depth(old) == 0


_COLLECTS_NOTHING = "application:set_env(rabbitmq_management_agent, disable_metrics_collector, {})."


async def test_check_tells_how_many_queues_there_are_and_descriptors_left(node: Node, tmp_path: Path) -> None:
    env = host(node, "sized")
    told = descriptors(Management.beside(env["RABBITMQ_URL"], API[1]))
    assert told is not None
    assert 0 < told.used < told.total
    for total, level in ((told.used + 116, "warning"), (told.used + 117, "ok")):
        found: list[Finding] = []
        checkup = Checkup(env["RABBITMQ_URL"], "rabbit", TODAY, found.append, shared=True)
        async with await aio_pika.connect(env["RABBITMQ_URL"]) as connection:
            await checkup.queues(connection, Seen(descriptors=replace(told, total=total)))
        (size,) = (it for it in found if "13 queues with these settings, 9 of them wait queues" in it.text)
        assert size.level == level
        assert f"{total - told.used} of {total} file descriptors free" in size.text


async def test_the_management_api_of_another_broker_is_not_believed(node: Node, stage: Stage) -> None:
    ran = await asyncio.to_thread(here, stage.folder, "topology", "prune", *API, **names(stage))
    assert f"speaks for {node.name.partition('@')[0]}@" in ran.out
    assert ", not for " in ran.out


async def test_without_the_management_api_old_wait_queues_are_told_and_left(stage: Stage) -> None:
    stage.worker(BASE_DELAY_MS="500")  # its wait queues are removed with the test's
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
    earlier = f"{stage.rabbit.prefix}.retry.1075"  # a version before made more wait queues with the same settings
    await stage.rabbit.declare(earlier, **{"x-queue-type": "quorum"})
    try:
        ran = await asyncio.to_thread(here, stage.folder, "topology", "prune", *NO_API, **names(stage))
    finally:
        await stage.rabbit.channel.queue_delete(earlier)
    assert ran.code == 1
    assert f"{earlier} " in ran.out


async def test_with_the_embedded_broker_no_management_api_is_asked(tmp_path: Path) -> None:
    url = f"memory://127.0.0.1:{free_port()}"
    broker = EmbeddedBroker.at(url)
    await broker.start()
    try:
        env = {"RABBITMQ_URL": url}
        shown = await otp_stream(tmp_path, "topology", "show", **env)
        assert "Bindings are not known: the embedded broker has no management API." in shown.out
        assert "otp.retry.due" in shown.out
        made = await otp_stream(tmp_path, "topology", "apply", **env)
        assert "made: queue otp.dead" in made.out
        shown = await otp_stream(tmp_path, "topology", "show", **env)
        assert (shown.code, "15672" in shown.out, "missing" in shown.out) == (0, False, False)
        pruned = await otp_stream(tmp_path, "topology", "prune", "--yes", **env)
        assert (pruned.code, pruned.out.partition(":")[0]) == (0, "Nothing to prune")
        assert (await otp_stream(tmp_path, "topology", "prune", "--json", **env)).out == "[]\n"
    finally:
        await broker.stop()
