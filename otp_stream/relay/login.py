"""Login at a relay (RFC 4954): which SASL mechanism to use, and its dialogue."""

import base64
import hmac
import re
from collections.abc import Awaitable, Callable, Generator
from contextlib import suppress

from otp_stream.core.outcome import Reply

from .config import RelayConfig
from .envelope import Extensions
from .oauth import AccessTokens
from .parser import Answer
from .protocol import RelayUnavailableError
from .reply import handshake_reason, to_reply

Ask = Callable[[bytes], Awaitable[Answer]]
"""Send a command of the login, and return the relay's answer. Raises `RelayUnavailableError`."""

Dialogue = Generator[str | None, str, None]
"""What we send, base64 apart: first the initial response, `None` if there is none; then an answer to each challenge."""

_BY_PASSWORD = ("PLAIN", "LOGIN", "CRAM-MD5")
"""In order of preference; under TLS, all are equally safe."""
_BY_TOKEN = ("OAUTHBEARER", "XOAUTH2")
_BAD_CREDENTIALS = 535
_TRY_THE_NEXT = frozenset({500, 501, 502, 503, 504, 534, 535, 538, 550, 553, 554})
"""Codes by which relays refuse a mechanism that they announce. Only 535 may count as a wrong password."""
_MAX_FAILED_LOGINS = 2
"""535 to one mechanism may be about the mechanism; to two, it is about the password."""


_TOKEN = re.compile(r"[\w+/=.~-]{40,}")
"""What may be a token, or a piece of one, that a relay quotes: as it is, or in base64."""


class TokenRefusedError(RelayUnavailableError):
    """The relay does not take this access token."""

    token = ""


class Login:
    """Logs in on each connection by the first mechanism that the relay offers and takes, then by that one alone."""

    def __init__(self, config: RelayConfig, tokens: AccessTokens | None) -> None:
        self._config = config
        self._tokens = tokens
        self._mechanism: str | None = None
        """The mechanism of the last login that was accepted."""
        self._refused_logins = 0
        """Refused logins since the last accepted one. After the first, each connection tries one mechanism, in turn."""

    async def run(self, ask: Ask, offers: Extensions) -> None:
        """Log in. Raises `RelayUnavailableError`, and `TokenRefusedError` for an access token."""
        mechanisms = self._mechanisms(offers)
        token = await self._tokens.get() if self._tokens is not None else ""
        refused: Reply | None = None
        credentials = 0
        """How often the relay may have counted a wrong password."""
        for mechanism in mechanisms:
            try:
                code, text = await self._authenticate(ask, mechanism, token)
            except RelayUnavailableError:
                if refused is None:
                    raise
                break  # the relay has closed the connection after the refusal; the next one tries the next mechanism
            if code == 235:
                self._mechanism, self._refused_logins = mechanism, 0
                return
            reply = to_reply((code, _TOKEN.sub("***", text) if token else text), "auth")
            if code // 100 == 4 and mechanism == self._mechanism:
                # the mechanism has worked before, so the failure is not about the mechanism
                raise RelayUnavailableError(handshake_reason(reply), str(reply))
            refused = refused if refused and refused.code == _BAD_CREDENTIALS else reply
            credentials += code == _BAD_CREDENTIALS
            if code not in _TRY_THE_NEXT or credentials >= _MAX_FAILED_LOGINS:
                break
        assert refused is not None  # noqa: S101 - for the type checker: at least one mechanism was tried
        self._mechanism = None
        self._refused_logins += 1
        if token and refused.code // 100 == 5:
            error = TokenRefusedError(handshake_reason(refused), str(refused))
            error.token = token
            raise error
        raise RelayUnavailableError(handshake_reason(refused), str(refused))

    def _mechanisms(self, offers: Extensions) -> list[str]:
        """Return the mechanisms to try on this connection, in order."""
        known = _BY_PASSWORD if self._tokens is None else _BY_TOKEN
        mechanisms = [it for it in known if it in offers.logins]
        if not mechanisms:
            offered = ", ".join(sorted(offers.logins)) or "none"
            text = f"the relay offers no login by {', '.join(known)} (it offers {offered}); see SMTP_AUTH"
            raise RelayUnavailableError("login_refused", text)
        if self._mechanism in mechanisms:
            return [self._mechanism]
        if self._refused_logins:
            return [mechanisms[self._refused_logins % len(mechanisms)]]
        return mechanisms

    async def _authenticate(self, ask: Ask, mechanism: str, token: str) -> Answer:
        """Return the relay's last reply."""
        dialogue = self._dialogue(mechanism, token)
        initial = next(dialogue)
        command = f"AUTH {mechanism}" if initial is None else f"AUTH {mechanism} {_b64(initial)}"
        answer = await ask(f"{command}\r\n".encode())
        while answer[0] == 334:
            challenge = b""
            with suppress(ValueError):  # the relay refuses the answer to a challenge that is not base64
                challenge = base64.b64decode(answer[1])
            try:
                response = dialogue.send(challenge.decode(errors="replace"))
            except StopIteration:
                text = f"the relay asks for more than {mechanism} has (at AUTH)"
                raise RelayUnavailableError("login_refused", text) from None
            answer = await ask(f"{_b64(response or '')}\r\n".encode())
        return answer

    def _dialogue(self, mechanism: str, token: str) -> Dialogue:
        user, password = self._config.user or "", self._config.password or ""
        match mechanism:
            case "PLAIN":
                return _plain(user, password)
            case "LOGIN":
                return _login(user, password)
            case "CRAM-MD5":
                return _cram_md5(user, password)
            case "OAUTHBEARER":
                name = user.replace("=", "=3D").replace(",", "=2C")  # a saslname of RFC 5801
                place = f"host={self._config.host}\1port={self._config.port}"
                return _by_token(f"n,a={name},\1{place}\1auth=Bearer {token}\1\1", "\1")
            case _:
                return _by_token(f"user={user}\1auth=Bearer {token}\1\1", "")


def _plain(user: str, password: str) -> Dialogue:
    """RFC 4616. Some relays ask for what was in the command."""
    yield f"\0{user}\0{password}"
    yield f"\0{user}\0{password}"


def _login(user: str, password: str) -> Dialogue:
    yield None
    yield user
    yield password


def _cram_md5(user: str, password: str) -> Dialogue:
    """RFC 2195."""
    challenge = yield None
    yield f"{user} {hmac.new(password.encode(), challenge.encode(), 'md5').hexdigest()}"


def _by_token(response: str, end: str) -> Dialogue:
    """RFC 7628, or XOAUTH2: the relay sends why it refuses as a challenge, and its reply after another response."""
    challenge = yield response
    if not challenge:
        challenge = yield response  # it took nothing from the command
    yield end


def _b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
