"""The meaning of a relay's reply: whether it is about this recipient or message, or about the relay as a whole.

Facts only. Whether a job is tried again is decided elsewhere.
"""

import re
from collections.abc import Iterable, Sequence

from otp_stream.core.greylisting import asks_for_later, names_unknown_sender
from otp_stream.core.masking import SHOWN, scrub
from otp_stream.core.outcome import Accepted, Deferred, Outcome, Rejected, Reply, Stage, Unavailable, UnavailableReason
from otp_stream.core.shown_secrets import without_long_words
from otp_stream.core.wording import CLASSIFIED, Wording

from . import reply_words as words
from .parser import Answer
from .reply_text import beginning, has_other_address, without_addresses, without_domain

_ENHANCED = re.compile(r"#?([245]\.\d{1,3}\.\d{1,3})(?=\s|$)")
_AT_THE_END = re.compile(r"\(#([245]\.\d{1,3}\.\d{1,3})\)\Z")
"""As qmail writes it."""
_SENDER, _LOGIN = "SENDER_EMAIL", "SMTP_USER"
"""The settings with our addresses, which replace them, so that a reader sees whom a reply is about."""

_LOGIN_CODES = frozenset({525, 530, 534, 535, 538})
"""RFC 4954 §6 and RFC 5248: no mail is accepted until the login is fixed."""
# 7.30, 7.57 and 7.139 are Exchange Online's: basic authentication, no login, SMTP login disabled.
_LOGIN_STATUS = frozenset({"7.8", "7.9", "7.30", "7.57", "7.139"})
"""Only with words about a login: Yahoo uses 5.7.9 for mail that breaks a policy, Gmail 5.7.30 for mail without DKIM."""
_TLS_STATUS = frozenset({"7.10", "7.11"})
_CLOSED_STATUS = frozenset({"4.3.2", "4.3.5"})
"""RFC 3463: the system accepts no messages now (postscreen replies with it until the client connects again), or it is
misconfigured."""
# RFC 3463: system full, congestion; a rate, as Gmail uses it. 4.5.3 is "too many recipients":
# with one recipient in each message it can only count across messages.
_THROTTLED_STATUS = frozenset({"4.3.1", "4.4.5", "4.5.3", "4.7.28", "5.4.5"})
_FULL_STATUS = frozenset({"4.3.1", "4.4.5"})
"""Of them, those of the system as a whole. A full mailbox is 4.2.2, even if the text is about storage."""
# By Exchange Online: daily recipients, permitted limits, tenant's threshold; 4.7.5xx and 4.7.6xx limit the client.
_QUOTA_STATUS = re.compile(r"[45]\.(?:1\.90|7\.508|7\.705)|4\.7\.[56]\d\d")
# RFC 3463 and 7372: the sender's address, the client's reverse DNS; by Exchange Online: may not send as, relay for or
# from this address or host.
_SENDER_STATUS = re.compile(r"[45]\.(?:1\.[78]|7\.(?:25|27|60|64|50[1236]|511|6[0-4]\d|7[0-4]\d|750)|2\.252)")
_RECIPIENT_STATUS = frozenset({"1.1", "1.2", "1.3", "1.6", "1.10"})
"""RFC 3463, RFC 7505: the recipient's address or domain does not exist."""
_MAILBOX_STATUS = frozenset({"2.1", "2.2"})
"""RFC 3463: disabled or full. A limit on incoming mail may have the same words as one on outgoing mail."""
_AUTHENTICITY_STATUS = frozenset({"7.20", "7.21", "7.22", "7.23", "7.24", "7.26"})
"""RFC 7372: failures of DKIM and SPF."""
_OF_A_MAIL: frozenset[Stage] = frozenset({"rcpt", "data", "body"})
"""The stages that a recipient and a message belong to."""
_OF_ANOTHER_SERVER = Wording(
    r"\b(?:said|says|replied|responded|was):? ?[\"'<]?[245]\d\d\b",
    r"(?:remote|destination) (?:mail )?(?:server|host|mx)\b.{0,80}: ?[245]\d\d\b",
    r"^(?:(?!\bsender\b)[\s\S])*\b(?:callout\b|verification failed for <?\*\*\*)",
)
"""A server that the relay asked about the recipient. The owner of a domain chooses its words."""
_ABOUT_THE_MESSAGE = re.compile(r"[45]\.(?:3\.4|6\.\d+|2\.3)")
"""RFC 3463: too big for the system or the mailbox; content or media, and SMTPUTF8 (RFC 6531), not supported."""


def to_reply(
    answer: Answer,
    stage: Stage,
    *,
    sender: str | None = None,
    login: str | None = None,
    secrets: Sequence[str] = (),
    of_login: Iterable[str] = (),
) -> Reply:
    """Parse a reply: its enhanced code (RFC 2034) is separated, its text on one line and without e-mail addresses.

    `sender` is the envelope's MAIL FROM and `login` the user: they are replaced by `SENDER_EMAIL` and `SMTP_USER`, so
    that a reader sees whom the reply is about. The secrets `of_login` are redacted here, because no later reader knows
    them. The mail's `secrets` are redacted here only in a text in which no later search would find them: one that is
    too long to be shown as a whole, or has another address, which may be a part of one.
    """
    code, text = answer
    enhanced = _ENHANCED.match(text) or _AT_THE_END.search(text.rstrip()[-12:])
    status = enhanced[1] if enhanced else None
    if status is not None and int(status[0]) != code // 100:
        status = None
    text = without_long_words(beginning(text, status), of_login)
    text = without_domain(text, secrets) if code >= 400 else text
    is_long = len(text) > SHOWN
    if "@" not in text:
        text = scrub(text, *of_login, *(secrets if is_long else ()), limit=CLASSIFIED)
        return Reply(code, status, text, stage)
    ours = {name.lower(): shown for name, shown in ((login, _LOGIN), (sender, _SENDER)) if name}
    hidden = secrets if is_long or has_other_address(text, (*ours, *secrets)) else ()
    text = scrub(text, *of_login, *hidden, limit=CLASSIFIED)
    return Reply(code, status, without_addresses(text, ours), stage)


def classify(reply: Reply) -> Outcome | None:
    """Return what a reply to MAIL, RCPT, DATA or the content means for the job; `None` if it is unexpected."""
    kind = reply.code // 100
    if kind == 2 and reply.stage == "body":
        return Accepted(reply)
    if kind not in {4, 5}:
        return None
    if reason := unavailable_reason(reply):
        return Unavailable(reason, str(reply), reply)
    if out_of_step(reply):
        return None
    return Rejected(reply) if kind == 5 else Deferred(reply)


def out_of_step(reply: Reply) -> bool:
    """Return whether the relay did not expect the command (RFC 5321 §4.3.2): about the session, not the recipient."""
    return (
        _is_out_of_step(reply) and reply.stage in {"mail", "rcpt", "data", "body"} and unavailable_reason(reply) is None
    )


def names_no_reason(reply: Reply) -> bool:
    """Return whether MAIL was refused without naming the sender, the account or the message."""
    by_default = reply.stage == "mail" and unavailable_reason(reply) in {"sender_refused", "unreachable"}
    return by_default and _of_account(reply, reply.enhanced or "") is None


def is_session_limit(reply: Reply) -> bool:
    """Return whether a refusal is about the number of mails or errors of one session, so that a new one is accepted."""
    ended = reply.code == 421 and words.ERRORS.search(reply.text)
    # "too many recipients" in reply to MAIL: OpenSMTPD limits the mails of a session with this status
    limited = reply.stage == "mail" and reply.enhanced == "4.5.3"
    return reply.code // 100 in {4, 5} and bool(ended or limited or words.SESSION.search(reply.text))


def unavailable_reason(reply: Reply) -> UnavailableReason | None:
    """Return why no mail can be sent now, or `None` if the reply is about one recipient or message."""
    status = reply.enhanced or ""
    if reply.stage in _OF_A_MAIL:
        if _OF_ANOTHER_SERVER.search(reply.text):
            return None
        if _is_for_our_address(reply, status):
            return _of_tls_or_login(reply, status) or _of_our_address(reply.text)
        if _is_for_one_mail(reply, status):
            return None
    if reason := _of_tls_or_login(reply, status):
        return reason
    if reply.stage == "mail":
        return _of_mail_from(reply, status)
    if reply.stage in _OF_A_MAIL and status[2:] in _RECIPIENT_STATUS:
        return None
    return _of_account(reply, status) or ("unreachable" if _is_closed(reply, status) else None)


def handshake_reason(reply: Reply) -> UnavailableReason:
    """Return what a refusal before the first MAIL means, which cannot be about one job."""
    if reason := unavailable_reason(reply):
        return reason
    match reply.stage:
        case "auth":
            return "login_refused"
        case "tls":
            return "tls_failed"
        case _:
            return "unreachable"


def _of_tls_or_login(reply: Reply, status: str) -> UnavailableReason | None:
    text = reply.text
    if words.STARTTLS.search(text) or (reply.code in _LOGIN_CODES and "starttls" in text.lower()):
        return "tls_failed"
    if reply.code in _LOGIN_CODES or _says_login(reply, status) or _asks_for_login(reply):
        return "login_refused"
    if status[2:] in _TLS_STATUS:
        return "tls_failed"
    if reply.code == 454 and status == "4.7.0" and not _names_recipient(reply) and not words.LIMITED.search(text):
        # a temporary failure of the login (RFC 4954 §6), or of TLS (RFC 3207 §4)
        return "tls_failed" if reply.stage == "tls" else "login_refused"
    return None


def _is_closed(reply: Reply, status: str) -> bool:
    """Whether the relay takes no mail at all for now."""
    if _names_recipient(reply) or (reply.stage in _OF_A_MAIL and status.startswith("4.2.")):
        return False  # about one mailbox
    if status in _CLOSED_STATUS and not words.RECIPIENT.search(reply.text):
        return True
    return reply.code == 421 or bool(words.CLOSED.search(reply.text) and not words.MAILBOX.search(reply.text))


def _names_recipient(reply: Reply) -> bool:
    return reply.stage in _OF_A_MAIL and reply.text.lstrip("<").startswith("***")


def _is_for_our_address(reply: Reply, status: str) -> bool:
    """Whether our address or domain is refused, and neither a recipient nor the content."""
    text = reply.text
    if "***" in text or status[2:] in _AUTHENTICITY_STATUS:
        return False
    if words.OUR_DOMAIN.search(text) and not words.THEIRS.search(text):
        return True
    if not (_SENDER in text or _LOGIN in text) or _is_out_of_step(reply):
        return False
    if words.OF_OTHERS.search(text) or words.AUTHENTICITY.search(text) or words.CONTENT.search(text):
        return False
    if reply.code // 100 == 4 and asks_for_later(text) and not words.BLOCKED.search(text):
        return False
    of_recipient = status[2:] in _RECIPIENT_STATUS | _MAILBOX_STATUS or words.RECIPIENT.search(text)
    return not of_recipient or words.OUR_ADDRESS.search(text) is not None


def _of_our_address(text: str) -> UnavailableReason:
    limited = words.QUOTA.search(text) or words.SENDER_QUOTA.search(text) or words.LIMITED.search(text)
    return "throttled" if limited and not words.OUR_DOMAIN.search(text) else "sender_refused"


def _is_for_one_mail(reply: Reply, status: str) -> bool:
    """Whether the words are clearly about the recipient, the message, or a sender new to the relay."""
    text = reply.text
    if status[2:] in _AUTHENTICITY_STATUS or words.AUTHENTICITY.search(text):
        return True
    if reply.code // 100 == 4 and names_unknown_sender(text) and not _SENDER_STATUS.fullmatch(status):
        return True
    is_our_login = reply.code in _LOGIN_CODES and not words.TLS.search(text)
    return bool(words.RECIPIENTS_OWN.search(text)) and not is_our_login


def _is_out_of_step(reply: Reply) -> bool:
    if reply.stage in _OF_A_MAIL and (reply.enhanced or "").startswith(("5.1.", "5.2.", "5.6.", "5.7.")):
        return bool(words.OUT_OF_STEP.search(reply.text))
    return reply.code == 503 or (reply.code // 100 in {4, 5} and bool(words.OUT_OF_STEP.search(reply.text)))


def _says_login(reply: Reply, status: str) -> bool:
    if status[2:] not in _LOGIN_STATUS:
        return False
    return reply.stage not in _OF_A_MAIL or bool(words.LOGIN_FAILED.search(reply.text))


def _asks_for_login(reply: Reply) -> bool:
    if reply.stage not in {"mail", "rcpt", "data", "body"}:
        return False
    return bool(words.LOGIN.search(reply.text)) and not words.NO_LOGIN.search(reply.text)


def _of_mail_from(reply: Reply, status: str) -> UnavailableReason | None:
    """Return the reason for a refused MAIL. Unless it is about the message's size or encoding, it is about all mail."""
    if _ABOUT_THE_MESSAGE.fullmatch(status) or (not status and _of_message(reply)):
        return None
    if reason := _of_account(reply, status):
        return reason
    if _is_out_of_step(reply):
        return None
    if words.QUOTA.search(reply.text):
        return "throttled"
    return "sender_refused" if reply.code // 100 == 5 else "unreachable"


def _of_message(reply: Reply) -> bool:
    if reply.code == 555 and words.ENCODING.search(reply.text):
        return True
    size = words.TOO_BIG if reply.code == 552 else words.MESSAGE_SIZE
    return reply.code // 100 == 5 and size.search(reply.text) is not None


def _of_account(reply: Reply, status: str) -> UnavailableReason | None:
    """Return the reason if the reply is about our account's quota or rate, our sender address or our host."""
    text, subject = reply.text.replace("\u2019", "'"), status[2:4]
    if _QUOTA_STATUS.fullmatch(status) or words.RELAYED.search(text):
        return "throttled"
    if _SENDER_STATUS.fullmatch(status):
        return "sender_refused"
    if status[2:] not in _MAILBOX_STATUS and words.SENDER_QUOTA.search(text) and not words.SIZE.search(text):
        return "throttled"
    if words.SENDER.search(text):
        return "sender_refused"
    is_full = status in _FULL_STATUS or (
        reply.code == 452 and not status and words.FULL.search(text) and not words.MAILBOX.search(text)
    )
    if not is_full and words.RECIPIENT.search(text):
        return None
    if is_full or status in _THROTTLED_STATUS:
        return "throttled"
    if subject in {"1.", "2."} or words.CONTENT.search(text):
        return None
    limited = words.LIMITED.search(text) or (subject == "7." and words.QUOTA.search(text))
    return "throttled" if limited else None
