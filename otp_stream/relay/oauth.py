"""Access tokens for logins by OAuth 2.0: one for all connections to a relay, renewed before it ends."""

import asyncio
import json
import subprocess
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple, cast
from urllib.parse import urlsplit

import structlog

from otp_stream.core.masking import scrub
from otp_stream.core.outcome import UnavailableReason
from otp_stream.tasks import cancel_and_wait

from .config import OAuthConfig
from .protocol import RelayUnavailableError

_REQUEST_S = 10.0
_COMMAND_S = 30.0
_LIFE_S = 300.0
"""Assumed life of a token whose source gives none."""
_MARGIN_S = 600.0
"""How long before its end a token is renewed, at most: longer than a connection that it opened is used."""
_MARGIN = 0.2
"""The same as a share of its life."""
_PAUSES_S = (10.0, 20.0, 40.0, 60.0)
"""Between tries to renew a token that is still valid."""
_REFUSED_S = 30.0
"""A token that was fetched less than this time ago is not replaced because a relay refuses it."""

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Token(NamedTuple):
    """An access token, and how long it is valid from now on (seconds)."""

    value: str
    life_s: float = _LIFE_S


class TokenError(RelayUnavailableError):
    """There is no valid access token; the text names the source and the fix, and holds no secret."""


class AccessTokens:
    """The access token of one relay.

    `get` returns the current one. It is renewed in the background; while that fails, the old one is used until it ends.
    """

    def __init__(self, fetch: Callable[[], Token]) -> None:
        self._fetch = fetch
        """Called in a thread. Raises `TokenError`."""
        self._token: str | None = None
        self._fetched_at = self._ends_at = 0.0
        self._renewal: asyncio.Task[str] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._failures = 0

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
        token = await asyncio.to_thread(self._fetch)
        self._token, self._failures = token.value, 0
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
        if not self._failures:
            fix = "the current token is used until it ends; then no mail can be sent"
            _log.warning("the access token was not renewed", error=str(error), valid_s=round(self.valid_s), fix=fix)
        self._renew_in(min(_PAUSES_S[min(self._failures, len(_PAUSES_S) - 1)], self.valid_s))
        self._failures += 1


def access_tokens(config: OAuthConfig) -> AccessTokens:
    """Return the access tokens of this source. Nothing is fetched before the first connection."""
    if config.token_file is not None:
        return AccessTokens(lambda path=config.token_file: _from_file(path))
    if config.token_command:
        return AccessTokens(lambda: _from_command(config.token_command))
    return AccessTokens(_TokenServer(config).fetch)


def _from_file(path: Path) -> Token:
    try:
        return _read(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _no_token(f"SMTP_OAUTH_TOKEN_FILE {_why(error)}: {path}") from None


def _from_command(command: tuple[str, ...]) -> Token:
    name = f"SMTP_OAUTH_TOKEN_COMMAND ({Path(command[0]).name})"
    try:
        done = subprocess.run(command, capture_output=True, timeout=_COMMAND_S, check=False, stdin=subprocess.DEVNULL)  # noqa: S603 - the operator's own command
        if done.returncode:  # what it wrote may hold a secret
            raise _no_token(f"{name} exits with {done.returncode}; run it by hand to see its messages")
        return _read(done.stdout.decode())
    except subprocess.TimeoutExpired:
        raise _no_token(f"{name} does not end within {_COMMAND_S:g} s") from None
    except (OSError, ValueError) as error:
        raise _no_token(f"{name} {_why(error)}") from None


def _read(text: str) -> Token:
    """Read a token, or a token server's answer in JSON. Raises `ValueError`."""
    text = text.strip()
    if text.startswith("{"):
        return _of_answer(json.loads(text))
    if not text or not text.isascii() or any(char.isspace() for char in text):
        raise ValueError("holds no token")
    return Token(text)


def _of_answer(answer: Mapping[str, Any]) -> Token:
    value, life_s = answer.get("access_token"), answer.get("expires_in")
    if not isinstance(value, str) or not value.isascii() or not value:
        raise ValueError("holds no access_token")
    with suppress(TypeError, ValueError):
        if 0 < (seconds := float(cast("Any", life_s))) < float("inf"):
            return Token(value, seconds)
    return Token(value)


def _why(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError | UnicodeDecodeError):
        return "holds no token"
    return f"cannot be read ({error.strerror})" if isinstance(error, OSError) else str(error)


def _no_token(text: str, reason: UnavailableReason = "login_refused") -> TokenError:
    return TokenError(reason, f"no access token: {text}")


_FIXES = {
    "invalid_client": "check SMTP_OAUTH_CLIENT_ID and SMTP_OAUTH_CLIENT_SECRET, which may have expired",
    "invalid_grant": "the refresh token or the key is expired or revoked, or SMTP_USER is not its user",
    "invalid_scope": "check SMTP_OAUTH_SCOPE",
    "unauthorized_client": "have the administrator allow this client and SMTP_OAUTH_SCOPE",
    "unsupported_grant_type": "check SMTP_OAUTH_TOKEN_URL",
}
"""By the error code of RFC 6749 §5.2."""


class _TokenServer:
    """Fetches tokens with Authlib, which is imported with the first one: it is slow to import."""

    def __init__(self, config: OAuthConfig) -> None:
        self._config = config
        self._refresh_token = config.refresh_token
        """The latest: a token server may replace it with each access token."""

    def fetch(self) -> Token:
        """Return a new token. Raises `TokenError`."""
        from authlib.integrations.base_client import OAuthError  # noqa: PLC0415
        from requests import RequestException  # noqa: PLC0415

        host = urlsplit(self._config.token_url or "").hostname
        try:
            if self._config.key_file is not None:
                key = self._read_key(self._config.key_file)
                host = urlsplit(self._config.token_url or key["token_uri"]).hostname
                answer = self._by_key(key)
            else:
                answer = self._by_client()
            return _of_answer(answer)
        except OAuthError as error:
            code, text = str(error.error), self._scrubbed(str(error.description or ""))
            fix = _FIXES.get(code, "check the SMTP_OAUTH settings")
            raise _no_token(f"the token server {host} refuses: {self._scrubbed(code)} {text}; {fix}") from None
        except RequestException as error:
            status = f"answers {error.response.status_code}" if error.response is not None else "does not answer"
            kind = type(error).__name__
            raise _no_token(
                f"the token server {host} {status} ({kind}); check SMTP_OAUTH_TOKEN_URL", "unreachable"
            ) from None
        except TokenError:
            raise
        except Exception as error:  # noqa: BLE001 - a job must never wait for an error of a library; its text may hold secrets
            kind = "" if isinstance(error, ValueError) else f" ({type(error).__name__})"
            raise _no_token(f"the answer of {host} holds no access token; check SMTP_OAUTH_TOKEN_URL{kind}") from None

    def _by_client(self) -> Mapping[str, Any]:
        from authlib.integrations.requests_client import OAuth2Session  # noqa: PLC0415

        config = self._config
        # in the body of the request, not as Basic authentication: servers differ in how they decode that
        session: Any = OAuth2Session(
            config.client_id,
            config.client_secret,
            token_endpoint_auth_method="client_secret_post" if config.client_secret else "none",
            scope=config.scope,
            default_timeout=_REQUEST_S,
        )
        session.max_redirects = 0
        with session:
            if self._refresh_token is None:
                return session.fetch_token(config.token_url, grant_type="client_credentials")
            answer = session.refresh_token(config.token_url, refresh_token=self._refresh_token)
            self._refresh_token = answer.get("refresh_token") or self._refresh_token
            return answer

    def _by_key(self, key: Mapping[str, str]) -> Mapping[str, Any]:
        from authlib.integrations.requests_client import AssertionSession  # noqa: PLC0415
        from joserfc.jwk import RSAKey  # noqa: PLC0415

        config = self._config
        session: Any = AssertionSession(
            config.token_url or key["token_uri"],
            issuer=key["client_email"],
            subject=config.user,
            scope=config.scope,
            key=RSAKey.import_key(key["private_key"]),
            header={"alg": "RS256", "kid": key.get("private_key_id", "")},
            default_timeout=_REQUEST_S,
        )
        session.max_redirects = 0
        with session:
            return session.refresh_token()

    def _read_key(self, path: Path) -> Mapping[str, str]:
        from joserfc.jwk import RSAKey  # noqa: PLC0415

        try:
            key = json.loads(path.read_text(encoding="utf-8"))
            text = "has no client_email, private_key and token_uri"
            if all(isinstance(key.get(name), str) for name in ("client_email", "private_key", "token_uri")):
                RSAKey.import_key(key["private_key"])
                return key
        except OSError as error:
            text = _why(error)
        except Exception:  # noqa: BLE001 - cryptography raises errors of many kinds, whose texts may quote the key
            text = "is not a service account's key in JSON"
        raise _no_token(f"SMTP_OAUTH_KEY_FILE {text}: {path}")

    def _scrubbed(self, text: str) -> str:
        config = self._config
        secrets = (config.client_secret, config.refresh_token, self._refresh_token, config.user)
        return scrub(text, *filter(None, secrets))
