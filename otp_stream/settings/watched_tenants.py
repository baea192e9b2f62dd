"""The tenants while the worker runs: `TENANTS_FILE` and the secret files that it names are read when they change."""

import asyncio
import math
from collections.abc import Awaitable, Callable
from contextlib import suppress
from time import monotonic

import structlog

from otp_stream.tasks import in_thread

from .rotated_secrets import POLL_S, SETTLE_S
from .settings import Settings
from .tenants import Tenants, read_tenants, relay_values, tenant_warnings
from .toml_file import content_of

_AGAIN_S = 20.0
"""Interval in which a content that cannot be used is tried again: it may name folders and files that appear later."""

_Content = tuple[object, ...]
Use = Callable[[Tenants], Awaitable[str | None]]
"""Takes over other tenants. Returns why that is not possible, or `None`."""

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class WatchedTenants:
    """The tenants that are in use. A file that cannot be used changes nothing, and its problems are logged once.

    It is tried again now and then, because the cause may be in another file, such as a template.
    `settings` returns what tenants inherit, whose secrets may change, too.
    """

    def __init__(self, settings: Callable[[], Settings], tenants: Tenants) -> None:
        self.current = tenants
        self._settings = settings
        self._path = settings().tenants_file
        self._files = tenants.files
        """The files with secrets that the last content named."""
        self._handled = self._content()
        """The last content that was used or logged."""
        self._problems: list[str] = []
        """Those of that content."""
        self._again_at = math.inf
        """When that content is tried again."""
        self._requested = asyncio.Event()

    @property
    def watched(self) -> bool:
        """Whether there is a file to watch."""
        return self._path is not None

    def request(self) -> None:
        """Read the files at once instead of at the next poll."""
        if self._problems:
            self._again_at = 0.0
        self._requested.set()

    def find(self, value: object) -> str:
        """Return the tenant that `metadata.tenant` names, as `Tenants.find` does."""
        return self.current.find(value)

    def problem(self, name: str) -> str | None:
        """Return why no job can be sent for a tenant, or `None`. The default tenant must not send it instead."""
        if not name or self._path is None or name in self.current.listed:
            return None
        return f"the tenant {name} of this token is not in TENANTS_FILE: add it there"

    async def watch(self, use: Use) -> None:
        """Read the files every two seconds until cancelled; call `use` when the tenants have changed."""
        while True:
            await self.refresh(use)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._requested.wait(), POLL_S)
            self._requested.clear()

    async def refresh(self, use: Use) -> None:
        """Read the files now. A content is used if it is still the same a moment later."""
        first = await in_thread(self._content, "tenants file")
        if first == self._handled and monotonic() < self._again_at:
            return
        await asyncio.sleep(SETTLE_S)
        if first != await in_thread(self._content, "tenants file"):
            self._requested.set()  # a program may still be writing
            return
        content, tenants, problems = await in_thread(self._read, "tenants file")
        if not problems and (problem := await use(tenants)) is not None:
            problems = [f"TENANTS_FILE: {problem}"]
        if not problems:
            self._log_changes(tenants)
            known = tenant_warnings(self._settings(), self.current)
            for warning in tenant_warnings(self._settings(), tenants):
                if warning not in known:
                    _log.warning(warning)
            self.current = tenants
        elif content != self._handled or problems != self._problems:
            _log.warning("TENANTS_FILE cannot be used: the earlier tenants stay in use", problems=problems)
        self._handled, self._problems = content, problems
        self._again_at = monotonic() + _AGAIN_S if problems else math.inf

    def _read(self) -> tuple[_Content, Tenants, list[str]]:
        """Return the tenants, and the content before they were read: any later change is noticed."""
        while True:
            content = self._content()
            tenants, problems = read_tenants(self._settings())
            if tenants.files == self._files:
                return content, tenants, problems
            self._files = tenants.files  # the content must include them

    def _content(self) -> _Content:
        if self._path is None:
            return ()
        return (content_of(self._path), *map(content_of, self._files), relay_values(self._settings()))

    def _log_changes(self, tenants: Tenants) -> None:
        before, after = self.current.listed, tenants.listed
        changed = [name for name in after if name in before and after[name].settings != before[name].settings]
        _log.info(
            "TENANTS_FILE has changed",
            tenants=len(after),
            added=sorted(after.keys() - before.keys()),
            removed=sorted(before.keys() - after.keys()),
            changed=sorted(changed),
            unknown=tenants.unknown,
        )
