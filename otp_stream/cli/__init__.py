"""The command line, `otp-stream`."""

import sys

try:
    from .main import main
except ModuleNotFoundError as error:
    sys.exit(
        f"otp-stream: the command line needs {error.name}, which is not installed. Install it with\n"
        "  pip install 'otp-stream[cli]'\n"
        "or try the demo without an installation:\n"
        "  pipx run --spec 'otp-stream[demo]' otp-stream demo"
    )

__all__ = ["main"]
