"""The resource of all exported signals: which service, version, process and environment they are of."""

import os
import uuid
from functools import cache
from urllib.parse import unquote

from otp_stream import __version__


@cache
def _instance_id(_: int) -> str:
    """Return the id of a process. A forked worker has its own."""
    return str(uuid.uuid4())


def resource_attributes(environment: str) -> dict[str, str]:
    """Return the attributes. `OTEL_RESOURCE_ATTRIBUTES` and `OTEL_SERVICE_NAME` replace ours."""
    pairs = (it.partition("=") for it in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "").split(","))
    given = {name.strip(): unquote(value.strip()) for name, separator, value in pairs if separator}
    if name := os.environ.get("OTEL_SERVICE_NAME", "").strip():
        given["service.name"] = name
    ours = {
        "service.name": "otp-stream",
        "service.version": __version__,
        "service.instance.id": _instance_id(os.getpid()),
        "deployment.environment.name": environment,
    }
    return ours | given
