"""Compiles templates again when a file in their folder changes while the worker runs."""

import asyncio
from contextlib import suppress
from functools import partial
from time import monotonic

import structlog

from otp_stream.tasks import in_thread

from .composer import Composer
from .templates import TemplateError

POLL_S = 2.0
_SETTLE_S = 0.2
"""Files are used after they have not changed for this long: a program may still be writing them."""
_SETTLE_LIMIT_S = 10.0
"""Files that change all the time are used as they are after this time; otherwise they would delay all tenants."""
_MAX_SHARE = 0.02
"""Share of the time that may be spent on scanning folders: a scan of 200 takes 0.1 s."""

_KEPT = "templates have changed and cannot be used: the earlier ones stay in use"

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class WatchedTemplates:
    """Compiles the templates of all tenants again when their folders change.

    If new templates of a tenant cannot be used, its earlier ones stay in use, and the problem is logged once. If those
    of the default tenant cannot, all earlier ones stay in use.
    """

    def __init__(self, composer: Composer) -> None:
        self._composer = composer
        self._failed: object = None
        """The state of the folders that could not be used."""
        self._changing_since: float | None = None
        """Since when the files have changed each time; `None` if they have settled."""
        self._scan_s = 0.0
        """Duration of the last scan of the folders."""
        self._requested = asyncio.Event()

    def request(self) -> None:
        """Scan the folders at once instead of at the next poll."""
        self._requested.set()

    async def watch(self) -> None:
        """Scan the folders every two seconds until cancelled."""
        while True:
            await self.refresh()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._requested.wait(), max(POLL_S, self._scan_s / _MAX_SHARE))
            self._requested.clear()

    async def refresh(self) -> None:
        """Scan the folders now, and compile what has changed."""
        composer = self._composer
        began = monotonic()
        seen = await in_thread(composer.folders, "templates")
        self._scan_s = monotonic() - began
        if seen == composer.used_folders:
            self._failed = None
            return
        if seen == self._failed:
            return
        if not await self._is_settled(seen):
            self._requested.set()
            return
        identities = composer.identities
        try:
            prepared = await in_thread(partial(composer.prepare, identities, keep_earlier=True), "templates")
        except (TemplateError, OSError) as error:
            self._failed = seen
            _log.warning(_KEPT, error=str(error))
            return
        self._failed = seen if prepared.problems else None
        if composer.identities != identities:  # TENANTS_FILE has changed meanwhile
            self._requested.set()
            return
        before = composer.used_folders
        composer.use(prepared)
        for problem in prepared.problems:
            _log.warning(_KEPT, error=problem)
        if before != composer.used_folders:
            _log.info("templates have changed", folders=sorted(str(it) for it in composer.used_folders))

    async def _is_settled(self, seen: object) -> bool:
        """Return whether files are as they were `seen`, or have changed for too long to wait for that."""
        if self._changing_since is None:
            self._changing_since = monotonic()
        await asyncio.sleep(_SETTLE_S)
        if (
            seen != await in_thread(self._composer.folders, "templates")
            and monotonic() - self._changing_since < _SETTLE_LIMIT_S
        ):
            return False
        self._changing_since = None
        return True
