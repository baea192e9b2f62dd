"""One connection to a relay and the mail on it: a synchronous state machine, driven by the replies."""

from collections.abc import Callable
from time import monotonic
from typing import Literal

from otp_stream.core.outcome import Accepted, Reply, Stage, Unavailable

from .config import RelayConfig
from .envelope import wire_form
from .pipeline import Pipeline, PipeliningSupport, Step
from .protocol import RelayUnavailableError
from .reply import classify, is_session_limit, names_no_reason, out_of_step, unavailable_reason
from .send_queue import PendingSend

_SLACK_S = 0.005
_NO_COMMAND = frozenset({500, 502})
"""The relay does not know the command (RFC 5321 §4.2.4): it may have split one that was sent ahead."""


class Connection(Pipeline):
    """Takes one mail at a time, while it is `free`, and the envelope of the next, while it is `followable`.

    Calls `changed` when there are `events`, when it can take a mail, and when it is lost.

    No envelope is sent ahead if the relay takes longer for a content than for an envelope: a mail would wait behind
    another one and gain nothing.
    """

    def __init__(
        self, config: RelayConfig, support: PipeliningSupport, changed: Callable[["Connection"], None]
    ) -> None:
        super().__init__(config, support)
        self._changed = changed
        self._refusals = 0
        """Mails that were refused on this connection."""
        self._content_at = self._envelope_s = self._body_s = 0.0
        """When the content was sent; how long the relay took for the last envelope, and for the last content."""
        self.fresh = True
        """Whether it was just opened: no mail and no idle time since."""
        self.followable = False
        """Whether the content is about to be sent, so that the envelope of another mail may be sent right behind it."""
        self.mails = 0
        self.opened_at = self.idle_since = monotonic()

    def data_received(self, data: bytes) -> None:
        """Handle each reply, then report to the owner."""
        was_free = self.free
        super().data_received(data)
        if self.lost is None and (self.events or self.free != was_free):
            self._changed(self)

    def recall(self) -> None:
        """Requeue the following mail, if there is one. Its content has not been sent."""
        super().recall()
        if self.events:
            self._changed(self)

    def reply_received(self, code: int, text: str) -> None:
        """Handle the reply to the first command in flight."""
        if self._envelopes is None:
            super().reply_received(code, text)
        elif code == 421 or not self._expected:
            self._on_session_end(code, text)
        else:
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
        if pending is not None and self._is_ahead_step():
            self._support.ahead_lost()
        self.current = self.following = None
        if pending is not None and self._expected:
            error = RelayUnavailableError(error.reason, f"{error} (at {self._expected[0].upper()})")
        if following is not None:
            self.events.append((following, "requeued"))
        if pending is not None:
            self.events.append((pending, error))
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
                self._end(pending, pending.refusal or self._reply("body", code, text))
                if self.lost is None:
                    self._next_mail(accepted=code // 100 == 2)

    def _on_envelope(self, pending: PendingSend, step: Literal["mail", "rcpt"], code: int, text: str) -> None:
        if code // 100 == 2:
            if self._sent_ahead and step == "mail":
                self._support.ahead_accepted()
        else:
            reply = self._reply(step, code, text)
            if code // 100 == 3 or (pending.refusal is None and self._is_of_session(reply)):
                self._session_fails(pending, reply)
                return
            if step == "mail" and self._is_stale(pending, reply):
                pending.answered = False
                self.abort(RelayUnavailableError("unreachable", str(reply)))
                return
            pending.refusal = pending.refusal or reply
        if self._pipelining:
            return
        if pending.refusal is not None:
            self._refused(pending, pending.refusal)
        elif step == "mail":
            self._send(self._rcpt, "rcpt")
        else:
            self._send(b"DATA\r\n", "data")

    def _is_of_session(self, reply: Reply) -> bool:
        """Whether a refusal is, or may be, about the session, so that the mail must be retried alone."""
        may_be = self._sent_ahead and (reply.code in _NO_COMMAND or names_no_reason(reply))
        return may_be or out_of_step(reply) or self._is_session_limit(reply)

    def _session_fails(self, pending: PendingSend, reply: Reply) -> None:
        if self._unproven and out_of_step(reply):
            self._support.works = False  # it may have lost the command before this one
        ahead = self._sent_ahead and reply.stage == "mail"
        if ahead and self._accepted_before:
            if out_of_step(reply):
                self._support.ahead = False
            else:
                self._support.ahead_lost()
        # no lone dot from here on: in a transaction that is still open, it would send an empty mail
        if ahead or self._is_session_limit(reply):
            self._withdraw(pending, str(reply))
        else:
            self.abort(RelayUnavailableError("unreachable", f"an unexpected reply: {reply}"))

    def _is_stale(self, pending: PendingSend, reply: Reply) -> bool:
        # the relay ended the session while it was idle, and reports it in reply to the next command: retry once
        return (
            not self.fresh
            and not pending.losses
            and reply.code // 100 == 4
            and unavailable_reason(reply) == "unreachable"
        )

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
        self._unsent = wire_form(pending.mail)
        self._expected.append("body")
        self._content_at = monotonic()
        if self._envelope_at is not None:
            self._envelope_s, self._envelope_at = self._content_at - self._envelope_at, None
        if self._pipelining and self._support.ahead and self._body_s <= self._envelope_s + _SLACK_S:
            self.followable = True
            self._changed(self)
            self.followable = False
        # checked last: a process that is suspended between check and write could send a job that it has lost
        if pending.may_send():
            pending.written = True
            self._send(b"")
        else:
            # after DATA only the end of the connection withdraws a mail
            pending.withdrawn = True
            self.abort(RelayUnavailableError("unreachable", "the job was withdrawn"))

    def _next_mail(self, *, accepted: bool) -> None:
        if self._following_withdrawn:
            # after DATA only the end of the connection withdraws an envelope
            self.abort(RelayUnavailableError("unreachable", "the following mail was requeued"))
        elif self.following is not None:
            self.current, self.following = self.following, None
            self._sent_ahead, self._accepted_before = True, accepted
            self.events.append((self.current, "started"))
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
        self.events.append((pending, outcome))
        if isinstance(outcome, Unavailable) and outcome.reason != "throttled":
            # a login that was revoked does not become valid again on the same connection
            self.abort(RelayUnavailableError(outcome.reason, outcome.error))

    def _on_unexpected(self, pending: PendingSend, reply: Reply) -> None:
        pending.refusal = None
        if out_of_step(reply):
            pending.written = False  # a refusal: the relay does not have the mail
            if self.following is not None:
                # the envelope behind the content may be the cause
                self._support.ahead = False
                pending.withdrawn = True
        self.abort(RelayUnavailableError("unreachable", f"an unexpected reply: {reply}"))

    def _on_session_end(self, code: int, text: str) -> None:
        """Handle the end of the session (421), or a reply to no command."""
        pending = self.current
        step = self._expected[0] if self._expected else "mail"
        stage: Stage = "mail" if step == "rset" or step == "quit" else step  # noqa: PLR1714 - narrows the type
        reply = self._reply(stage, code, text)
        if pending is not None and pending.refusal is None and not pending.written and self._is_session_limit(reply):
            pending.withdrawn = True
        elif pending is not None and (pending.answered or self.fresh):
            self._end(pending, pending.refusal or reply)
        self.abort(RelayUnavailableError("unreachable", str(reply)))

    def _is_session_limit(self, reply: Reply) -> bool:
        """Whether the relay limits this session, for example after many refused recipients, and accepts a new one."""
        after_refusals = reply.code == 421 and self._refusals > 0 and unavailable_reason(reply) == "unreachable"
        return self.mails > 0 and (after_refusals or is_session_limit(reply))

    def _between_mails(self, step: Step, code: int) -> None:
        if step == "rset" and code // 100 == 2:
            self.free = self.free or not self._pipelining
        else:
            self.abort(RelayUnavailableError("unreachable", f"the relay answered {code} to {step.upper()}"))
