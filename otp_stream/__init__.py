"""otp-stream: one-time-code jobs on RabbitMQ become e-mails that a relay has accepted."""

import signal
import sys

if "".join(sys.argv[:1]).endswith("/otp-stream"):
    # Ctrl-C while the modules are imported ends a command without a traceback; `cli.main` takes it back.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("otp-stream")
except PackageNotFoundError:  # a checkout that was never installed
    __version__ = "0.0.0"
