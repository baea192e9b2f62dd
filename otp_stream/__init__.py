"""otp-stream: one-time-code jobs on RabbitMQ become e-mails that a relay has accepted."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("otp-stream")
except PackageNotFoundError:  # a checkout that was never installed
    __version__ = "0.0.0"
