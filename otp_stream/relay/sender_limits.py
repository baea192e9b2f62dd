"""Limits on the mail of one sender, which are no limits of the relay. A relay may serve many senders."""

import re

from otp_stream.core.outcome import Reply

_RECENT_MS = 5_000
_NAMES_LIMIT = re.compile(
    r"(?i)\bsender(?:'s)? (?:[\w-]{1,30} ){0,3}(?:limit|limits|limited|quota|quotas|rate|threshold|frequency)\b"
    r"|\b(?:limit|quota|rate|messages|mails|e-?mails|much mail) (?:[\w-]{1,30} ){0,2}"
    r"(?:of|for|from|on|per|by) (?:the |this |your |each |one )?sender\b"
)
"""A limit of the sender, whose address need not be in the reply."""
_OF_ALL = re.compile(
    r"(?i)\b(?:connections?|sessions?|clients?|hosts?|servers?|ip|busy|system|storage|space|resources|load|relay"
    r"|customer|accounts?|credits?|balance|plan|subscription|log-?ins?|smtp_user)\b|\b\d{1,3}(?:\.\d{1,3}){3}\b|\[ipv6:"
)
"""A reply to MAIL with these words is about our host, our login or the relay itself."""


class ThrottledSenders:
    """The senders whose mail a relay has throttled within the last five seconds. Times are milliseconds since 1970."""

    def __init__(self) -> None:
        self._at_ms: dict[str, int] = {}

    def are_several(self, sender: str, now_ms: int) -> bool:
        """Record that mail of a sender was throttled. Returns whether mail of another one was throttled, too."""
        self._at_ms = {it: at_ms for it, at_ms in self._at_ms.items() if now_ms - at_ms < _RECENT_MS}
        self._at_ms[sender] = now_ms
        return len(self._at_ms) > 1


def may_limit_sender(reply: Reply, sender: str) -> bool:
    """Return whether a reply that throttles may be about this sender alone: it names it, or is the reply to MAIL."""
    if "SENDER_EMAIL" in reply.text or _NAMES_LIMIT.search(reply.text) or _names_domain(reply.text, sender):
        return True
    # X.3.X and X.4.X are about the system and the network (RFC 3463)
    of_system = reply.code in {421, 452} or reply.about in {"system", "network"}
    return reply.stage == "mail" and not of_system and not _OF_ALL.search(reply.text)


def _names_domain(text: str, sender: str) -> bool:
    # only behind this word: the relay's own name may be in the same domain
    domain = re.escape(sender.rpartition("@")[2])
    return bool(re.search(rf"(?i)\bdomain\W{{1,3}}{domain}(?![\w-]|\.\w)", text))
