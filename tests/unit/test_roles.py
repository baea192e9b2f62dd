"""The permissions of each role, by the names that they match."""

import re

import pytest

from otp_stream.broker.locks import locks_of
from otp_stream.broker.topology import Topology
from otp_stream.checks.roles import Action, Role, RoleName, roles_of
from otp_stream.core.backoff import Backoff

TOPOLOGY = Topology("a.send", "a.b", Backoff(1000, 30_000, 3), ("acme", "ümlaut GmbH"))
ROLES = roles_of(TOPOLOGY)
OURS = [
    TOPOLOGY.jobs, TOPOLOGY.high, *TOPOLOGY.arguments, *TOPOLOGY.tenant_queues, *locks_of(TOPOLOGY.dead),
    *(it.name for it in TOPOLOGY.exchanges), "amq.default", "amq.gen-Zx", "amq.direct", "amq.topic",
]  # fmt: skip


def permitted(role: Role, action: Action) -> set[str]:
    # as RabbitMQ does: the pattern may match anywhere in the name
    return {it for it in OURS if re.search(role.patterns[action], it)}


def test_a_producer_may_write_to_the_exchange_for_jobs_and_nothing_else() -> None:
    producer = ROLES["producer"]
    assert permitted(producer, "write") == {"a.b.jobs"}
    assert permitted(producer, "configure") == permitted(producer, "read") == set()
    assert not producer.tags


def test_a_viewer_reads_events_and_its_own_queues() -> None:
    viewer = ROLES["viewer"]
    assert permitted(viewer, "read") == {"a.b.events", "amq.gen-Zx"}
    assert permitted(viewer, "configure") == permitted(viewer, "write") == {"amq.gen-Zx"}


def test_a_worker_has_nothing_of_other_applications_but_the_default_exchange() -> None:
    worker = ROLES["worker"]
    assert permitted(worker, "configure") == set(OURS) - {"amq.default", "amq.gen-Zx", "amq.direct", "amq.topic"}
    assert not {"a.b.dead", "a.b.retry.due", "a.b.jobs"} & permitted(worker, "write")


def test_an_operator_reads_dead_letters_and_events_and_has_no_way_to_have_jobs_copied() -> None:
    operator = ROLES["operator"]
    # to bind a queue to an exchange takes read on the exchange, to have jobs expire into a queue takes a policy
    assert permitted(operator, "read") == {"a.b.dead", "a.b.events", "amq.gen-Zx"}
    assert "policymaker" not in operator.tags
    assert not {"a.b.events", "a.b.retry"} & permitted(operator, "write")


def test_an_operator_deletes_no_queue_but_locks_and_its_own() -> None:
    assert permitted(ROLES["operator"], "configure") == {"a.b.dead.hands", "a.b.dead.hands.wait", "amq.gen-Zx"}


def test_a_deployer_declares_what_a_worker_does_but_reads_neither_new_jobs_nor_dead_letters() -> None:
    deployer, worker = ROLES["deployer"], ROLES["worker"]
    assert permitted(deployer, "configure") == permitted(worker, "configure") - set(locks_of(TOPOLOGY.dead))
    assert not {"a.send", "a.send.high", "a.b.dead", "a.b.audit"} & permitted(deployer, "read")


def test_only_a_worker_and_a_deployer_may_bind_a_queue_to_the_exchanges_of_jobs() -> None:
    found = {name: {"a.b.jobs", "a.b.retry"} & permitted(role, "read") for name, role in ROLES.items()}
    assert [name for name, exchanges in found.items() if exchanges] == ["worker", "deployer"]


@pytest.mark.parametrize("role", ROLES)
def test_names_that_are_only_similar_are_not_permitted(role: RoleName) -> None:
    similar = [
        "aXsend",
        "aXb.jobs",
        "my.a.b.jobs",
        "a.b.jobs2",
        "a.b.dead2",
        "a.send.low",
        "a.b.retry.5x",
        "a.b.tenant.",
    ]
    for pattern in ROLES[role].patterns.values():
        assert [it for it in similar if re.search(pattern, it)] == []


def test_the_command_is_quoted_for_a_shell() -> None:
    command = ROLES["producer"].grant_command("shop eu", "o'neill")
    assert command == r"""rabbitmqctl set_permissions -p 'shop eu' 'o'"'"'neill' '^$' '^(a\.b\.jobs)$' '^$'"""
