"""A token server (RFC 6749 and RFC 7523) as the source of access tokens."""

import asyncio
import io
import json
import math
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qsl, quote, quote_plus, urlsplit

from otp_stream.bounded_http import bound
from otp_stream.core.masking import scrub
from otp_stream.core.shown_secrets import ShownSecrets
from otp_stream.tasks import in_thread
from otp_stream.tls import tls_failure
from otp_stream.urls import is_loopback

from .access_token import MAX_ANSWER, MAY_BE_TOKEN, Token, TokenError, life_of, no_token, of_answer
from .config import OAuthConfig
from .token_sources import read_file, why

_REQUEST_S = 10.0
"""For the connection, and for each part of the answer."""
_TOTAL_S = 20.0
_LONGEST_S = 1e9
_SHORTEST_KEY = 8
"""Characters of a value in the query of the token server's URL that may be a key; others are such as `v=2`."""
_CHECK_URL = "check SMTP_OAUTH_TOKEN_URL"
_CHECK_PROXY = "check HTTPS_PROXY and NO_PROXY"
_FIXES = {
    "invalid_client": "check SMTP_OAUTH_CLIENT_ID and SMTP_OAUTH_CLIENT_SECRET, which may have expired",
    "invalid_grant": "the refresh token or the key is expired or revoked, or SMTP_USER is not its user, or this "
    "machine's clock is wrong",
    "invalid_scope": "check SMTP_OAUTH_SCOPE",
    "unauthorized_client": "have the administrator allow this client and SMTP_OAUTH_SCOPE",
    "unsupported_grant_type": _CHECK_URL,
}
"""By the error code of RFC 6749 §5.2."""
_NETWORK_FIXES = {
    "InvalidProxyURL": _CHECK_PROXY,
    "InvalidSchema": _CHECK_PROXY,
    "InvalidURL": _CHECK_PROXY,
    "ProxyError": _CHECK_PROXY,
    "SSLError": "TLS fails: check its port and its log",
}
"""By the error of requests. The URL of the token server is known to be valid."""


class TokenServer:
    """Fetches tokens with Authlib, which is imported with the first one: it is slow to import.

    `current` returns the configuration; its secrets may change, the rest does not.
    """

    def __init__(self, current: Callable[[], OAuthConfig]) -> None:
        self._current = current
        self._config = config = current()
        """Of the latest request."""
        self._host = urlsplit(config.token_url or "").hostname
        self._refresh_token = config.refresh_token
        """The latest: a token server may replace it with each access token."""
        self._shown = ShownSecrets()
        """Its access tokens, too: it may quote the last one."""
        self._asks = threading.Lock()
        """Held by the thread of a request, which may continue after the time limit."""

    async def fetch(self) -> Token:
        """Return a new token. Raises `TokenError`."""
        try:
            async with asyncio.timeout(_TOTAL_S):
                return await in_thread(self._fetch, "access token")
        except TimeoutError:
            raise self._unreachable(f"does not answer within {_TOTAL_S:g} s") from None

    def _fetch(self) -> Token:
        if not self._asks.acquire(blocking=False):
            raise self._unreachable("still answers an earlier request")
        try:
            return self._ask()
        finally:
            self._asks.release()

    def _ask(self) -> Token:
        from authlib.common.errors import AuthlibBaseError  # noqa: PLC0415
        from requests import RequestException  # noqa: PLC0415

        self._renew_config()
        key_file = self._config.key_file
        try:
            return self._read(self._by_client() if key_file is None else self._by_key(key_file))
        except TokenError:
            raise
        except AuthlibBaseError as error:
            code, text = str(error.error), self._scrubbed(str(error.description or ""))
            fix = _FIXES.get(code, "check the SMTP_OAUTH settings")
            raise no_token(f"the token server {self._host} refuses: {self._scrubbed(code)} {text}; {fix}") from None
        except RequestException as error:
            status = f"answers {error.response.status_code}" if error.response is not None else "does not answer"
            kind = type(error).__name__
            if found := tls_failure(str(error), authority="REQUESTS_CA_BUNDLE", host="the host of the token server"):
                raise self._unreachable(found.why, found.fix) from None
            raise self._unreachable(f"{status} ({kind})", _NETWORK_FIXES.get(kind, _CHECK_URL)) from None
        except OSError as error:  # requests raises it before it connects
            raise self._unreachable(f"was not asked ({type(error).__name__})", "check REQUESTS_CA_BUNDLE") from None
        except Exception as error:  # noqa: BLE001 - a job must never wait for an error of a library; its text may hold secrets
            kind = "" if isinstance(error, ValueError) else f" ({type(error).__name__})"
            raise no_token(f"the answer of {self._host} holds no access token; {_CHECK_URL}{kind}") from None

    def _renew_config(self) -> None:
        before, self._config = self._config, self._current()
        if self._config.refresh_token != before.refresh_token:
            self._refresh_token = self._config.refresh_token
        secrets = (self._config.client_secret, self._config.refresh_token, self._refresh_token)
        query = parse_qsl(urlsplit(self._config.token_url or "").query)
        self._shown.add(*(value for _, value in query if len(value) >= _SHORTEST_KEY), *secrets)

    def _read(self, answer: Mapping[str, Any]) -> Token:
        try:
            token = of_answer(answer)
        except ValueError as error:
            raise no_token(f"the answer of {self._host} {error}; {_CHECK_URL}") from None
        self._shown.add(token.value)
        return token

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
        with _careful(session, config.token_url or ""):
            if self._refresh_token is None:
                return session.fetch_token(config.token_url, grant_type="client_credentials")
            return self._by_refresh_token(session, config)

    def _by_refresh_token(self, session: Any, config: OAuthConfig) -> Mapping[str, Any]:
        from authlib.common.errors import AuthlibBaseError  # noqa: PLC0415

        try:
            answer = session.refresh_token(config.token_url, refresh_token=self._refresh_token)
        except AuthlibBaseError as error:
            if error.error != "invalid_grant" or self._refresh_token == config.refresh_token:
                raise
            # the server has replaced the configured one, and does not accept its own
            answer = session.refresh_token(config.token_url, refresh_token=config.refresh_token)
            self._refresh_token = config.refresh_token
        if isinstance(replaced := answer.get("refresh_token"), str) and replaced:
            self._refresh_token = replaced
        return answer

    def _by_key(self, path: Path) -> Mapping[str, Any]:
        from authlib.integrations.requests_client import AssertionSession  # noqa: PLC0415
        from joserfc.jwk import RSAKey  # noqa: PLC0415

        config, key = self._config, _read_key(path)
        url = config.token_url or key["token_uri"]
        self._host = urlsplit(url).hostname
        session: Any = AssertionSession(
            url,
            issuer=key["client_email"],
            subject=config.user,
            scope=config.scope,
            key=RSAKey.import_key(key["private_key"]),
            header={"alg": "RS256", "kid": key.get("private_key_id", "")},
            default_timeout=_REQUEST_S,
        )
        with _careful(session, url):
            return session.refresh_token()

    def _unreachable(self, text: str, fix: str = _CHECK_URL) -> TokenError:
        return no_token(f"the token server {self._host} {text}; {fix}", "unreachable")

    def _scrubbed(self, text: str) -> str:
        for secret in self._shown:
            for form in (secret, quote(secret, safe=""), quote_plus(secret)):
                text = text.replace(form, "***")
        return scrub(MAY_BE_TOKEN.sub("***", text), *self._shown, self._config.user)


def _careful(session: Any, url: str) -> Any:
    """Return a session of requests that sends nothing to another host, and reads no long answer."""
    bound(session, MAX_ANSWER, _TOTAL_S)
    # a request without TLS stays on this machine, although HTTP_PROXY is set
    session.trust_env = urlsplit(url).scheme == "https"
    session.hooks["response"].append(_limit_life)
    return session


def _limit_life(response: Any, **_: object) -> Any:
    """Replace a life that Authlib cannot read."""
    body: bytes = response.raw.getvalue()
    with suppress(ValueError, RecursionError):
        answer = json.loads(body)
        if isinstance(answer, dict):
            life_s = life_of(cast("dict[str, Any]", answer).get("expires_in"))
            body = json.dumps({**answer, "expires_in": math.ceil(min(life_s, _LONGEST_S))}).encode()
    response.raw = io.BytesIO(body)
    return response


def _read_key(path: Path) -> Mapping[str, str]:
    from joserfc.jwk import RSAKey  # noqa: PLC0415

    try:
        key = json.loads(read_file(path)[0].decode("utf-8-sig"))
        text = "has no client_email, private_key and token_uri"
        if all(isinstance(key.get(name), str) for name in ("client_email", "private_key", "token_uri")):
            RSAKey.import_key(key["private_key"])
            parts = urlsplit(cast("str", key["token_uri"]))
            if parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname or "")):
                return key
            text = "has a token_uri that does not start with https://"
    except OSError as error:
        text = why(error)
    except Exception:  # noqa: BLE001 - cryptography raises errors of many kinds, whose texts may quote the key
        text = "is not a service account's key in JSON"
    raise no_token(f"SMTP_OAUTH_KEY_FILE {text}: {path}")
