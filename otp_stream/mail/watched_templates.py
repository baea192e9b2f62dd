"""The templates while the worker runs: folders are read again when a file in them changes."""

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
"""Files that do not change for so long are complete. A program may still be writing others."""
_MAX_SHARE = 0.02
"""Share of the time that may be spent on looking at folders: 200 of them take 0.1 s."""

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class WatchedTemplates:
    """Compiles the templates of all tenants again when their folders change.

    Templates that cannot be used change nothing, and their problem is logged once.
    """

    def __init__(self, composer: Composer) -> None:
        self._composer = composer
        self._failed: object = None
        """The state of the folders that could not be used."""
        self._look_s = 0.0
        """How long the last look at the folders took."""
        self._requested = asyncio.Event()

    def request(self) -> None:
        """Look at the folders at once instead of at the next poll."""
        self._requested.set()

    async def watch(self) -> None:
        """Look at the folders every two seconds until cancelled."""
        while True:
            await self.refresh()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._requested.wait(), max(POLL_S, self._look_s / _MAX_SHARE))
            self._requested.clear()

    async def refresh(self) -> None:
        """Look at the folders now, and compile what has changed."""
        composer = self._composer
        began = monotonic()
        seen = await in_thread(composer.folders, "templates")
        self._look_s = monotonic() - began
        if seen == composer.used_folders:
            self._failed = None
            return
        if seen == self._failed:
            return
        await asyncio.sleep(_SETTLE_S)
        if seen != await in_thread(composer.folders, "templates"):
            self._requested.set()
            return
        identities = composer.identities
        try:
            prepared = await in_thread(partial(composer.prepare, identities), "templates")
        except (TemplateError, OSError) as error:
            self._failed = seen
            _log.warning("templates have changed and cannot be used: the earlier ones stay in use", error=str(error))
            return
        self._failed = None
        if composer.identities != identities:  # TENANTS_FILE has changed meanwhile
            self._requested.set()
            return
        composer.use(prepared)
        _log.info("templates have changed", folders=sorted(str(it) for it in composer.used_folders))
