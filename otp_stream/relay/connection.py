"""One connection to a relay and the mail on it: a synchronous state machine, driven by the replies."""

from collections.abc import Callable, Sequence
from time import monotonic
from typing import Literal

from otp_stream.core.outcome import Accepted, Reply, Stage, Unavailable

from .config import RelayConfig
from .envelope import bdat_form, data_form
from .parser import Answer
from .pending_send import PendingSend
from .pipeline import Step
from .protocol import SESSION_ENDS, UNREQUESTED, RelayUnavailableError
from .relay_support import RelaySupport
from .reply import classify, out_of_step
from .reply_order import count_certain
from .session import Session

_SLACK_S = 0.005
_ENDED = "the connection ended at the mail before"


class Connection(Session):
    """Takes one mail at a time, while it is `free`, and the envelope of the next, while it is `followable`.

    Calls `changed` when there are `events`, when it can take a mail, and when it is lost.

    No envelope is sent ahead if the relay takes longer for a content than for an envelope: a mail would wait behind
    another one and gain nothing.
    """

    def __init__(self, config: RelayConfig, support: RelaySupport, changed: Callable[["Connection"], None]) -> None:
        super().__init__(config, support)
        self._changed = changed
        self._envelope_s = 0.0
        """How long the relay took for the last envelope."""
        self.opened_at = self.idle_since = monotonic()

    def data_received(self, data: bytes) -> None:
        """Handle each reply, then report to the owner."""
        was_free = self.free
        self._replied_at = monotonic()
        super().data_received(data)
        if self.lost is None and (self.events or self.free != was_free):
            self._changed(self)

    def replies_received(self, answers: Sequence[Answer], *, more: bool) -> None:
        """Handle the replies that arrived together.

        If there are more than commands that wait, one of them is a reply to no command. It must not be taken as the
        reply to a command that we send next, which would report an unsent mail as sent.
        """
        ends = bool(answers) and answers[-1][0] == SESSION_ENDS
        replies = answers[:-1] if ends else answers
        surplus = len(replies) - len(self._expected)
        if self._envelopes is None or surplus < 0 or (surplus == 0 and not ends and not more):
            super().replies_received(answers, more=more)
            return
        certain = count_certain(self._expected, [code for code, _ in replies], surplus)
        super().replies_received(replies[:certain], more=more)
        if ends and self.lost is None:
            self._on_session_end(*answers[-1])
        else:
            self.abort(RelayUnavailableError("unreachable", UNREQUESTED))

    def recall(self) -> None:
        """Requeue the following mail, if its content has not been sent."""
        super().recall()
        if self.events:
            self._changed(self)

    def reply_received(self, code: int, text: str) -> None:
        """Handle the reply to the first command in flight."""
        if self._envelopes is None:
            super().reply_received(code, text)
        elif not self._expected or (code == 421 and not self._is_followed()):
            self._on_session_end(code, text)
        else:
            self._session_ended = code == 421
            self._step(self._expected.popleft(), code, text)
            self.overdue_at = monotonic() + self._wait_s() if self._expected else None

    def abort(self, error: RelayUnavailableError) -> None:
        """End the connection at once and return the mail on it to its owner."""
        if self.lost is not None:
            return
        super().abort(error)
        if self._envelopes is None:
            return
        pending, following = self.current, self.following
        self.current = self.following = None
        if following is not None:
            following.written = following.written and not self._unread
        if pending is not None:
            if self._expected:
                error = RelayUnavailableError(error.reason, f"{error} (at {self._expected[0].upper()})")
            self._undo(pending)
            self._count_loss(pending)
        if following is not None and not following.written:
            self._report(following, "requeued")
        if pending is not None:
            self._report(pending, error)
        if following is not None and following.written:
            self._report(following, "started")
            # the text may quote the mail before, whose secrets no one redacts in the outcome of this one
            self._report(following, RelayUnavailableError(error.reason, _ENDED))
        self._changed(self)

    def _step(self, step: Step, code: int, text: str) -> None:
        pending = self.current
        if pending is None or step == "rset":
            self._between_mails(step, code)
            return
        pending.answered = True
        match step:
            case "mail" | "rcpt":
                self._on_envelope(pending, step, code, text)
            case "data":
                self._on_data(pending, code, text)
            case _:
                self._body_s = monotonic() - self._content_at
                reply = self._reply("body", code, text)
                if pending.chunked:
                    self._on_chunk(pending, reply)
                else:
                    if pending.chunk_refused and code // 100 == 5:
                        self._support.chunking = None  # so it was about the mail, not about BDAT
                    self._end(pending, pending.refusal or reply)
                if self.lost is None:
                    self._next_mail(accepted=code // 100 == 2)

    def _on_chunk(self, pending: PendingSend, reply: Reply) -> None:
        """Handle the reply to BDAT: the relay has the mail, or does not have it, whatever it replied before."""
        if reply.code // 100 == 2:
            self._support.chunking = True
            self._end(pending, reply)
        elif pending.refusal is not None:
            refusal = pending.refusal
            if self._is_of_session(refusal) or self._is_stale(pending, refusal):
                self._withdraw(pending, str(refusal), counts=not self._is_session_limit(refusal))
            else:
                self._end(pending, refusal)
        elif reply.code // 100 == 5 and (not self._support.chunking or out_of_step(reply)):
            # the relay may not know BDAT, or refuse its use: with DATA, a reply is about the mail
            self._support.chunking, pending.chunk_refused = False, True
            self._withdraw(pending, str(reply))
        else:
            self._end(pending, reply)

    def _on_envelope(self, pending: PendingSend, step: Literal["mail", "rcpt"], code: int, text: str) -> None:
        if code // 100 == 2:
            if self._sent_ahead and step == "mail":
                self._support.ahead_accepted()
        elif pending.written:
            # the content is on its way: only the reply to it shows that the relay does not have the mail
            pending.refusal = pending.refusal or self._reply(step, code, text)
        else:
            reply = self._reply(step, code, text)
            if code // 100 == 3 or (pending.refusal is None and self._is_of_session(reply)):
                self._session_fails(pending, reply)
                return
            if self._is_stale(pending, reply):
                pending.answered = False
                self.abort(RelayUnavailableError("unreachable", str(reply)))
                return
            pending.refusal = pending.refusal or reply
        if not pending.written and self._is_last_of_envelope(pending, step):
            self._envelope_ended(pending, step)

    def _is_last_of_envelope(self, pending: PendingSend, step: Step) -> bool:
        """Whether nothing was sent behind the command of this step."""
        return not self._pipelining or (pending.chunked and step == "rcpt")

    def _envelope_ended(self, pending: PendingSend, step: Step) -> None:
        if pending.chunked and self._pipelining:
            self._prove(works=True)
        if pending.refusal is not None:
            self._refused(pending, pending.refusal)
        elif step == "mail":
            self._send(self._rcpt, "rcpt")
        elif pending.chunked:
            self._send_content(pending)
        else:
            self._send(b"DATA\r\n", "data")

    def _on_data(self, pending: PendingSend, code: int, text: str) -> None:
        if code != 354:
            reply = pending.refusal or self._reply("data", code, text)
            self._prove(works=not out_of_step(reply))
            self._refused(pending, reply)
            return
        self._prove(works=True)
        if pending.refusal is not None and pending.refusal.stage == "mail":
            # it is unknown which transaction the relay is in: a lone dot could send an empty mail to another recipient
            self._end(pending, pending.refusal)
            self.abort(RelayUnavailableError("unreachable", "content is wanted after MAIL was refused"))
        elif pending.refusal is not None:
            # DATA was pipelined behind a refused RCPT, and the relay waits for content: a lone dot (RFC 2920 §3.1)
            self._send(b".\r\n", "body")
        else:
            self._send_content(pending)

    def _send_content(self, pending: PendingSend) -> None:
        self._unsent = bdat_form(pending.mail) if pending.chunked else data_form(pending.mail)
        self._expected.append("body")
        self._content_at = monotonic()
        pending.envelope_s, pending.step_at = self._content_at - pending.step_at, self._content_at
        if self._envelope_at is not None:
            self._envelope_s, self._envelope_at = self._content_at - self._envelope_at, None
        if (
            self._pipelining
            and not pending.chunked
            and self._support.ahead
            and self._body_s <= self._envelope_s + _SLACK_S
        ):
            self._at_content = True
            self._changed(self)
            self._at_content = False
        # checked last: a process that is suspended between check and write could send a job that it has lost
        if pending.may_send():
            pending.written = True
            self._send(b"")
        else:
            # after DATA, only the end of the connection withdraws a mail
            pending.withdrawn = True
            self.abort(RelayUnavailableError("unreachable", "the job was withdrawn"))

    def _next_mail(self, *, accepted: bool) -> None:
        if self._following_withdrawn:
            # after DATA only the end of the connection withdraws an envelope
            self.abort(RelayUnavailableError("unreachable", "the following mail was requeued"))
        elif self.following is not None:
            self.current, self.following = self.following, None
            self._sent_ahead, self._accepted_before = not self.current.written, accepted
            self.current.step_at = self._content_at = monotonic()
            self._report(self.current, "started")
        elif accepted:
            self.free = True
        else:
            self._reset()

    def _refused(self, pending: PendingSend, reply: Reply) -> None:
        self._end(pending, reply)
        if self.lost is None:
            self._reset()

    def _reset(self) -> None:
        # the relay may still keep the sender, even after a refused content, and would refuse the next MAIL as nested
        self._send(b"RSET\r\n", "rset")
        self.free = self._pipelining

    def _end(self, pending: PendingSend, reply: Reply) -> None:
        outcome = classify(reply)
        if self._is_session_limit(reply):
            self._withdraw(pending, str(reply))
            return
        if outcome is None:
            self._on_unexpected(pending, reply)
            return
        self.current = None
        self.fresh = False
        self.mails += 1
        self._refusals += not isinstance(outcome, Accepted)
        if pending.refused_ahead and isinstance(outcome, Accepted):
            self._support.ahead_lost()  # alone, the mail was accepted
        self._report(pending, outcome)
        if isinstance(outcome, Unavailable) and self._may_be_of_login(outcome) and not self._has_sent_following:
            # a login that was revoked does not become valid again on the same connection
            self.abort(RelayUnavailableError(outcome.reason, outcome.error))

    def _may_be_of_login(self, outcome: Unavailable) -> bool:
        # the sender of one tenant does not end the session of the others
        return outcome.reason != "throttled" and not (self._shared and outcome.reason == "sender_refused")

    def _on_session_end(self, code: int, text: str) -> None:
        """Handle the end of the session (421), or a reply to no command."""
        pending = self.current
        step = self._expected[0] if self._expected else "mail"
        if pending is not None and pending.chunked and code == 421 and step != "body":
            pending.written = False  # the relay refuses its envelope, and reads no more
        stage: Stage = "mail" if step == "rset" or step == "quit" else step  # noqa: PLR1714 - narrows the type
        reply = self._reply(stage, code, text)
        if pending is not None and pending.refusal is None and not pending.written and self._is_session_limit(reply):
            pending.withdrawn = True
        elif pending is not None and (pending.answered or self.fresh):
            self._end(pending, pending.refusal or reply)
        self.abort(RelayUnavailableError("unreachable", str(reply)))

    def _between_mails(self, step: Step, code: int) -> None:
        if step == "rset" and (code // 100 == 2 or self._session_ended):
            self.free = self.free or (self.current is None and not self._pipelining)
        else:
            self._support.ahead = self._support.ahead and self.current is None
            self.abort(RelayUnavailableError("unreachable", f"the relay answered {code} to {step.upper()}"))
