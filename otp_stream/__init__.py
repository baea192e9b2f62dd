"""otp-stream: one-time-code jobs on RabbitMQ become e-mails that a relay has accepted."""

import signal
import sys

if "".join(sys.argv[:1]).endswith("/otp-stream"):
    # Ctrl-C during the import of modules ends a command without a traceback; `cli.main` reverts that
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("otp-stream")
except PackageNotFoundError:  # a checkout that is not installed
    __version__ = "0.0.0"
