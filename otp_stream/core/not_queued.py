"""The error of a job that RabbitMQ has not confirmed."""


class NotQueuedError(Exception):
    """RabbitMQ has not confirmed a job. The text says why, and contains nothing of the job."""
