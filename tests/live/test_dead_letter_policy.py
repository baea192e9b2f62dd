"""The policy of the dead-letter queue: `topology apply` sets, updates and deletes it, and respects that of others."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aio_pika
import pytest
from cli import Ran, here
from rabbitmq import Node, free_port, until, with_management

HTTP_PORT = free_port()
API = ("--management-url", f"http://127.0.0.1:{HTTP_PORT}")


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    node = Node(tmp_path_factory.mktemp("node"), settings=with_management(HTTP_PORT), plugins="rabbitmq_management")
    node.start()
    yield node
    node.remove()


def host(node: Node, name: str) -> dict[str, str]:
    node.control("add_vhost", name)
    node.control("set_permissions", "-p", name, "guest", ".*", ".*", ".*")
    return {"RABBITMQ_URL": f"{node.url}{name}", "RABBITMQ_QUEUE_NAME": "jobs", "RABBITMQ_PREFIX": "shop"}


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
