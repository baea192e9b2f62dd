"""One connection to the relay and the mail on it: a synchronous state machine, fed by the replies."""

from collections import deque
from time import monotonic
from typing import Literal, Protocol

from otp_stream.core.address import one_person
from otp_stream.core.outcome import Accepted, Outcome, Reply, Stage, Unavailable

from .config import RelayConfig
from .envelope import Envelopes, Extensions, wire_form
from .reply import classify, is_session_limit, names_no_reason, out_of_step, to_reply, unavailable_reason
from .turns import Turn
from .wire import RelayUnavailableError, Wire

_Step = Stage | Literal["rset", "quit"]


class Owner(Protocol):
    """Who holds the connection."""

    def wants(self, turn: Turn) -> bool:
        """Whether the mail is still to be sent. Asked once more before its content leaves."""
        ...

    def follow(self, connection: "Connection") -> None:
        """The connection's mail is about to leave: the envelope of another one may go right behind it."""
        ...

    def began(self, turn: Turn) -> None:
        """The mail whose envelope went ahead has its connection to itself now."""
        ...

    @property
    def pipelining(self) -> bool | None:
        """Whether the relay answers pipelined commands; `None` while nobody knows."""
        ...

    def pipelined(self, *, works: bool) -> None:
        """The relay has answered pipelined commands, or lost one."""
        ...

    def refused_ahead(self) -> None:
        """The relay does not take an envelope that is sent ahead behind a content."""
        ...

    def answered_ahead(self, *, taken: bool) -> None:
        """The relay has taken an envelope that was sent ahead, or it may be against such: it refused or ended it."""
        ...

    def ended(self, turn: Turn, outcome: Outcome) -> None:
        """The relay has spoken about this mail."""
        ...

    def free(self, connection: "Connection") -> None:
        """The connection can take the next one."""
        ...

    def give_back(self, turn: Turn) -> None:
        """The envelope that went ahead was in vain: nothing of this mail has left."""
        ...

    def broke(self, connection: "Connection", turn: Turn | None, error: RelayUnavailableError) -> None:
        """The connection is gone, and `turn` with it if there was one."""
        ...


_SLACK_S = 0.005
_NO_COMMAND = frozenset({500, 502})
"""RFC 5321 §4.2.4: a command that is not known; what was sent ahead may have been cut in two."""
_UNPROVEN_S = 10.0
"""How long pipelined commands may go unanswered at a relay that has answered none: some announce it and lose them."""
_AHEAD_S = 10.0
"""How long the MAIL of an envelope that was sent ahead may go unanswered: some relays throw away what they have read
behind a final dot. Nothing is lost by another try alone."""
FOLLOW_S = 1.0
"""How long an envelope waits behind the mail before it: a relay may take minutes for its last answer."""


class Connection(Wire):
    """Takes one mail at a time, between `start` and its owner's `ended`, and the envelope of the next.

    Where the relay offers PIPELINING, MAIL, RCPT and DATA go out in one packet, behind the content of the mail before
    if there is one (RFC 2920 §3.1 lets content open a group): that saves a round trip for each mail. Not where the
    relay thinks for longer than a round trip takes: a mail would wait behind another one and gain nothing. Replies are
    matched to the steps that they answer by their order.
    """

    def __init__(self, owner: Owner, config: RelayConfig) -> None:
        super().__init__()
        self._owner = owner
        self._sender = config.sender
        self._login = config.user
        limits = config.limits
        self._waits: dict[_Step, float] = {
            "mail": limits.mail_s, "rcpt": limits.rcpt_s, "data": limits.data_s, "body": limits.body_s,
            "rset": limits.handshake_s, "quit": limits.quit_s,
        }  # fmt: skip
        self._expected: deque[_Step] = deque()
        self._pipelining = False
        self._unproven = False
        """Whether no pipelined commands have been answered yet."""
        self._refusals = 0
        """Mails that were refused on this connection."""
        self._envelopes: Envelopes | None = None
        self._rcpt = b""
        self._unsent = b""
        """Content that leaves with whatever is said next."""
        self._follows_from = 0.0
        self._asked_at: float | None = None
        self._content_at = self._envelope_s = self._body_s = 0.0
        """How long the relay took for an envelope, and for its last word on a content."""
        self._sent_ahead = False
        """Whether the envelope of `turn` was sent ahead, behind the content before."""
        self._accepted_before = False
        """Whether the relay accepted that content."""
        self._in_vain = False
        """Whether nobody is left who wants the envelope that went ahead."""
        self.turn: Turn | None = None
        self.following: Turn | None = None
        """Whose envelope went out behind the content of `turn`."""
        self.fresh = True
        """Whether it was set up just now: no mail and no rest since."""
        self.mails = 0
        self.opened_at = self.rests_from = monotonic()
        self.overdue_at: float | None = None
        """When the reply that it waits for is late, by the monotonic clock."""

    def become_ready(self, extensions: Extensions) -> None:
        """Take mail from now on."""
        self._envelopes = Envelopes(self._sender, extensions)
        self._pipelining = extensions.pipelining
        self._unproven = extensions.pipelining
        self._learn()

    def start(self, turn: Turn) -> Reply | None:
        """Begin with a mail. Returns our own refusal, with nothing sent, for what cannot be asked of this relay."""
        assert self._envelopes is not None  # noqa: S101 - told to the type checker only: see `become_ready`
        commands = self._envelopes.write(turn.mail)
        if isinstance(commands, Reply):
            return commands
        if self._unproven:
            self._learn()
        turn.begin()
        if self.turn is None:
            self.turn, self._asked_at, self._sent_ahead = turn, monotonic(), False
        else:
            self.following, self._follows_from = turn, monotonic()
        mail, self._rcpt = commands
        if self.following is not None:
            # `_send_content` sends it, behind the content
            self._unsent += mail + self._rcpt + b"DATA\r\n"
            self._expected.extend(("mail", "rcpt", "data"))
        elif self._pipelining:
            self._say(mail + self._rcpt + b"DATA\r\n", "mail", "rcpt", "data")
        else:
            self._say(mail, "mail")
        return None

    def pulse(self, now: float) -> None:
        """Look after time limits; `now` is the monotonic clock."""
        if self.overdue_at is not None and now >= self.overdue_at:
            if self._is_unproven_step() and self._waits[self._expected[0]] > _UNPROVEN_S:
                self._pipelining_fails()
            elif self.turn is not None and self._is_ahead_step() and self._waits["mail"] > _AHEAD_S:
                self._owner.refused_ahead()
                self._take_back(self.turn, "the relay lost an envelope that was sent ahead")
            else:
                self.break_off(RelayUnavailableError("unreachable", "no reply in time"))
        elif now - self._follows_from >= FOLLOW_S:
            self.recall()

    def recall(self) -> None:
        """Give the mail behind back, if there is one: its content has not left."""
        following, self.following = self.following, None
        if following is not None:
            self._in_vain = True
            self._owner.give_back(following)

    def quit(self) -> None:
        """Take leave (RFC 5321 §4.1.1.10); the relay closes."""
        self._say(b"QUIT\r\n", "quit")

    def hear(self, code: int, text: str) -> None:
        """Go one step on."""
        if self._envelopes is None:
            super().hear(code, text)
        elif code == 421 or not self._expected:
            self._farewell(code, text)
        else:
            self._step(self._expected.popleft(), code, text)
            self.overdue_at = monotonic() + self._wait_s() if self._expected else None

    def break_off(self, error: RelayUnavailableError) -> None:
        """End the connection at once and give the mail on it back."""
        if self.lost is not None:
            return
        super().break_off(error)
        if self._envelopes is None:
            return
        turn, following = self.turn, self.following
        if turn is not None and self._is_ahead_step():
            self._owner.answered_ahead(taken=False)
        self.turn = self.following = None
        if turn is not None and self._expected:
            error = RelayUnavailableError(error.reason, f"{error} (at {self._expected[0].upper()})")
        if following is not None:
            self._owner.give_back(following)
        self._owner.broke(self, turn, error)

    def _say(self, data: bytes, *steps: _Step) -> None:
        self._expected.extend(steps)
        self.overdue_at = monotonic() + self._wait_s()
        self.transport.write(self._unsent + data)
        self._unsent = b""

    def _wait_s(self) -> float:
        wait_s = self._waits[self._expected[0]]
        if self._is_ahead_step():
            return min(wait_s, _AHEAD_S)
        return min(wait_s, _UNPROVEN_S) if self._is_unproven_step() else wait_s

    def _is_unproven_step(self) -> bool:
        return self._unproven and self._expected[0] in {"mail", "rcpt", "data"}

    def _is_ahead_step(self) -> bool:
        """Whether it waits for the first reply to an envelope that was sent ahead of a content that was taken."""
        waits = bool(self._expected) and self._expected[0] == "mail"
        return waits and self.turn is not None and self._sent_ahead and self._accepted_before

    def _learn(self) -> None:
        known = self._owner.pipelining
        if known is not None:
            self._unproven = False
            self._pipelining = self._pipelining and known

    def _pipelining_fails(self) -> None:
        """Go on without pipelining at this relay: its mail goes over a new connection, command by command."""
        self._owner.pipelined(works=False)
        if self.turn is not None:
            self.turn.withdrawn = True
        self.break_off(RelayUnavailableError("unreachable", "the relay lost a pipelined command"))

    def _take_back(self, turn: Turn, why: str) -> None:
        """End the session, which is at fault: the mail goes over another one, with no attempt counted."""
        turn.withdrawn, turn.written, turn.refusal = True, False, None
        self.break_off(RelayUnavailableError("unreachable", why))

    def _step(self, step: _Step, code: int, text: str) -> None:
        turn = self.turn
        if turn is None or step == "rset":
            self._between_mails(step, code)
            return
        turn.answered = True
        match step:
            case "mail" | "rcpt":
                self._on_envelope(turn, step, code, text)
            case "data":
                self._on_data(turn, code, text)
            case _:
                self._body_s = monotonic() - self._content_at
                self._end(turn, turn.refusal or self._reply("body", code, text))
                if self.lost is None:
                    self._go_on(accepted=code // 100 == 2)

    def _on_envelope(self, turn: Turn, step: Literal["mail", "rcpt"], code: int, text: str) -> None:
        if code // 100 == 2:
            if self._sent_ahead and step == "mail":
                self._owner.answered_ahead(taken=True)
        else:
            reply = self._reply(step, code, text)
            if code // 100 == 3 or (turn.refusal is None and self._is_of_session(reply)):
                self._session_fails(turn, reply)
                return
            if step == "mail" and self._is_stale(turn, reply):
                turn.answered = False
                self.break_off(RelayUnavailableError("unreachable", str(reply)))
                return
            turn.refusal = turn.refusal or reply
        if self._pipelining:
            return
        if turn.refusal is not None:
            self._refused(turn, turn.refusal)
        elif step == "mail":
            self._say(self._rcpt, "rcpt")
        else:
            self._say(b"DATA\r\n", "data")

    def _is_of_session(self, reply: Reply) -> bool:
        """Whether a refusal is about the session, or may be: then the mail has to be tried alone."""
        may_be = self._sent_ahead and (reply.code in _NO_COMMAND or names_no_reason(reply))
        return may_be or out_of_step(reply) or self._is_session_limit(reply)

    def _session_fails(self, turn: Turn, reply: Reply) -> None:
        if self._unproven and out_of_step(reply):
            self._owner.pipelined(works=False)  # it may have lost the command before this one
        ahead = self._sent_ahead and reply.stage == "mail"
        if ahead and self._accepted_before:
            if out_of_step(reply):
                self._owner.refused_ahead()
            else:
                self._owner.answered_ahead(taken=False)
        # no lone dot from here on: in a transaction that is still open, it would send an empty mail
        if ahead or self._is_session_limit(reply):
            self._take_back(turn, str(reply))
        else:
            self.break_off(RelayUnavailableError("unreachable", f"a reply that does not fit: {reply}"))

    def _is_stale(self, turn: Turn, reply: Reply) -> bool:
        # the relay gave the session up while it was idle, and says so when it is spoken to: another connection, once
        return (
            not self.fresh and not turn.losses and reply.code // 100 == 4 and unavailable_reason(reply) == "unreachable"
        )

    def _on_data(self, turn: Turn, code: int, text: str) -> None:
        if code != 354:
            reply = turn.refusal or self._reply("data", code, text)
            self._prove(works=not out_of_step(reply))
            self._refused(turn, reply)
            return
        self._prove(works=True)
        if turn.refusal is not None and turn.refusal.stage == "mail":
            # whose transaction it waits in is not known: a lone dot could send an empty mail to another recipient
            self._end(turn, turn.refusal)
            self.break_off(RelayUnavailableError("unreachable", "content is wanted after MAIL was refused"))
        elif turn.refusal is not None:
            # DATA was pipelined behind a refused RCPT, and the relay waits for content: a lone dot (RFC 2920 §3.1)
            self._say(b".\r\n", "body")
        else:
            self._send_content(turn)

    def _prove(self, *, works: bool) -> None:
        if self._unproven:
            self._unproven = False
            self._owner.pipelined(works=works)

    def _send_content(self, turn: Turn) -> None:
        self._unsent = wire_form(turn.mail)
        self._expected.append("body")
        self._content_at = monotonic()
        if self._asked_at is not None:
            self._envelope_s, self._asked_at = self._content_at - self._asked_at, None
        if self._pipelining and self._body_s <= self._envelope_s + _SLACK_S:
            self._owner.follow(self)
        # asked last of all: a process that is frozen between the question and the write sends what is not its own
        if self._owner.wants(turn):
            turn.written = True
            self._say(b"")
        else:
            # after DATA only the end of the connection takes a mail back
            turn.withdrawn = True
            self.break_off(RelayUnavailableError("unreachable", "the job was taken back"))

    def _go_on(self, *, accepted: bool) -> None:
        if self._in_vain:
            # after DATA only the end of the connection takes an envelope back
            self.break_off(RelayUnavailableError("unreachable", "the mail behind was given back"))
        elif self.following is not None:
            self.turn, self.following = self.following, None
            self._sent_ahead, self._accepted_before = True, accepted
            self._owner.began(self.turn)
        elif accepted:
            self._owner.free(self)
        else:
            self._reset()

    def _refused(self, turn: Turn, reply: Reply) -> None:
        self._end(turn, reply)
        if self.lost is None:
            self._reset()

    def _reset(self) -> None:
        # the relay may still hold the sender, even after a refused content: the next MAIL would be a nested one
        self._say(b"RSET\r\n", "rset")
        if self._pipelining:
            self._owner.free(self)

    def _end(self, turn: Turn, reply: Reply) -> None:
        outcome = classify(reply)
        if self._is_session_limit(reply):
            self._take_back(turn, str(reply))
            return
        if outcome is None:
            self._does_not_fit(turn, reply)
            return
        self.turn = None
        self.fresh = False
        self.mails += 1
        self._refusals += not isinstance(outcome, Accepted)
        self._owner.ended(turn, outcome)
        if isinstance(outcome, Unavailable) and outcome.reason != "throttled":
            # a login that was withdrawn does not come back on the same connection
            self.break_off(RelayUnavailableError(outcome.reason, outcome.error))

    def _does_not_fit(self, turn: Turn, reply: Reply) -> None:
        turn.refusal = None
        if out_of_step(reply):
            turn.written = False  # a refusal: the relay does not have the mail
            if self.following is not None:
                # the envelope behind the content may be what it is against
                self._owner.refused_ahead()
                turn.withdrawn = True
        self.break_off(RelayUnavailableError("unreachable", f"a reply that does not fit: {reply}"))

    def _reply(self, stage: Stage, code: int, text: str) -> Reply:
        mail = self.turn.mail if self.turn else None
        secrets = mail.secrets if mail else ()
        if "@" not in text:
            return to_reply((code, text), stage, secrets=secrets)
        # in a mail to ourselves, our address is the recipient's: its refusal is about no other mail
        other = one_person(mail.recipient) if mail else ""
        sender, login = (it if it and one_person(it) != other else None for it in (self._sender, self._login))
        return to_reply((code, text), stage, sender=sender, login=login, secrets=secrets)

    def _farewell(self, code: int, text: str) -> None:
        """The relay ends the session (421), or says something that nobody asked for."""
        turn = self.turn
        step = self._expected[0] if self._expected else "mail"
        stage: Stage = "mail" if step == "rset" or step == "quit" else step  # noqa: PLR1714 - narrows
        reply = self._reply(stage, code, text)
        if turn is not None and turn.refusal is None and not turn.written and self._is_session_limit(reply):
            turn.withdrawn = True
        elif turn is not None and (turn.answered or self.fresh):
            self._end(turn, turn.refusal or reply)
        self.break_off(RelayUnavailableError("unreachable", str(reply)))

    def _is_session_limit(self, reply: Reply) -> bool:
        """Whether the relay has had enough of this session, as after many refused recipients: a new one is welcome."""
        after_refusals = reply.code == 421 and self._refusals > 0 and unavailable_reason(reply) == "unreachable"
        return self.mails > 0 and (after_refusals or is_session_limit(reply))

    def _between_mails(self, step: _Step, code: int) -> None:
        if step == "rset" and code // 100 == 2:
            if not self._pipelining:
                self._owner.free(self)
        else:
            self.break_off(RelayUnavailableError("unreachable", f"the relay answered {code} to {step.upper()}"))
