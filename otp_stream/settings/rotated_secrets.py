"""Secrets that change in their files while the worker runs."""

import asyncio
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

import structlog
from pydantic import SecretStr, ValidationError

from otp_stream.tasks import in_thread

from .load import explain
from .problems import find_problems
from .secret_files import read_secret
from .settings import Settings

POLL_S = 2.0
SETTLE_S = 0.2
"""A new content is used if it is still the same after this time, because a program may be writing the file."""
_READ_S = 5.0
"""How long a caller waits for the files: a network drive may not answer."""
_LOGINS = frozenset({"smtp_user", "smtp_pass", "smtp_oauth_client_secret", "smtp_oauth_refresh_token"})
_READ_EACH_TIME = frozenset({"sealing_keys", "intake_token", "intake_supabase_secret", "intake_zitadel_key"})
"""Secrets that are not those of a connection, and are read from the settings whenever they are needed."""
_PORTS = {"amqp": 5672, "amqps": 5671, "redis": 6379, "rediss": 6379}
_LOGIN_OPTIONS = {"username", "password"}

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class _Content(NamedTuple):
    """What a file holds, or why it cannot be used."""

    text: str = ""
    problem: str | None = None


class RotatedSecrets:
    """The settings, with the secrets that are in their files now.

    `settings` is replaced when a file has changed; every new connection reads its secret from there. A file that cannot
    be used changes nothing, and is logged once. `watch` polls the files.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.files: Mapping[str, Path] = settings.secret_files
        """By field name."""
        self._handled: dict[str, _Content] = {}
        """The last content that was used or logged, by field name."""
        self._changed: set[str] = set()
        """Fields whose change `watch` has not reported yet."""
        self._requested = asyncio.Event()
        self._refreshing: asyncio.Task[None] | None = None
        self._is_late = False
        """Whether the last read takes too long."""

    def request(self) -> None:
        """Read the files at once instead of at the next poll."""
        self._requested.set()

    async def watch(self, on_change: Callable[[Collection[str]], object]) -> None:
        """Read the files every two seconds until cancelled; call `on_change` with the fields that have changed."""
        while True:
            await self.refresh()
            changed, self._changed = self._changed, set()
            if changed:
                on_change(changed)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._requested.wait(), POLL_S)
            self._requested.clear()

    async def refresh(self) -> None:
        """Read the files now, once for all that ask at the same time. Returns when that is done or takes too long."""
        if not self.files:
            return
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.create_task(self._refresh())
        done, _ = await asyncio.wait({self._refreshing}, timeout=_READ_S)
        if not done and not self._is_late:
            settings = [f"{name.upper()}_FILE" for name in self.files]
            _log.warning("secret files cannot be read in time: the earlier secrets stay in use", settings=settings)
        self._is_late = not done
        for task in done:
            if not task.cancelled() and (error := task.exception()) is not None:
                # not raised, because a refused login may wait here; no text, because it may quote a secret
                _log.error("secret files were not read: the earlier secrets stay in use", error=type(error).__name__)

    async def _refresh(self) -> None:
        first = await in_thread(self._read, "secret files")
        if first == self._handled:
            return
        await asyncio.sleep(SETTLE_S)
        second = await in_thread(self._read, "secret files")
        for name, content in second.items():
            if content == first[name] and content != self._handled.get(name):
                self._handled[name] = content
                self._handle(name, content)
        if self._changed:
            self._requested.set()  # so that `watch` reports it

    def _read(self) -> dict[str, _Content]:
        return {name: _read(path) for name, path in self.files.items()}

    def _handle(self, name: str, content: _Content) -> None:
        file, old = f"{name.upper()}_FILE", self.settings
        problem, new = content.problem, old
        if problem is None:
            new, problem = _with(old, name, content.text)
        if problem is not None:
            _log.warning("secret file cannot be used: the earlier secret stays in use", setting=file, problem=problem)
        elif getattr(new, name) == getattr(old, name):
            pass
        elif reason := _needs_restart(name, old, new):
            _log.warning("secret file has changed: restart the worker to use it", setting=file, reason=reason)
        else:
            self.settings = new
            self._changed.add(name)
            used_by = "jobs" if name in _READ_EACH_TIME else "connections"
            _log.info(f"new secret: new {used_by} use it", setting=file)
            if new.secret_key is None and name in {"rabbitmq_url", "smtp_pass"}:
                _log.warning(
                    "SECRET_KEY is not set: this process keeps the key that it derived from the passwords at start, "
                    "and a process that starts now derives another one; set SECRET_KEY"
                )


def _read(path: Path) -> _Content:
    try:
        return _Content(read_secret(path))
    except ValueError as error:
        return _Content(problem=str(error))


def _with(settings: Settings, name: str, text: str) -> tuple[Settings, str | None]:
    """Return the settings with another value, or unchanged with the reason why the value is invalid."""
    values: dict[str, Any] = {"_env_file": None, **{it: getattr(settings, it) for it in Settings.model_fields}}
    values[name] = text
    try:
        new = Settings(**values)
    except ValidationError as error:
        return settings, "; ".join(map(explain, error.errors(include_input=False)))
    before = find_problems(settings)
    problems = [it for it in find_problems(new) if it not in before]
    return (settings, "; ".join(problems)) if problems else (new, None)


def _needs_restart(name: str, old: Settings, new: Settings) -> str | None:
    """Return why a running worker cannot use a new value, or `None`."""
    if name in _LOGINS | _READ_EACH_TIME:
        return None
    if name == "smtp_fallback_urls":
        relays = [[(it.host, it.port, it.tls, it.user is None) for it in given.fallbacks] for given in (old, new)]
        return None if relays[0] == relays[1] else "other relays; only users and passwords can change"
    if name in {"rabbitmq_url", "redis_url"}:
        same = _place(getattr(old, name)) == _place(getattr(new, name))
        return None if same else "more than user and password is different"
    return "this secret is read at start only"


def _place(url: SecretStr) -> tuple[object, ...]:
    """Return everything in a URL but user and password."""
    parts: SplitResult = urlsplit(url.get_secret_value())
    options = sorted(it for it in parse_qsl(parts.query, keep_blank_values=True) if it[0] not in _LOGIN_OPTIONS)
    return parts.scheme, parts.hostname, parts.port or _PORTS.get(parts.scheme), unquote(parts.path).strip("/"), options
