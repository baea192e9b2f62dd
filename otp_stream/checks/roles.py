"""The RabbitMQ users of a deployment, and the permissions that each of them needs, and no more."""

import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from otp_stream.broker.locks import locks_of
from otp_stream.broker.topology import Topology

Action = Literal["configure", "write", "read"]
RoleName = Literal["producer", "worker", "operator", "deployer", "viewer"]
DEFAULT_EXCHANGE = "amq.default"
"""The name of the default exchange in permissions."""


@dataclass(frozen=True)
class Role:
    """A kind of user. The permissions are regular expressions, each for one kind of queue or exchange."""

    name: RoleName
    purpose: str
    configure: tuple[str, ...] = ()
    write: tuple[str, ...] = ()
    read: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    """What the user may do with the management API."""

    @cached_property
    def patterns(self) -> dict[Action, str]:
        """The permissions as RabbitMQ stores them."""
        return {"configure": _any_of(self.configure), "write": _any_of(self.write), "read": _any_of(self.read)}

    def permits(self, action: Action, name: str) -> bool:
        """Return whether the role may do this with a queue or an exchange."""
        return re.fullmatch(self.patterns[action], name) is not None

    def refused(self, needed: Iterable[tuple[Action, str]]) -> list[tuple[Action, str]]:
        """Return those of some permissions that the role does not have."""
        return [it for it in needed if not self.permits(*it)]

    def grant_command(self, virtual_host: str, user: str) -> str:
        """Return the command that grants a user these permissions."""
        return shlex.join(["rabbitmqctl", "set_permissions", "-p", virtual_host, user, *self.patterns.values()])


def roles_of(topology: Topology) -> dict[RoleName, Role]:
    """Return the roles of a deployment."""
    names = _Names(topology)
    found = (
        Role("producer", "publishes jobs to the exchange for jobs", write=(names.jobs_exchange,)),
        _worker(names),
        _operator(names),
        _deployer(names),
        Role(
            "viewer",
            "follows events, and sees queues in the management API",
            configure=(names.server_named,),
            write=(names.server_named,),
            read=(names.events, names.server_named),
            tags=("management",),
        ),
    )
    return {it.name: it for it in found}


def _worker(names: "_Names") -> Role:
    return Role(
        "worker",
        "declares the topology, processes jobs, sweeps dead letters, and replays them from its page",
        configure=(*names.producers, *names.declared, names.dead_lock, names.sweep_lock),
        # the default exchange: it publishes dead letters and moved jobs, and waits end, through it
        write=(names.default_exchange, *names.producers, names.events, names.retry, names.wait_queues),
        # RabbitMQ requires read for a queue with a dead-letter exchange, and for an exchange to which a queue is bound
        read=(*names.producers, names.dead, names.due, names.audit, names.jobs_exchange, names.retry, *names.waiting),
    )


def _operator(names: "_Names") -> Role:
    # with read on `otp.jobs` it could bind its own queue, with a policy redirect jobs, and read both
    return Role(
        "operator",
        "runs the commands of every day: dead, forget, check, send, load, livecheck, topology show",
        configure=(names.dead_lock, names.server_named),
        # it replays dead letters through the default exchange, and sends test codes through both
        write=(names.default_exchange, names.jobs_exchange, names.server_named),
        read=(names.dead, names.events, names.server_named),
        tags=("monitoring",),
    )


def _deployer(names: "_Names") -> Role:
    return Role(
        "deployer",
        "runs topology apply and prune, and sets policies; can have jobs copied to a queue that it reads",
        configure=(*names.producers, *names.declared),
        write=(names.default_exchange, *names.producers, names.wait_queues),
        read=(names.due, names.jobs_exchange, names.retry, *names.waiting),
        tags=("monitoring", "policymaker"),
    )


class _Names:
    """Regular expressions of the names of queues and exchanges."""

    def __init__(self, topology: Topology) -> None:
        self.default_exchange = re.escape(DEFAULT_EXCHANGE)
        self.server_named = r"amq\.gen-.+"
        """Queues that RabbitMQ names: each follower of events has one, which no other connection can use."""
        self.producers = (re.escape(topology.jobs), re.escape(topology.high))
        self.dead, self.due = re.escape(topology.dead), re.escape(topology.due)
        locks = locks_of(topology.dead)
        self.dead_lock = f"{re.escape(locks.read)}|{re.escape(locks.wait)}"
        self.sweep_lock = re.escape(locks.sweep)
        self.audit = re.escape(topology.audit)
        self.jobs_exchange, self.retry, self.events = (
            re.escape(it.name) for it in (topology.jobs_exchange, topology.retry, topology.events)
        )
        self.wait_queues = f"{re.escape(topology.wait_queue(0)[:-1])}[0-9]+"
        self.waiting = (self.wait_queues, f"{re.escape(topology.tenant_prefix)}.+")
        """The queues whose messages expire."""
        self.declared = (self.dead, self.due, self.audit, self.events, self.jobs_exchange, self.retry, *self.waiting)


def _any_of(patterns: tuple[str, ...]) -> str:
    return f"^({'|'.join(patterns)})$" if patterns else "^$"
