"""Access tokens for logins by OAuth 2.0: one for all connections to a relay, renewed before it ends."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from time import monotonic

import structlog

from otp_stream.tasks import cancel_and_wait

from .access_token import Token, TokenError, no_token
from .config import OAuthConfig
from .token_server import TokenServer
from .token_sources import from_command, from_file

_MARGIN_S = 600.0
"""How long before its end a token is renewed, at most: longer than a connection that it opened is used."""
_MARGIN = 0.2
"""The same as a share of its life."""
_PAUSES_S = (10.0, 20.0, 40.0, 60.0)
"""Between tries to renew a token that is still valid."""
_REFUSED_S = 30.0
"""A token that was fetched less than this time ago is not replaced because a relay refuses it."""

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class AccessTokens:
    """The access token of one relay.

    `get` returns the current one. It is renewed in the background; while that fails, the old one is used until it ends.
    """

    def __init__(self, fetch: Callable[[], Awaitable[Token]]) -> None:
        self._fetch = fetch
        """Raises `TokenError`."""
        self._token: str | None = None
        self._fetched_at = self._ends_at = 0.0
        self._renewal: asyncio.Task[str] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.failures = 0
        """Consecutive failures to renew a token that was still valid."""

    @property
    def valid_s(self) -> float:
        """How long the current token is still valid, seconds."""
        return max(self._ends_at - monotonic(), 0.0) if self._token is not None else 0.0

    async def get(self) -> str:
        """Return the current token. Raises `TokenError` if there is none that is valid."""
        if self._token is not None and self.valid_s:
            return self._token
        return await self._renew()

    async def replace(self, refused: str) -> bool:
        """Fetch another token than the one that the relay refused; return whether there is one."""
        if self._token == refused and monotonic() - self._fetched_at >= _REFUSED_S:
            with suppress(TokenError):
                await self._renew()
        return self._token != refused

    async def close(self) -> None:
        """Renew nothing any more."""
        if self._timer is not None:
            self._timer.cancel()
        if self._renewal is not None:
            await cancel_and_wait(self._renewal)

    async def _renew(self) -> str:
        """Fetch a token, once for all that ask at the same time."""
        return await asyncio.shield(self._start())

    def _start(self) -> asyncio.Task[str]:
        if self._renewal is None or self._renewal.done():
            self._renewal = asyncio.get_running_loop().create_task(self._fetch_token())
            self._renewal.add_done_callback(self._on_renewed)
        return self._renewal

    async def _fetch_token(self) -> str:
        try:
            token = await self._fetch()
        except TokenError:
            raise
        except Exception as error:  # noqa: BLE001 - a job must never wait for an error of a library; its text may hold secrets
            raise no_token(f"fetching it failed ({type(error).__name__}); this is an error of otp-stream") from None
        self._token, self.failures = token.value, 0
        self._fetched_at = monotonic()
        self._ends_at = self._fetched_at + token.life_s
        self._renew_in(max(token.life_s - min(_MARGIN_S, _MARGIN * token.life_s), 1.0))
        return token.value

    def _renew_in(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(seconds, self._start)

    def _on_renewed(self, renewal: asyncio.Task[str]) -> None:
        if renewal.cancelled() or (error := renewal.exception()) is None:
            return
        if not self.valid_s:
            return  # each new connection tries again, and the circuit breaker shows the error
        if not self.failures:
            fix = "the current token is used until it ends; then no mail can be sent"
            _log.warning("the access token was not renewed", error=str(error), valid_s=round(self.valid_s), fix=fix)
        self._renew_in(min(_PAUSES_S[min(self.failures, len(_PAUSES_S) - 1)], self.valid_s))
        self.failures += 1


def access_tokens(config: OAuthConfig, current: Callable[[], OAuthConfig | None] = lambda: None) -> AccessTokens:
    """Return the access tokens of this source. Nothing is fetched before the first connection.

    `current` returns the configuration with the secrets of now, if they can change.
    """
    if config.token_file is not None:
        return AccessTokens(partial(from_file, config.token_file))
    if config.token_command:
        return AccessTokens(partial(from_command, config.token_command))
    return AccessTokens(TokenServer(lambda: current() or config).fetch)
