"""The command line, `otp-stream`."""

from .main import main

__all__ = ["main"]
