"""Login at a relay (RFC 4954): which SASL mechanism to use, and its dialogue."""

import asyncio
import base64
import hmac
import re
from collections.abc import Awaitable, Callable, Generator
from contextlib import suppress
from typing import Any

from scramp import ScramClient, ScramException  # pyright: ignore[reportMissingTypeStubs] - it has none

from otp_stream.core.outcome import Reply, UnavailableReason
from otp_stream.core.shown_secrets import ShownSecrets

from .access_token import MAY_BE_TOKEN
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

_BY_PASSWORD = ("SCRAM-SHA-256", "PLAIN", "LOGIN", "CRAM-MD5")
"""In order of preference. SCRAM shows the relay no password, and CRAM-MD5 makes it store one; see decision 019."""
_ITERATIONS = re.compile(r",i=([0-9]+)")
_MAX_ITERATIONS = 2_000_000
"""About half a second of CPU time. Relays use 4,096 to 600,000; a hostile one could keep a thread busy for minutes."""
SCRAM_ERRORS = (ScramException, ArithmeticError, LookupError, TypeError, ValueError)
"""What scramp raises for a challenge, which may be anything."""
_BY_TOKEN = ("OAUTHBEARER", "XOAUTH2")
_BAD_CREDENTIALS = 535
_TRY_THE_NEXT = frozenset({500, 501, 502, 503, 504, 534, 535, 538, 550, 553, 554})
"""Codes by which relays refuse a mechanism that they announce. Only 535 may count as a wrong password."""
_MAX_FAILED_LOGINS = 2
"""535 to one mechanism may be about the mechanism; to two, it is about the password."""
_MAX_COMMAND = 12_288 - len("\r\n")
"""RFC 4954 §3 (6). A longer initial response is sent as the answer to a challenge."""
_STATUS = re.compile(rb'"status"\s*:\s*"(\d{3}|[a-z_]{1,30})"')
"""Why a relay refuses a token: a status of HTTP, or an error code of RFC 6750."""


class TokenRefusedError(RelayUnavailableError):
    """The relay does not take this access token."""

    def __init__(self, reason: UnavailableReason, text: str, token: str) -> None:
        super().__init__(reason, text)
        self.token = token


class Login:
    """Logs in on each connection by the first mechanism that the relay offers and takes, then by that one alone."""

    def __init__(self, config: RelayConfig, tokens: AccessTokens | None, shown: ShownSecrets) -> None:
        self._config = config
        self._tokens = tokens
        self._shown = shown
        self._mechanism: str | None = None
        """The mechanism of the last login that was accepted."""
        self._refused_logins = 0
        """Refused logins since the last accepted one. After the first, each connection tries one mechanism, in turn."""
        self._accepted_token = ""
        """The token of the last login that was accepted."""
        self._secrets: tuple[str, ...] = ()
        """Of the last login."""

    async def run(self, ask: Ask, offers: Extensions) -> None:
        """Log in. Raises `RelayUnavailableError`, and `TokenRefusedError` for an access token."""
        config = self._config.current
        if config.secrets != self._secrets:
            self._secrets, self._refused_logins = config.secrets, 0  # no mechanism has refused them yet
        mechanisms = self._mechanisms(offers)
        token = await self._tokens.get() if self._tokens is not None else ""
        self._shown.add(config.password, token)
        refused: Reply | None = None
        credentials = 0
        """How often the relay may have counted a wrong password."""
        for mechanism in mechanisms:
            try:
                code, text = await self._authenticate(ask, mechanism, token, config)
            except RelayUnavailableError as error:
                if refused is None:
                    if isinstance(error, TokenRefusedError):
                        self._count_refusal(token, bad_credentials=True)
                    raise
                break  # the relay has closed the connection after the refusal; the next one tries the next mechanism
            if code == 235:
                self._mechanism, self._refused_logins, self._accepted_token = mechanism, 0, token
                return
            reply = to_reply((code, _without(token, text)), "auth", secrets=config.secrets, of_login=self._shown)
            if code // 100 == 4 and mechanism == self._mechanism:
                # the mechanism has worked before, so the failure is not about the mechanism
                raise RelayUnavailableError(handshake_reason(reply), str(reply))
            refused = refused if refused and refused.code == _BAD_CREDENTIALS else reply
            credentials += code == _BAD_CREDENTIALS
            if code not in _TRY_THE_NEXT or credentials >= _MAX_FAILED_LOGINS:
                break
        assert refused is not None  # noqa: S101 - for the type checker: at least one mechanism was tried
        self._count_refusal(token, bad_credentials=refused.code == _BAD_CREDENTIALS)
        if token and refused.code // 100 == 5:
            raise TokenRefusedError(handshake_reason(refused), str(refused), token)
        raise RelayUnavailableError(handshake_reason(refused), str(refused))

    def _count_refusal(self, token: str, *, bad_credentials: bool) -> None:
        if token and token == self._accepted_token and bad_credentials:
            return  # the token has ended: the mechanism that took it before is not at fault
        self._mechanism = None
        self._refused_logins += 1

    def _mechanisms(self, offers: Extensions) -> list[str]:
        """Return the mechanisms to try on this connection, in order."""
        known = _BY_PASSWORD if self._tokens is None else _BY_TOKEN
        if self._config.mechanism is not None:
            known = (self._config.mechanism,)
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

    async def _authenticate(self, ask: Ask, mechanism: str, token: str, config: RelayConfig) -> Answer:
        """Return the relay's last reply."""
        dialogue = _dialogue(mechanism, token, config)
        initial = next(dialogue)
        # RFC 4954 §4: an initial response that is empty is "="
        command = f"AUTH {mechanism}" if initial is None else f"AUTH {mechanism} {_b64(initial) or '='}"
        if len(command) > _MAX_COMMAND:
            command = f"AUTH {mechanism}"  # the relay asks for the response
        answer, response = await ask(f"{command}\r\n".encode()), initial
        while answer[0] == 334:
            challenge = b""
            with suppress(ValueError):  # the relay refuses the answer to a challenge that is not base64
                challenge = base64.b64decode(answer[1])
            try:
                response = await _response(dialogue, mechanism, challenge)
                answer = await ask(f"{_b64(response)}\r\n".encode())
            except RelayUnavailableError:
                if not (token and challenge):
                    raise
                # the challenge gave the reason of a refusal, and the reply is missing (RFC 7628 §3.2.3)
                text = f"the relay refuses the access token{_status(challenge)} (at AUTH)"
                raise TokenRefusedError("login_refused", text, token) from None
        # the last response of SCRAM is empty, and follows the relay's proof
        if answer[0] == 235 and mechanism == "SCRAM-SHA-256" and response != "":
            raise _wrong_answer(mechanism)
        return answer


def _dialogue(mechanism: str, token: str, config: RelayConfig) -> Dialogue:
    user, password = config.user or "", config.password or ""
    match mechanism:
        case "PLAIN":
            return _plain(user, password)
        case "LOGIN":
            return _login(user, password)
        case "CRAM-MD5":
            return _cram_md5(user, password)
        case "SCRAM-SHA-256":
            return _scram(user, password)
        case "EXTERNAL":
            return _external(user)
        case "OAUTHBEARER":
            name = user.replace("=", "=3D").replace(",", "=2C")  # a saslname of RFC 5801
            place = f"host={config.host}\1port={config.port}"
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


def _scram(user: str, password: str) -> Dialogue:
    """RFC 7677. Raises one of `SCRAM_ERRORS` if the relay does not prove that it knows the password."""
    client: Any = ScramClient(["SCRAM-SHA-256"], user, password)
    first = client.get_client_first()
    challenge = yield first
    if not challenge:
        challenge = yield first  # it took nothing from the command
    if (count := _ITERATIONS.search(challenge)) and int(count[1]) > _MAX_ITERATIONS:
        raise ValueError("too many iterations")
    client.set_server_first(challenge)
    client.set_server_final((yield client.get_client_final()))
    yield ""


def _external(user: str) -> Dialogue:
    """RFC 4422 appendix A: the certificate identifies us; a user is whom to act for."""
    yield user
    yield user


def _wrong_answer(mechanism: str) -> RelayUnavailableError:
    text = f"the relay answers {mechanism} wrongly: it may not know the password (at AUTH)"
    return RelayUnavailableError("login_refused", text)


async def _response(dialogue: Dialogue, mechanism: str, challenge: bytes) -> str:
    try:
        # in a thread: SCRAM computes thousands of hashes, as many as the relay asks for
        response = await asyncio.to_thread(_next, dialogue, challenge.decode(errors="replace"))
    except SCRAM_ERRORS:
        raise _wrong_answer(mechanism) from None
    if response is None:
        text = f"the relay asks for more than {mechanism} has (at AUTH)"
        raise RelayUnavailableError("login_refused", text)
    return response


def _next(dialogue: Dialogue, challenge: str) -> str | None:
    """Return the response to a challenge, `None` if the mechanism has no more."""
    try:
        return dialogue.send(challenge)
    except StopIteration:
        return None


def _by_token(response: str, end: str) -> Dialogue:
    """RFC 7628, or XOAUTH2: the relay sends why it refuses as a challenge, and its reply after another response."""
    challenge = yield response
    if not challenge:
        challenge = yield response  # it took nothing from the command
    yield end


def _without(token: str, text: str) -> str:
    return MAY_BE_TOKEN.sub("***", text.replace(token, "***")) if token else text


def _status(challenge: bytes) -> str:
    status = _STATUS.search(challenge)
    return f", status {status[1].decode()}" if status else ""


def _b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
