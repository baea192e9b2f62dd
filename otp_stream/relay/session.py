"""What it means for a mail that the relay refuses or ends the session on which it was sent."""

from otp_stream.core.outcome import Reply

from .config import RelayConfig
from .pending_send import PendingSend
from .pipeline import Pipeline
from .protocol import RelayUnavailableError
from .relay_support import RelaySupport
from .reply import is_session_limit, names_no_reason, out_of_step, unavailable_reason

_NO_COMMAND = frozenset({500, 502})
"""The relay does not know the command (RFC 5321 §4.2.4): it may have split one that was sent ahead."""


class Session(Pipeline):
    """Distinguishes refusals of a session, after which a mail goes over another connection, from those of a mail."""

    def __init__(self, config: RelayConfig, support: RelaySupport) -> None:
        super().__init__(config, support)
        self._refusals = 0
        """Mails that were refused on this connection."""
        self.mails: int = 0
        """Mails that had a final reply on this connection."""

    def connection_lost(self, exc: Exception | None) -> None:
        """Handle the end of the connection."""
        self._unread = self._session_ended
        super().connection_lost(exc)

    def _is_of_session(self, reply: Reply) -> bool:
        """Whether a refusal is, or may be, about the session, so that the mail must be retried alone."""
        may_be = self._sent_ahead and (reply.code in _NO_COMMAND or names_no_reason(reply))
        return may_be or out_of_step(reply) or self._is_session_limit(reply)

    def _session_fails(self, pending: PendingSend, reply: Reply) -> None:
        if self._unproven and out_of_step(reply):
            self._support.pipelining = False  # it may have lost the command before this one
        ahead = self._sent_ahead and reply.stage == "mail"
        if ahead and self._accepted_before:
            if out_of_step(reply):
                self._support.ahead = False
            elif not self._may_be_of_tenant(reply):
                self._support.ahead_lost()
            else:
                pending.refused_ahead = True
        # no lone dot from here on: in a transaction that is still open, it would send an empty mail
        if ahead or self._is_session_limit(reply):
            self._withdraw(pending, str(reply))
        else:
            self.abort(RelayUnavailableError("unreachable", f"an unexpected reply: {reply}"))

    def _may_be_of_tenant(self, reply: Reply) -> bool:
        """Whether the refusal may be about the tenant's sender, so that only the next one shows what it is about."""
        return self._shared and unavailable_reason(reply) == "sender_refused"

    def _is_stale(self, pending: PendingSend, reply: Reply) -> bool:
        # the relay ended the session while it was idle, and reports it in reply to the next command: retry once
        return (
            reply.stage == "mail"
            and not self.fresh
            and not pending.losses
            and reply.code // 100 == 4
            and unavailable_reason(reply) == "unreachable"
        )

    def _is_session_limit(self, reply: Reply) -> bool:
        """Whether the relay limits this session, for example after many refused recipients, and accepts a new one."""
        after_refusals = reply.code == 421 and self._refusals > 0 and unavailable_reason(reply) == "unreachable"
        return self.mails > 0 and (after_refusals or is_session_limit(reply))

    def _on_unexpected(self, pending: PendingSend, reply: Reply) -> None:
        pending.refusal = None
        if out_of_step(reply):
            pending.written = False  # a refusal: the relay does not have the mail
            if self.following is not None:
                # the envelope behind the content may be the cause
                self._support.ahead = False
                pending.withdrawn = True
        self.abort(RelayUnavailableError("unreachable", f"an unexpected reply: {reply}"))

    def _undo(self, pending: PendingSend) -> None:
        """Note that the relay does not have a chunk, if its replies show that, and that the session was at fault."""
        if not (pending.chunked and pending.written):
            return
        if self._unread:
            pending.written = False
        refusal = pending.refusal
        if refusal is not None and (self._is_of_session(refusal) or self._is_stale(pending, refusal)):
            pending.withdrawn, pending.written, pending.refusal = self._is_session_limit(refusal), False, None

    def _count_loss(self, pending: PendingSend) -> None:
        if self._is_ahead_step(pending):
            self._support.ahead_lost()
        if pending.chunked and pending.written:
            if self._support.chunking is None:
                self._support.trial_lost()
            elif not pending.answered:
                self._support.cut()
