"""The management plugin's HTTP API, for what AMQP cannot tell. It may not be there, and no worker depends on it."""

import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

import requests

_TIMEOUT_S = 5.0
_QUEUES = {"all", "queues", "classic_queues", "quorum_queues"}


@dataclass(frozen=True, slots=True)
class Policy:
    """What policies make of one queue."""

    name: str
    """As it is called in texts."""
    clear: tuple[str, ...]
    """What `rabbitmqctl` is told to take it away, but for the virtual host."""
    definition: dict[str, Any]


@dataclass(slots=True)
class Seen:
    """What the API told."""

    policies: dict[str, Policy] = field(default_factory=dict[str, Policy])
    """By queue, whether or not it stands already."""
    error: str = ""
    """Why policies were not seen; empty where they were."""
    nodes: int = 1
    """On how many nodes RabbitMQ keeps our quorum queues."""
    descriptors: "Descriptors | None" = None
    """`None` where it did not say: it tells them only to a user with the tag `monitoring`."""
    ahead_s: float | None = None
    """How far its clock is ahead of ours, to the second; `None` where it did not say."""


@dataclass(frozen=True, slots=True)
class Descriptors:
    """File descriptors of the node that has the fewest left."""

    node: str
    used: int
    total: int

    @property
    def free(self) -> int:
        """How many are left."""
        return self.total - self.used


class ManagementError(Exception):
    """The API does not tell; the text says why."""


@dataclass(frozen=True, slots=True)
class Management:
    """The API of the broker at an AMQP URL; `url` has neither user nor password in it."""

    url: str
    host: str
    """The virtual host."""
    _auth: tuple[str, str] = field(repr=False)
    _ca_file: str | None = None

    @classmethod
    def beside(cls, amqp_url: str, url: str | None = None) -> "Management":
        """Return the one at its usual port, or at `url`. The password goes over TLS where it does to the broker."""
        parts = urlsplit(amqp_url)
        scheme, port = ("https", 15671) if parts.scheme == "amqps" else ("http", 15672)
        name = parts.hostname or "localhost"
        host = f"[{name}]" if ":" in name else name
        auth = (unquote(parts.username or "guest"), unquote(parts.password or "guest"))
        ca_file = parse_qs(parts.query).get("cafile", [None])[0]
        return cls((url or f"{scheme}://{host}:{port}").rstrip("/"), vhost(amqp_url), auth, ca_file)

    def get(
        self, path: str, query: Mapping[str, str] | None = None, *, absent: bool = False
    ) -> tuple[Any, float | None]:
        """Ask for a path, in which `{host}` is the virtual host; `None` for what is not there, if it may be `absent`.

        Returns how far the API's clock is ahead of ours as well (seconds). Raises `ManagementError`.
        """
        began = time.time()
        try:
            with requests.Session() as session:
                session.trust_env = False  # a broker stands behind no proxy, and .netrc knows no user of it
                answer = session.get(
                    f"{self.url}/api/{path.format(host=quote(self.host, safe=''))}",
                    params=query, auth=self._auth, timeout=_TIMEOUT_S,
                    verify=self._ca_file or True, allow_redirects=False,
                )  # fmt: skip
            if answer.status_code not in {200, 404 if absent else 200}:
                raise ManagementError(f"{self.url} {_told(answer.status_code)}")
            content = answer.json() if answer.status_code == 200 else None
        except (requests.RequestException, ValueError) as error:
            raise ManagementError(f"{self.url} does not answer ({type(error).__name__})") from None
        return content, _ahead_s(answer.headers.get("Date"), (began + time.time()) / 2)


def look(url: str, queues: Iterable[str], quorum_queue: str) -> Seen:
    """Ask for the policies of these queues, and on how many nodes `quorum_queue` is, which may be missing."""
    api = Management.beside(url)
    seen = Seen()
    listed: dict[str, list[dict[str, Any]]] = {}
    try:
        for kind, path in (("policy", "policies"), ("operator policy", "operator-policies")):
            listed[kind], seen.ahead_s = api.get(f"{path}/{{host}}")
        seen.policies = {name: found for name in queues if (found := _policy(name, listed))}
        seen.nodes = nodes(api.get(queue_path(quorum_queue), absent=True)[0])
    except (ManagementError, re.error) as error:
        seen.error = str(error)
    else:
        seen.descriptors = descriptors(api)
    return seen


def queue_path(name: str) -> str:
    """Return the path of a queue, as `Management.get` takes it."""
    return f"queues/{{host}}/{quote(name, safe='')}"


def nodes(quorum_queue: Mapping[str, Any] | None) -> int:
    """Return on how many nodes a quorum queue is, by the API's answer about it; one where there is no such queue."""
    return len((quorum_queue or {}).get("members", ())) or 1


def descriptors(api: Management) -> Descriptors | None:
    """Return those of the node that has the fewest left; `None` where the API does not tell them."""
    try:
        listed: list[dict[str, Any]]
        listed, _ = api.get("nodes", {"columns": "name,fd_used,fd_total"})
    except ManagementError:
        return None
    # where it counts none, it says 0
    told = [Descriptors(it["name"], it["fd_used"], it["fd_total"]) for it in listed if it.get("fd_used")]
    return min(told, key=lambda it: it.free, default=None)


def vhost(url: str) -> str:
    """Return the virtual host that a URL names."""
    return unquote(urlsplit(url).path[1:]) or "/"


def _told(status: int) -> str:
    if status in {401, 403}:
        return f"refuses this user (HTTP {status}); it needs the tag `management`, for policies `policymaker`"
    return "knows no such virtual host, or is not RabbitMQ's" if status == 404 else f"says HTTP {status}"


def _ahead_s(date: str | None, at: float) -> float | None:
    if date is None:
        return None
    try:
        # it tells whole seconds: half of one is the best guess
        return parsedate_to_datetime(date).timestamp() + 0.5 - at
    except ValueError:
        return None


def _policy(name: str, kinds: dict[str, list[dict[str, Any]]]) -> Policy | None:
    """Return what holds for a queue: of each kind the matching one of the highest priority; of two numbers the less."""
    names: dict[str, str] = {}
    definition: dict[str, Any] = {}
    for kind, listed in kinds.items():
        fitting = [it for it in listed if it["apply-to"] in _QUEUES and re.search(it["pattern"], name)]
        if fitting:
            best = max(fitting, key=lambda it: it.get("priority", 0))
            names[kind] = best["name"]
            for key, value in best["definition"].items():
                both = isinstance(value, int) and isinstance(definition.get(key), int)
                definition[key] = min(value, definition[key]) if both else value
    if not names:
        return None
    kind, first = next(iter(names.items()))
    return Policy(
        " with ".join(f"{kind} {it}" for kind, it in names.items()),
        (f"clear_{kind.replace(' ', '_')}", first),
        definition,
    )
