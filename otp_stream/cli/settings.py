"""The settings of the commands."""

import contextlib
import socket

from pydantic import SecretStr

from otp_stream.settings import EMBEDDED_BROKER_PORT, Settings, load

from . import output

_CONNECT_S = 1.0


def read_settings() -> Settings:
    """Return the workers' settings, without those that only a worker requires; exit with 2 if one is invalid."""
    found, problems = load(worker=False)
    if problems:
        output.fail("\n".join(problems))
    return found


def broker_settings() -> Settings:
    """Return the settings of a command that connects to the broker."""
    return with_demo_broker(read_settings())


def producer_settings() -> Settings:
    """Return the settings of a producer: only an invalid RABBITMQ_URL makes the command exit with 2."""
    found, problems = load()
    if problems and "RABBITMQ_URL" in " ".join(problems):
        output.fail("\n".join(problems))
    return with_demo_broker(found)


def with_demo_broker(settings: Settings) -> Settings:
    """Return the settings with the embedded broker of `make run` if RABBITMQ_URL is not set and that broker answers."""
    if "rabbitmq_url" not in settings.model_fields_set:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", EMBEDDED_BROKER_PORT), _CONNECT_S):
            url = SecretStr(f"memory://127.0.0.1:{EMBEDDED_BROKER_PORT}")
            return settings.model_copy(update={"rabbitmq_url": url})
    return settings
