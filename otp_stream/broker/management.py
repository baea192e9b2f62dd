"""What only the management plugin's HTTP API can tell: policies. It may not be there, and nothing depends on it."""

import http.client
import json
import re
import ssl
import time
from base64 import b64encode
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

_TIMEOUT_S = 3.0
_PORT, _TLS_PORT = 15672, 15671
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

    where: str
    policies: dict[str, Policy] = field(default_factory=dict[str, Policy])
    """By queue, whether or not it stands already."""
    error: str = ""
    """Why policies were not seen; empty where they were."""
    ahead_s: float | None = None
    """How far its clock is ahead of ours, to the second; `None` where it did not say."""


def look(url: str, queues: Iterable[str]) -> Seen:
    """Ask for the policies of these queues. The password goes over TLS where it does to the broker."""
    parts = urlsplit(url)
    tls = parts.scheme == "amqps"
    host, port = parts.hostname or "localhost", _TLS_PORT if tls else _PORT
    seen = Seen(f"{'https' if tls else 'http'}://{host}:{port}")
    token = b64encode(f"{unquote(parts.username or 'guest')}:{unquote(parts.password or 'guest')}".encode()).decode()
    try:
        connection = _connection(host, port, parse_qs(parts.query).get("cafile", [None])[0], tls=tls)
        with closing(connection):
            listed = {
                kind: _ask(connection, f"/api/{path}/{quote(vhost(url), safe='')}", token, seen)
                for kind, path in (("policy", "policies"), ("operator policy", "operator-policies"))
            }
        seen.policies = {name: found for name in queues if (found := _policy(name, listed))}
    except (OSError, http.client.HTTPException, ValueError, re.error) as error:
        seen.error = f"does not answer ({getattr(error, 'strerror', None) or type(error).__name__})"
    return seen


def vhost(url: str) -> str:
    """Return the virtual host that a URL names."""
    return unquote(urlsplit(url).path[1:]) or "/"


def _connection(host: str, port: int, ca_file: str | None, *, tls: bool) -> http.client.HTTPConnection:
    if tls:
        context = ssl.create_default_context(cafile=ca_file)
        return http.client.HTTPSConnection(host, port, timeout=_TIMEOUT_S, context=context)
    return http.client.HTTPConnection(host, port, timeout=_TIMEOUT_S)


def _ask(connection: http.client.HTTPConnection, path: str, token: str, seen: Seen) -> list[dict[str, Any]]:
    if seen.error:
        return []
    began = time.time()
    connection.request("GET", path, headers={"Authorization": f"Basic {token}"})
    answer = connection.getresponse()
    body = answer.read()
    if date := answer.getheader("Date"):
        # it tells whole seconds: half of one is the best guess
        seen.ahead_s = parsedate_to_datetime(date).timestamp() + 0.5 - (began + time.time()) / 2
    if answer.status == 200:
        return json.loads(body)
    refused = answer.status in {401, 403}
    seen.error = f"{'refuses this user' if refused else 'answers'} (HTTP {answer.status})"
    return []


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
