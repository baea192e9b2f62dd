"""The relays of all tenants: each mail is sent over those of its tenant."""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .core.address import wire_address
from .core.mail import Mail, OutdatedMailError
from .core.outcome import Outcome, TimedOut
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
        self._of_tenant: Mapping[str, tuple[SmtpRelay, str]] = {}
        """The relay and the envelope's MAIL FROM address of each tenant but the default one."""
        self._retiring: dict[asyncio.Task[None], SmtpRelay] = {}
        self._finished = False
        self.use(tenants)

    async def send(self, mail: Mail, *, wanted: Callable[[], bool] = lambda: True, **options: Any) -> Outcome:
        """Send a mail as `SmtpRelay.send` does.

        Raises `OutdatedMailError` if its tenant has another sender or relay now, or is removed, also while the mail
        waits: no relay gets the mail of a sender that is not configured for it.
        """
        route = self._of_tenant.get(mail.tenant)
        relay, sender = route or (self._default, None)
        if mail.tenant and mail.sender != sender:
            raise OutdatedMailError

        def is_current() -> bool:
            return self._of_tenant.get(mail.tenant) == route

        try:
            outcome = await relay.send(mail, wanted=lambda: is_current() and wanted(), **options)
        except RelayRetiredError:
            raise (asyncio.CancelledError if self._finished else OutdatedMailError) from None
        if isinstance(outcome, TimedOut) and not is_current():
            raise OutdatedMailError
        return outcome

    def use(self, tenants: Tenants) -> None:
        """Use the relays of these tenants. `send` raises for mails that wait for another group, or with another sender.

        A group that no tenant has any more is closed.
        """
        known = {group.values: group for group in self._groups.values()}
        groups: dict[str, _Group] = {}
        members = Counter(it.group for it in tenants.listed.values())
        for name, settings in tenants.groups.items():
            shared = members[name] > 1
            # the sender is that of the first tenant, whose domain is the name in EHLO; the name is that of the relays,
            # which another group may have next
            values = (name, relay_values(settings), shared, settings.sender, settings.envelope_sender)
            groups[name] = known.pop(values, None) or _Group(self._make(name, settings, shared), values)
        self._groups = groups
        self._of_tenant = {
            name: (groups[it.group].relay if it.group else self._default, _sender(it.settings))
            for name, it in tenants.listed.items()
        }
        senders: dict[SmtpRelay, set[str | None]] = {self._default: {None}}
        for relay, sender in self._of_tenant.values():
            senders.setdefault(relay, set()).add(sender)
        for relay, its in senders.items():
            relay.use_senders(its)
        for group in known.values():
            self._retire(group.relay)
        self.recheck()  # mails of tenants that have left a group which stays

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

    def _all(self) -> list[SmtpRelay]:
        return [self._default, *(group.relay for group in self._groups.values()), *self._retiring.values()]

    def _retire(self, relay: SmtpRelay) -> None:
        relay.retire()
        task = asyncio.create_task(relay.close(grace_s=_LAST_REPLY_S))
        self._retiring[task] = relay
        task.add_done_callback(self._retiring.pop)


def _sender(settings: Settings) -> str:
    return wire_address(settings.envelope_sender or settings.sender[1])


def _was_used(relay: RelayState) -> bool:
    return bool(relay.connects or relay.waiting or relay.circuit_breaker != "closed")


def _is(relay: RelayState, name: str | None) -> bool:
    return relay.name == name if name is not None else _was_used(relay)
