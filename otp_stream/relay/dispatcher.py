"""What an upstream needs from the component that has the waiting jobs."""

from typing import Protocol, TypeVar

from .send_queue import PendingSend

U_contra = TypeVar("U_contra", contravariant=True)


class Dispatcher(Protocol[U_contra]):
    """Has the waiting jobs and all upstreams, of type `U_contra`."""

    @property
    def closed(self) -> bool:
        """Whether no more mail is sent."""
        ...

    def waiting_for(self, upstream: U_contra) -> tuple[int, int]:
        """Return how many jobs this upstream may take now: urgent ones, and others."""
        ...

    def next_for(self, upstream: U_contra, *, urgent_only: bool) -> PendingSend | None:
        """Take the next job."""
        ...

    def push(self, pending: PendingSend) -> None:
        """Let a job wait; end it if no more mail is sent, or its caller is gone."""
        ...

    def serve(self) -> None:
        """Send waiting mail over every relay that may take it."""
        ...

    def breaker_changed(self, upstream: U_contra) -> None:
        """Handle the change of a circuit breaker."""
        ...
