"""Which 4xx replies mean "not yet" (greylisting, RFC 6647) rather than a failure of the relay or the mailbox."""

import re

from .outcome import Reply
from .wording import Wording

_CODES = {421, 450, 451}
_ENHANCED = {"4.2.0", "4.7.0", "4.7.1"}
"""Used by Postgrey, Postfix and milter-greylist, SQLgrey, Exchange and most appliances."""
_OTHER_ENHANCED = re.compile(r"\d\.[3-6]\.|4\.2\.[123]$")
"""Of RFC 3463: the system, the network, the protocol or the content; a mailbox that is disabled or full."""

_UNKNOWN_SENDER = Wording(
    r"not yet (?:known|seen|white-?listed)|(?:not (?:known|seen)|unknown) (?:yet|so far|before)|"
    r"never (?:been )?seen before|unknown sender\b(?! domain| address).{0,40}\b(?:try|retry|later|wait|come back)",
)
_EXPLICIT = Wording(
    *_UNKNOWN_SENDER.patterns,
    r"retry (?:time(?:out)?|interval|period) (?:has )?not (?:yet )?(?:been )?(?:reached|elapsed|expired|passed|over)"
    r"(?! for any host)|"  # Exim writes that about the host that it would relay to
    r"gr[ea]y[ -]?list|post-?grey|sql-?grey|gld\b|first[ -](?:contact|attempt|time)|unknown triplet|"
    r"internal resources? (?:is |are )?temporarily unavailable",  # Mimecast's
)
_FAILURE = Wording(
    r"quota|storage|disk|space|memory|resource|load|local (?:error|problem|configuration)|system|internal|"
    r"server (?:error|problem|fail|config)|database|lookup|look up|resol|time[d -]*out|queue file|"
    r"too many|concurren|virus|scan|certificate|login|authenti|reverse|hostname",
    r"\b(?:full\b|dns\b|rates?\b|limit|tls\b)",
)
"""Faults of the relay, the mailbox or the sender, for which waiting helps no more than after any other 4xx."""
_NOT_YET = Wording(
    r"(?:try|retry|come|attempt|resend|send)(?: it| this| your (?:mail|message))?(?: again| back)? "
    r"(?:(?:a bit |a little )?later|in \S+|after|at a later|shortly|soon)|(?:try|retry|come back) again|"
    r"please (?:retry|try|wait)|"
    r"temporar\w+ (?:defer\w*|delay\w*|reject\w*|refus\w*|block\w*|den(?:ied|ial)|unavailable)|"
    r"deferred|deferring|delayed|not yet (?:authori[sz]ed|accepted|allowed|known)|wait \S+ (?:second|minute)|"
    r"too (?:soon|early)\b|verification (?:is )?in progress",
    r"\b(?:wait|delay)(?: (?:for|of|another|at least|about)){0,2} \d",
)


def names_unknown_sender(text: str) -> bool:
    """Return whether a 4xx reply means that the relay does not know the sender or its host yet."""
    return _UNKNOWN_SENDER.search(text) is not None


def asks_for_later(text: str) -> bool:
    """Return whether the text of a 4xx reply asks for the same mail later, regardless of its codes."""
    return bool(_EXPLICIT.search(text) or (_NOT_YET.search(text) and not _FAILURE.search(text)))


def is_greylisting(reply: Reply) -> bool:
    """Return whether a reply is greylisting, so that the mail should be retried until its code expires."""
    if reply.code // 100 != 4:
        return False
    if _EXPLICIT.search(reply.text):
        return True
    if reply.code not in _CODES or _FAILURE.search(reply.text):
        return False
    if reply.enhanced and _OTHER_ENHANCED.match(reply.enhanced):
        return False
    return reply.enhanced in _ENHANCED or _NOT_YET.search(reply.text) is not None
