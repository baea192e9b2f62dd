"""The mails and commands in flight on one connection."""

from collections import deque
from time import monotonic
from typing import Literal

from otp_stream.core.address import person_key
from otp_stream.core.outcome import Outcome, Reply, Stage

from .config import RelayConfig
from .envelope import Envelopes, Extensions, bdat_form
from .pending_send import PendingSend
from .protocol import RelayUnavailableError, SmtpProtocol
from .relay_support import RelaySupport
from .reply import to_reply

Step = Stage | Literal["rset", "quit"]

Event = Outcome | RelayUnavailableError | Literal["started", "requeued"]
"""What has happened to a mail: the relay has replied; the connection is lost; the mail has its connection to itself;
or the envelope that was sent ahead had no effect, and the mail needs another connection."""

_UNPROVEN_S = 10.0
"""Time limit of pipelined commands at a relay that has answered none yet: some announce PIPELINING but lose them."""
_AHEAD_S = 10.0
"""Time limit of MAIL in an envelope that was sent ahead: some relays discard what they have read after a final dot. The
mail can safely be sent again alone."""
_ENDED_S = 10.0
"""How long a relay may take after a 421 to close the connection, or to reply to what was sent behind."""
_RESPONSIVE_S = 1.0
"""A connection on which the relay has replied within this time is taken to be alive."""
_FOLLOW_S = 1.0
"""How long an envelope waits behind another mail, because a relay may take minutes for its last reply. Behind a content
that takes so long, no whole mail is sent, because it cannot be recalled."""


class Pipeline(SmtpProtocol):
    """Sends one mail at a time, and as much of the next as the relay lets us.

    If the relay offers PIPELINING, MAIL, RCPT and DATA go out in one packet, together with the content of the mail
    before if there is one (RFC 2920 §3.1 lets content begin a group), which saves a round trip for each mail. If it
    also offers CHUNKING (RFC 3030), MAIL, RCPT and the content go out in one packet, behind another mail if all
    connections are busy. Replies are matched to steps by their order.
    """

    def __init__(self, config: RelayConfig, support: RelaySupport) -> None:
        super().__init__()
        self._sender = config.sender
        self._shared = config.shared
        self._login = config.user
        self._support = support
        limits = config.limits
        self._waits: dict[Step, float] = {
            "mail": limits.mail_s, "rcpt": limits.rcpt_s, "data": limits.data_s, "body": limits.body_s,
            "rset": limits.handshake_s, "quit": limits.quit_s,
        }  # fmt: skip
        self._expected: deque[Step] = deque()
        self._pipelining = False
        self._may_chunk = config.chunking
        self._unproven = False
        """Whether no pipelined commands have been answered yet."""
        self._envelopes: Envelopes | None = None
        self._rcpt = b""
        self._unsent = b""
        """Content to send together with the next command."""
        self._envelope_at: float | None = None
        self._following_since = 0.0
        self._replied_at = 0.0
        self._sent_ahead = False
        """Whether the envelope of `current` was sent behind the content of the mail before."""
        self._accepted_before = False
        """Whether the relay accepted that content."""
        self._following_withdrawn = False
        """Whether the mail whose envelope was sent ahead has been requeued."""
        self.events: list[tuple[PendingSend, Event]] = []
        """What has happened to mails, in order, since the owner took them last."""
        self._session_ended = False
        """Whether the last reply was 421. If the relay closes now, it has not read what was sent behind."""
        self._unread = False
        """Whether the relay has closed the connection after a 421."""
        self.spent = False
        """Whether it must take no more mail, because a refusal was about the session."""
        self._content_at = self._body_s = 0.0
        """When the content was sent, and how long the relay took for the last one."""
        self._at_content = False
        """Whether a content is about to be sent by DATA."""
        self.fresh = True
        """Whether it was just opened: no mail and no idle time since."""
        self.free = True
        """Whether it can take the next mail."""
        self.current: PendingSend | None = None
        self.following: PendingSend | None = None
        """The mail of which the envelope, or with CHUNKING everything, was sent behind the content of `current`."""
        self.overdue_at: float | None = None
        """When the expected reply is overdue, by the monotonic clock."""

    @property
    def followable(self) -> bool:
        """Whether the envelope of another mail, or with CHUNKING all of it, may be sent behind the content."""
        if self._at_content:
            return True
        may_follow = self._support.content_ahead and self._body_s < _FOLLOW_S
        return self.is_chunking and self.following is None and may_follow

    @property
    def is_chunking(self) -> bool:
        """Whether the content of the current mail was sent by BDAT, which is known to work at this relay."""
        current = self.current
        return current is not None and current.chunked and current.written and self._support.chunking is True

    def become_ready(self, extensions: Extensions) -> None:
        """Accept mail from now on."""
        self._envelopes = Envelopes(self._sender, extensions)
        self._pipelining = extensions.pipelining
        self._unproven = extensions.pipelining
        self._may_chunk = self._may_chunk and extensions.chunking
        self._replied_at = monotonic()
        self._apply_support()

    def start(self, pending: PendingSend) -> Reply | None:
        """Send the envelope of a mail. Returns our own refusal instead if this relay cannot take the mail."""
        assert self._envelopes is not None  # noqa: S101 - for the type checker: `become_ready` has set it
        commands = self._envelopes.write(pending.mail)
        if isinstance(commands, Reply):
            return commands
        if self._unproven:
            self._apply_support()
        pending.begin()
        self.free = False
        mail, self._rcpt = commands
        if self.current is None:
            self.current, self._envelope_at, self._sent_ahead = pending, monotonic(), False
            pending.step_at = self._envelope_at
            self._start_alone(pending, mail)
        else:
            self.following, self._following_since = pending, monotonic()
            pending.chunked = self.current.chunked
            if pending.chunked:
                # whatever became of the mail before it, no transaction with another recipient is open then
                self._send_whole(pending, b"RSET\r\n" + mail, "rset")
            else:
                # kept, to be sent in one packet with the content
                self._unsent += mail + self._rcpt + b"DATA\r\n"
                self._expected.extend(("mail", "rcpt", "data"))
        return None

    def _start_alone(self, pending: PendingSend, mail: bytes) -> None:
        pending.chunked = self._may_chunk and self._support.may_chunk(pending)
        if pending.chunked and self._is_responsive(pending):
            self._content_at = pending.step_at
            self._send_whole(pending, mail)
        elif not self._pipelining:
            self._send(mail, "mail")
        elif pending.chunked:
            self._send(mail + self._rcpt, "mail", "rcpt")
        else:
            self._send(mail + self._rcpt + b"DATA\r\n", "mail", "rcpt", "data")

    def _send_whole(self, pending: PendingSend, commands: bytes, *steps: Step) -> None:
        pending.written = True
        self._send(commands + self._rcpt + bdat_form(pending.mail), *steps, "mail", "rcpt", "body")

    def _is_responsive(self, pending: PendingSend) -> bool:
        """Whether to send the content before any reply: on a connection that turns out to be dead, that is a risk."""
        known = self._pipelining and self._support.pipelining and self._support.chunking and self._support.content_ahead
        return bool(known) and not pending.probe and monotonic() - self._replied_at < _RESPONSIVE_S

    def check_timeouts(self, now: float) -> None:
        """Abort if a reply is overdue. Requeue a following mail that waits too long. `now` is the monotonic clock."""
        if self.overdue_at is not None and now >= self.overdue_at:
            if self._is_unproven_step() and self._waits[self._expected[0]] > _UNPROVEN_S:
                self._pipelining_fails()
            elif self.current is not None and self._is_ahead_step(self.current) and self._waits["mail"] > _AHEAD_S:
                self._support.ahead = False
                self._withdraw(self.current, "the relay lost an envelope that was sent ahead")
            else:
                self.abort(RelayUnavailableError("unreachable", "no reply in time"))
        elif now - self._following_since >= _FOLLOW_S:
            self.recall()

    def recall(self) -> None:
        """Requeue the following mail, if its content has not been sent."""
        following = self.following
        if following is not None and not following.written:
            self.following, self._following_withdrawn = None, True
            self._report(following, "requeued")

    def withdraw_slow(self, pending: PendingSend) -> str:
        """End the session, which is too slow for the mail on it. Returns the command that the relay has not replied to.

        The content must not have been sent.
        """
        step = self._expected[0] if self._expected else "mail"
        if self._is_unproven_step():
            self._support.pipelining = False  # it may have lost the pipelined commands
        self._withdraw(pending, "the mail was sent through a faster relay")
        return "mail" if step == "rset" else step

    def quit(self) -> None:
        """Send QUIT (RFC 5321 §4.1.1.10); the relay closes."""
        self._send(b"QUIT\r\n", "quit")

    def _send(self, data: bytes, *steps: Step) -> None:
        self._expected.extend(steps)
        self.overdue_at = monotonic() + self._wait_s()
        self.transport.write(self._unsent + data)
        self._unsent = b""

    def _report(self, pending: PendingSend, event: Event) -> None:
        self.events.append((pending, event))
        if event != "started":
            self._support.mail_ended(pending)

    def _wait_s(self) -> float:
        step = self._expected[0]
        if self.current is not None and self.current.chunked and self.current.written:
            # a relay may keep its replies until it has read everything that was sent
            return _ENDED_S if self._session_ended else self._waits["body"]
        wait_s = self._waits[step]
        if step == "mail" and self._is_ahead_step(self.current):
            return min(wait_s, _AHEAD_S)
        return min(wait_s, _UNPROVEN_S) if self._unproven and self._is_unproven_step() else wait_s

    @property
    def _has_sent_following(self) -> bool:
        """Whether the content of the following mail was sent, too, so that only its replies show what becomes of it."""
        return self.following is not None and self.following.written

    def _is_unproven_step(self) -> bool:
        return self._unproven and self._expected[0] in {"mail", "rcpt", "data"}

    def _is_ahead_step(self, pending: PendingSend | None) -> bool:
        """Whether the next expected reply is to the MAIL of an envelope that was sent behind an accepted content."""
        waits = bool(self._expected) and self._expected[0] == "mail"
        return waits and pending is not None and self._sent_ahead and self._accepted_before

    def _is_followed(self) -> bool:
        """Whether a whole mail was sent behind the command that waits for its reply.

        Some relays reply 421 and continue: only their replies, or the end of the connection, show what they did.
        """
        resets = self._expected[0] == "rset" and self.current is not None and self.current.written
        return resets or self._has_sent_following

    def _apply_support(self) -> None:
        works = self._support.pipelining
        if works is not None:
            self._unproven = False
            self._pipelining = self._pipelining and works

    def _prove(self, *, works: bool) -> None:
        if self._unproven:
            self._unproven = False
            self._support.pipelining = works

    def _pipelining_fails(self) -> None:
        """Stop pipelining at this relay. The mail goes over a new connection, one command at a time."""
        self._support.pipelining = False
        if self.current is not None:
            self.current.withdrawn = True
        self.abort(RelayUnavailableError("unreachable", "the relay lost a pipelined command"))

    def _withdraw(self, pending: PendingSend, why: str, *, counts: bool = False) -> None:
        """End the session, which is at fault. The mail goes over another one, and no attempt is counted.

        `counts`: whether to count the loss, because the mail itself may be at fault, or all sessions.
        """
        pending.withdrawn, pending.written, pending.refusal = not counts, False, None
        self.spent = True
        error = RelayUnavailableError("unreachable", why)
        if self._has_sent_following:
            self.current = None
            self._report(pending, error)
        else:
            self.abort(error)

    def _reply(self, stage: Stage, code: int, text: str) -> Reply:
        mail = self.current.mail if self.current else None
        our_sender = self._sender if mail is None or mail.sender is None else mail.sender
        secrets = mail.secrets if mail else ()
        # the text of the reply that accepts a mail is shown nowhere, and a search takes as long as the rest; a 2xx at
        # another step is unexpected, and shown
        of_login = () if stage == "body" and code // 100 == 2 else self.shown
        if "@" not in text:
            return to_reply((code, text), stage, secrets=secrets, of_login=of_login)
        # in a mail to ourselves, our address is the recipient's, and its refusal is about this mail only
        other = person_key(mail.recipient) if mail else ""
        sender, login = (it if it and person_key(it) != other else None for it in (our_sender, self._login))
        return to_reply((code, text), stage, sender=sender, login=login, secrets=secrets, of_login=of_login)
