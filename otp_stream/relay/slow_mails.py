"""Finds the mails that wait too long at a slow relay, and moves them to a faster one."""

import math
from time import monotonic

from .relay_choice import RelayChoice
from .slowness import Slowness
from .upstream import Upstream


def check(upstream: Upstream, slowness: Slowness, choice: RelayChoice, now_ms: int) -> bool:
    """Check all connections of a relay; `now_ms` is the clock of its circuit breaker.

    Returns whether it has become slow or fast again.
    """
    now, pool = monotonic(), upstream.pool
    slowness.check(now)
    limit = upstream.rate.allowed(now)
    upstream.availability.room = math.inf if limit is None else max(limit, 1.0)
    mails = [(it, it.current) for it in pool.open if it.current is not None]
    unusual = [(connection, mail) for connection, mail in mails if slowness.is_unusual(mail, now)]
    # a mail can leave the relay only until its content has been sent, which is worth a round trip, but for a backlog
    is_fast = not (unusual or slowness.detector.slow_sends or slowness.domains)
    pool.support.careful = not (is_fast and choice.has_backlog)
    # one reserved for urgent mails may be idle while all other connections are busy; the relay may accept fewer
    refuses_more = not pool.idle and now_ms < upstream.grow_from_ms
    is_full = refuses_more or len(pool.open) - len(pool.idle) >= upstream.config.ordinary_connections
    slowness.clogged = is_full and 2 * len(unusual) > len(pool.open)
    for connection, mail in unusual:
        if slowness.is_overdue(mail, now):
            slowness.mail_is_slow(mail, now)
            if faster := choice.faster_for(upstream.availability, mail):
                mail.switches += 1
                mail.switched_from, mail.prefer = upstream.availability.name, faster.name
                opened = mail.probe and upstream.availability.probe_too_slow(now_ms)
                slowness.switches[connection.withdraw_slow(mail)] += 1
                if opened:
                    upstream.breaker_changed()
    return slowness.has_changed()
