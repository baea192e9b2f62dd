"""The relays of all tenants: each mail is sent over those of its tenant."""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .core.mail import Mail
from .core.outcome import Outcome
from .core.probe import Probed
from .core.state import RelayState
from .relay import RelayRetiredError, SmtpRelay
from .settings import Settings, Tenants
from .settings.tenants import relay_values

_LAST_REPLY_S = 660.0
"""How long a group that is no longer used may take for its mails in flight: a relay has ten minutes for its last reply,
and a mail whose connection is closed before might be sent twice."""


@dataclass(eq=False, slots=True)
class _Group:
    relay: SmtpRelay
    values: tuple[object, ...]
    """What defines it."""


class RelayGroups:
    """Tenants with the same relays share a group: its connections, circuit breakers and rates.

    A group that has trouble delays no mail of another one. `default` are the relays of the default tenant, which are
    never replaced; `make` returns the relays for a group's name and settings, and for whether several tenants share
    them. Nothing connects before the first mail of a group.
    """

    def __init__(self, default: SmtpRelay, make: Callable[[str, Settings, bool], SmtpRelay], tenants: Tenants) -> None:
        self._default = default
        self._make = make
        self._groups: dict[str, _Group] = {}
        self._of_tenant: Mapping[str, SmtpRelay] = {}
        self._retiring: dict[asyncio.Task[None], SmtpRelay] = {}
        self._finished = False
        self.use(tenants)

    async def send(self, mail: Mail, **options: Any) -> Outcome:
        """Send a mail as `SmtpRelay.send` does."""
        while True:
            try:
                return await self._relay(mail.tenant).send(mail, **options)
            except RelayRetiredError:
                if self._finished:
                    raise asyncio.CancelledError from None

    def use(self, tenants: Tenants) -> None:
        """Use the relays of these tenants. Mails that wait for a group that no longer exists move to the new one."""
        known = {group.values: group for group in self._groups.values()}
        groups: dict[str, _Group] = {}
        members = Counter(it.group for it in tenants.listed.values())
        for name, settings in tenants.groups.items():
            shared = members[name] > 1
            # the sender is that of the first tenant, whose domain is the name in EHLO
            values = (relay_values(settings), shared, settings.sender, settings.envelope_sender)
            groups[name] = known.pop(values, None) or _Group(self._make(name, settings, shared), values)
        self._groups = groups
        self._of_tenant = {
            name: groups[it.group].relay if it.group else self._default for name, it in tenants.listed.items()
        }
        for group in known.values():
            self._retire(group.relay)

    def recheck(self) -> None:
        """Time out the queued mails that are no longer wanted."""
        for relay in self._all():
            relay.recheck()

    def state(self) -> tuple[RelayState, ...]:
        """Return the state of each relay of the default group."""
        return self._default.state()

    def states(self) -> dict[str, tuple[RelayState, ...]]:
        """Return the states of the relays of every other group that has had a mail, by the group's name."""
        states = {name: group.relay.state() for name, group in self._groups.items()}
        return {name: relays for name, relays in states.items() if any(map(_was_used, relays))}

    async def probe(self, name: str | None = None) -> list[Probed]:
        """Send the next probe now to the relays that take no mail: to all of them, or to the one called `name`."""
        relays = [relay for relay in self._all() if any(_is(it, name) for it in relay.state())]
        return [it for probed in await asyncio.gather(*(relay.probe(name) for relay in relays)) for it in probed]

    def retry_logins(self) -> None:
        """Try refused logins again at once, because their secrets are other ones now."""
        for relay in self._all():
            relay.retry_logins()

    def finish(self) -> None:
        """Cancel the waiting calls. Mails in flight are completed."""
        self._finished = True
        for relay in self._all():
            relay.finish()

    async def close(self) -> None:
        """Let mails in flight finish within a second and QUIT. Waiting calls are cancelled."""
        self._finished = True
        for task in self._retiring:
            task.cancel()
        await asyncio.gather(*(relay.close() for relay in self._all()))

    def _relay(self, tenant: str) -> SmtpRelay:
        return self._of_tenant.get(tenant, self._default)

    def _all(self) -> list[SmtpRelay]:
        return [self._default, *(group.relay for group in self._groups.values()), *self._retiring.values()]

    def _retire(self, relay: SmtpRelay) -> None:
        relay.retire()
        task = asyncio.create_task(relay.close(grace_s=_LAST_REPLY_S))
        self._retiring[task] = relay
        task.add_done_callback(self._retiring.pop)


def _was_used(relay: RelayState) -> bool:
    return bool(relay.connects or relay.waiting or relay.circuit_breaker != "closed")


def _is(relay: RelayState, name: str | None) -> bool:
    return relay.name == name if name is not None else _was_used(relay)
