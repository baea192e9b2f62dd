"""Publishes one-time-code jobs to RabbitMQ, and follows them to their final outcome.

async with OtpClient("amqp://guest:guest@localhost/") as client:
    event = await client.send(OtpJob(email="user@example.com", otp="123456"))
    print(event.outcome)

`SyncOtpClient` does the same for programs without asyncio.
"""

from otp_stream.core.job_event import JobEvent
from otp_stream.core.metadata import Metadata
from otp_stream.core.otp_job import OtpJob

from .errors import ClientError, NoWorkerError, OutcomeUnknownError
from .link import CONNECTION_ERRORS
from .otp_client import OtpClient
from .sync_client import SyncOtpClient

__all__ = [
    "CONNECTION_ERRORS",
    "ClientError",
    "JobEvent",
    "Metadata",
    "NoWorkerError",
    "OtpClient",
    "OtpJob",
    "OutcomeUnknownError",
    "SyncOtpClient",
]
