"""Errors of the producer API. Each text contains the reason and the fix, and never the code or the address."""


class ClientError(Exception):
    """A job could not be published or followed."""


class NoWorkerError(ClientError):
    """No worker has declared the events exchange."""


class OutcomeUnknownError(ClientError):
    """The job may have been published, but there is no final event of it."""

    def __init__(self, text: str, job_id: str | None = None) -> None:
        super().__init__(text)
        self.job_id = job_id
        """With it, the same job can be published again: a worker that has sent it does not send it again."""
