"""What a relay's reply means: about this recipient or message, or about the relay as a whole.

Facts only. Whether a job is tried again is decided elsewhere.
"""

import re

from otp_stream.core.masking import scrub
from otp_stream.core.outcome import Accepted, Deferred, Outcome, Rejected, Reply, Stage, Trouble, Unavailable

from .parser import Answer

_ENHANCED = re.compile(r"[245]\.\d{1,3}\.\d{1,3}(?=\s|$)")
_ADDRESS = re.compile(r"[^\s<>\"'(),;:\[\]]+@[^\s<>\"'(),;:\[\]]+")

_LOGIN_CODES = frozenset({525, 530, 534, 535, 538})
"""RFC 4954 §6 and RFC 5248: no job can pass before somebody mends the login."""
_LOGIN_STATUS = frozenset({"7.8", "7.9"})
_TLS_STATUS = frozenset({"7.10", "7.11"})
# RFC 3463: system full, system not accepting, congestion; a rate by Gmail's word. 4.5.3 is "too many recipients":
# with one recipient in each message it can only count across messages.
_THROTTLED_STATUS = frozenset({"4.3.1", "4.3.2", "4.4.5", "4.5.3", "4.7.28", "5.4.5"})

_LOGIN_WORDS = re.compile(r"authentication (?:is )?required|requires authentication", re.IGNORECASE)
# As Amazon SES, Office 365, Postfix (anvil), Exchange, SendGrid and Gmail word their limits. A greylisting host speaks
# of none of them, and a full or hurried mailbox has a status X.2.X.
_THROTTLED_WORDS = re.compile(
    r"throttl|rate[ -]?limit|(?:sending|submission|message|connection) rate"
    r"|too many (?:(?:concurrent|simultaneous|new|smtp|tls) )*"
    r"(?:connections|sessions|messages|mails|e-?mails|log-?ins?|auth)"
    r"|too many recipients (?:from|received|this)|too much mail|too frequent"
    r"|(?:connections?|hourly|daily|sending|submission)(?: \w+)* (?:limit|quota) (?:has been )?exceeded"
    r"|server (?:is )?(?:too )?busy|all server ports are busy",
    re.IGNORECASE,
)


def to_reply(answer: Answer, stage: Stage) -> Reply:
    """Return the reply with its enhanced code (RFC 2034) apart, on one line and without e-mail addresses."""
    code, text = answer
    enhanced = _ENHANCED.match(text)
    status = enhanced[0] if enhanced else None
    if status is not None and int(status[0]) != code // 100:
        status = None
    if status is not None:
        # each line of a reply repeats the status
        text = "\n".join([line.removeprefix(status) for line in text.split("\n")])
    if "@" in text:
        text = _ADDRESS.sub("***", text)
    return Reply(code, status, scrub(text), stage)


def classify(reply: Reply) -> Outcome | None:
    """Return what a reply to MAIL, RCPT, DATA or the final dot says of the job; `None` for one that fits nowhere."""
    kind = reply.code // 100
    if kind == 2 and reply.stage == "body":
        return Accepted(reply)
    if kind not in {4, 5}:
        return None
    if trouble := trouble_of(reply):
        return Unavailable(trouble, str(reply), reply.code)
    return Rejected(reply) if kind == 5 else Deferred(reply)


def trouble_of(reply: Reply) -> Trouble | None:
    """Return the trouble that concerns every job; `None` where the reply is about one recipient or message."""
    status = reply.enhanced or ""
    if reply.code in _LOGIN_CODES and "starttls" in reply.text.lower():
        return "tls_failed"
    if reply.code in _LOGIN_CODES or status[2:] in _LOGIN_STATUS or _asks_for_login(reply):
        return "login_refused"
    if status[2:] in _TLS_STATUS:
        return "tls_failed"
    if _throttles(reply, status):
        return "throttled"
    if reply.code == 454 and status == "4.7.0":
        # RFC 4954 §6 gives it to a login that fails for now, RFC 3207 §4 to TLS
        return "tls_failed" if reply.stage == "tls" else "login_refused"
    return "unreachable" if reply.code == 421 else None


def refusal(reply: Reply) -> Trouble:
    """Return the trouble that a refusal before the first MAIL means: there is no job yet that it could be about."""
    if trouble := trouble_of(reply):
        return trouble
    match reply.stage:
        case "auth":
            return "login_refused"
        case "tls":
            return "tls_failed"
        case _:
            return "unreachable"


def _asks_for_login(reply: Reply) -> bool:
    return reply.code in {503, 550, 554} and reply.stage in {"mail", "rcpt"} and bool(_LOGIN_WORDS.search(reply.text))


def _throttles(reply: Reply, status: str) -> bool:
    if status in _THROTTLED_STATUS:
        return True
    # a refused connection can say 554 (RFC 5321 §3.1); afterwards 5xx is about the message
    spoken = reply.code // 100 == 4 or reply.stage in {"greeting", "ehlo"}
    return spoken and status[2:4] not in {"1.", "2."} and bool(_THROTTLED_WORDS.search(reply.text))
