"""The command line, `otp-stream`."""

import sys

try:
    from .main import main
except ModuleNotFoundError as error:
    sys.exit(f"otp-stream: the command line needs {error.name}: pip install 'otp-stream[cli]'")

__all__ = ["main"]
