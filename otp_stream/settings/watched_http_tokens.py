"""The tokens of web pages and intake while the worker runs: `HTTP_TOKENS_FILE` is read when it changes."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress

import structlog

from otp_stream.core.http_token import HttpToken
from otp_stream.tasks import in_thread

from .http_tokens import intake_tokens, read_http_tokens
from .rotated_secrets import POLL_S, SETTLE_S
from .settings import Settings
from .toml_file import content_of

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class WatchedHttpTokens:
    """The tokens that are in use. A file that cannot be used changes nothing, and its problems are logged once."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._path = settings.http_tokens_file
        self._handled = self._content()  # before it is read, so that any later change is noticed
        """The last content that was used or logged."""
        self.current: Sequence[HttpToken]
        self.current, self.problems = read_http_tokens(settings)
        self._requested = asyncio.Event()

    @property
    def users(self) -> Sequence[HttpToken]:
        """The tokens with which people and programs use the web pages."""
        return [it for it in self.current if it.role != "producer"]

    def producers(self, settings: Settings) -> Sequence[HttpToken]:
        """The tokens with which programs send jobs over HTTP. `settings` have the `INTAKE_TOKEN` in use now."""
        return [*intake_tokens(settings), *(it for it in self.current if it.role == "producer")]

    def accepts_jobs(self, settings: Settings) -> bool:
        """Return whether the intake is on, for programs or for a hook."""
        return bool(self.producers(settings) or settings.hook_keys)

    @property
    def watched(self) -> bool:
        """Whether there is a file to watch."""
        return self._path is not None

    def request(self) -> None:
        """Read the file at once instead of at the next poll."""
        self._requested.set()

    async def watch(self) -> None:
        """Read the file every two seconds until cancelled."""
        while True:
            await self.refresh()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._requested.wait(), POLL_S)
            self._requested.clear()

    async def refresh(self) -> None:
        """Read the file now. A content is used if it is still the same a moment later."""
        content = await in_thread(self._content, "tokens file")
        if content == self._handled:
            return
        await asyncio.sleep(SETTLE_S)
        tokens, problems = await in_thread(lambda: read_http_tokens(self._settings), "tokens file")
        if content != await in_thread(self._content, "tokens file"):
            self._requested.set()  # a program may still be writing
            return
        self._handled = content
        if content is None:
            problems = ["HTTP_TOKENS_FILE: cannot be read"]
        if problems:
            _log.warning("HTTP_TOKENS_FILE cannot be used: the earlier tokens stay in use", problems=problems)
            return
        before, after = ({it.name: it for it in listed} for listed in (self.current, tokens))
        self.current = tokens
        _log.info(
            "HTTP_TOKENS_FILE has changed",
            tokens=len(after),
            added=sorted(after.keys() - before.keys()),
            removed=sorted(before.keys() - after.keys()),
            changed=sorted(name for name in after if name in before and after[name] != before[name]),
        )

    def _content(self) -> bytes | None:
        return None if self._path is None else content_of(self._path)
