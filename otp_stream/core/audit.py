"""What operators do: one audit record for each action, on the pages and by the commands."""

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from .masking import mask_address

Action = Literal[
    "dead.list",
    "dead.show",
    "dead.replay",
    "dead.drop",
    "dead.export",
    "forget",
    "relay.probe",
    "topology.apply",
    "topology.permissions",
    "topology.prune",
    "session.log_in",
    "session.log_out",
    "token.refused",
]
"""What was done: the command of the same name, the same on a page, or something about access."""

Result = Literal["started", "done", "refused", "cancelled", "interrupted", "failed"]
"""How an action ended.

`started`: it has begun, and another record with the same `id` follows; without that one, it was killed. `done`:
completely. `refused`: not allowed, so nothing was done. `cancelled`: the user did not confirm it. `interrupted` and
`failed`: `count` is what was done until then.
"""

EVENT = "audit"
"""The text of each audit line in the log, at level info, whatever `LOG_LEVEL` is."""

_ADDRESS = re.compile(r"[^\s=]+@\S+")
MAX_TEXT = 200
"""Maximum characters of a field that others write."""


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """One action. It contains no code, no address and no token."""

    action: Action
    result: Result
    by: str
    """The name of the token; for a command, the user of the operating system and the host. `-`: not known."""
    source: str
    """The client's IP address; for a command, the host and the terminal."""
    count: int | None = None
    """How many dead letters, relays, queues or entries."""
    target: str | None = None
    """What the action was about: a filter, a relay, queues, the hash of a recipient."""
    details: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Other fields, such as `role` and `error`."""

    def fields(self) -> dict[str, Any]:
        """Return all fields that have a value, for the log line."""
        target = self.target and _shown(self.target)
        named = {"action": self.action, "result": self.result, "by": self.by, "source": self.source}
        details = {name: _shown(value) if isinstance(value, str) else value for name, value in self.details.items()}
        fields = {**named, "count": self.count, "target": target, **details}
        return {name: value for name, value in fields.items() if value is not None}


def new_id() -> str:
    """Return an id for the two records of an action: `started`, and how it ended."""
    return secrets.token_hex(4)


def _shown(text: str) -> str:
    return _ADDRESS.sub(lambda found: mask_address(found[0]), printable(text))


def printable(text: str) -> str:
    """Return a text of others without characters that control a terminal, and cut to `MAX_TEXT`."""
    return "".join(it if it.isprintable() else "\N{REPLACEMENT CHARACTER}" for it in text[:MAX_TEXT])
