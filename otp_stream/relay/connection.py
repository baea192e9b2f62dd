"""One connection to the relay and the mail on it: a synchronous state machine, fed by the replies."""

from collections import deque
from time import monotonic
from typing import Literal, Protocol

from otp_stream.core.outcome import Outcome, Reply, Stage, Unavailable

from .config import RelayConfig
from .envelope import Envelopes, Extensions, wire_form
from .reply import classify, to_reply
from .turns import Turn
from .wire import TroubleError, Wire

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

    def ended(self, turn: Turn, outcome: Outcome) -> None:
        """The relay has spoken about this mail."""
        ...

    def free(self, connection: "Connection") -> None:
        """The connection can take the next one."""
        ...

    def give_back(self, turn: Turn) -> None:
        """The envelope that went ahead was in vain: nothing of this mail has left."""
        ...

    def broke(self, connection: "Connection", turn: Turn | None, error: TroubleError) -> None:
        """The connection is gone, and `turn` with it if there was one."""
        ...


_SLACK_S = 0.005
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
        limits = config.limits
        self._waits: dict[_Step, float] = {
            "mail": limits.mail_s, "rcpt": limits.rcpt_s, "data": limits.data_s, "body": limits.body_s,
            "rset": limits.handshake_s, "quit": limits.quit_s,
        }  # fmt: skip
        self._expected: deque[_Step] = deque()
        self._pipelining = False
        self._envelopes: Envelopes | None = None
        self._rcpt = b""
        self._unsent = b""
        """Content that leaves with whatever is said next."""
        self._follows_from = 0.0
        self._asked_at: float | None = None
        self._content_at = self._envelope_s = self._body_s = 0.0
        """How long the relay took for an envelope, and for its last word on a content."""
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

    def start(self, turn: Turn) -> Reply | None:
        """Begin with a mail. Returns our own refusal, with nothing sent, for what cannot be asked of this relay."""
        assert self._envelopes is not None  # noqa: S101 - told to the type checker only: see `become_ready`
        commands = self._envelopes.write(turn.mail)
        if isinstance(commands, Reply):
            return commands
        turn.begin()
        if self.turn is None:
            self.turn, self._asked_at = turn, monotonic()
        else:
            self.following, self._follows_from = turn, monotonic()
        mail, self._rcpt = commands
        if self._pipelining:
            self._say(mail + self._rcpt + b"DATA\r\n", "mail", "rcpt", "data")
        else:
            self._say(mail, "mail")
        return None

    def pulse(self, now: float) -> None:
        """Look after time limits; `now` is the monotonic clock."""
        if self.overdue_at is not None and now >= self.overdue_at:
            self.break_off(TroubleError("unreachable", "no reply in time"))
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
            self.overdue_at = monotonic() + self._waits[self._expected[0]] if self._expected else None

    def break_off(self, error: TroubleError) -> None:
        """End the connection at once and give the mail on it back."""
        if self.lost is not None:
            return
        super().break_off(error)
        if self._envelopes is None:
            return
        turn, following = self.turn, self.following
        self.turn = self.following = None
        if turn is not None and self._expected:
            error = TroubleError(error.trouble, f"{error} (at {self._expected[0].upper()})")
        if following is not None:
            self._owner.give_back(following)
        self._owner.broke(self, turn, error)

    def _say(self, data: bytes, *steps: _Step) -> None:
        self._expected.extend(steps)
        self.overdue_at = monotonic() + self._waits[self._expected[0]]
        self.transport.write(self._unsent + data)
        self._unsent = b""

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
                self._end(turn, turn.refusal or to_reply((code, text), "body"))
                if self.lost is None:
                    self._go_on()

    def _on_envelope(self, turn: Turn, step: Literal["mail", "rcpt"], code: int, text: str) -> None:
        if code // 100 == 3:
            self.break_off(TroubleError("unreachable", f"a reply that does not fit: {code}"))
            return
        if code // 100 != 2 and turn.refusal is None:
            turn.refusal = to_reply((code, text), step)
        if self._pipelining:
            return
        if turn.refusal is not None:
            self._refused(turn, turn.refusal)
        elif step == "mail":
            self._say(self._rcpt, "rcpt")
        else:
            self._say(b"DATA\r\n", "data")

    def _on_data(self, turn: Turn, code: int, text: str) -> None:
        if code != 354:
            self._refused(turn, turn.refusal or to_reply((code, text), "data"))
        elif turn.refusal is not None:
            # DATA was pipelined behind a refused RCPT, and the relay waits for content: a lone dot (RFC 2920 §3.1)
            self._say(b".\r\n", "body")
        elif not self._owner.wants(turn):
            # after DATA only the end of the connection takes a mail back
            turn.withdrawn = True
            self.break_off(TroubleError("unreachable", "the job was taken back"))
        else:
            turn.written = True
            self._unsent = wire_form(turn.mail)
            self._expected.append("body")
            self._content_at = monotonic()
            if self._asked_at is not None:
                self._envelope_s, self._asked_at = self._content_at - self._asked_at, None
            if self._pipelining and self._body_s <= self._envelope_s + _SLACK_S:
                self._owner.follow(self)
            if self._unsent:
                self._say(b"")

    def _go_on(self) -> None:
        if self._in_vain:
            # after DATA only the end of the connection takes an envelope back
            self.break_off(TroubleError("unreachable", "the mail behind was given back"))
        elif self.following is None:
            self._owner.free(self)
        else:
            self.turn, self.following = self.following, None
            self._owner.began(self.turn)

    def _refused(self, turn: Turn, reply: Reply) -> None:
        self._end(turn, reply)
        if self.lost is None:
            # the relay may still hold the sender: without this, the next MAIL would be a nested one
            self._say(b"RSET\r\n", "rset")
            if self._pipelining:
                self._owner.free(self)

    def _end(self, turn: Turn, reply: Reply) -> None:
        outcome = classify(reply)
        if outcome is None:
            turn.refusal = None
            self.break_off(TroubleError("unreachable", f"a reply that does not fit: {reply}"))
            return
        self.turn = None
        self.fresh = False
        self.mails += 1
        self._owner.ended(turn, outcome)
        if isinstance(outcome, Unavailable) and outcome.trouble != "throttled":
            # a login that was withdrawn does not come back on the same connection
            self.break_off(TroubleError(outcome.trouble, outcome.error))

    def _farewell(self, code: int, text: str) -> None:
        """The relay ends the session (421), or says something that nobody asked for."""
        turn = self.turn
        step = self._expected[0] if self._expected else "mail"
        reply = to_reply((code, text), "mail" if step == "rset" or step == "quit" else step)  # noqa: PLR1714 - narrows
        if turn is not None and (turn.answered or self.fresh):
            self._end(turn, turn.refusal or reply)
        self.break_off(TroubleError("unreachable", str(reply)))

    def _between_mails(self, step: _Step, code: int) -> None:
        if step == "rset" and code // 100 == 2:
            if not self._pipelining:
                self._owner.free(self)
        else:
            self.break_off(TroubleError("unreachable", f"the relay answered {code} to {step.upper()}"))
