"""Prepare what the live tests need, then run a command there: `python tests/ground.py COMMAND…`.

RabbitMQ: the one that OTP_TEST_RABBITMQ_URL names, or one on 127.0.0.1:5672, or a private node; and an installed
rabbitmq-server, or Debian's package, for the nodes that tests break. Redis, Chromium and libfaketime likewise. What
cannot be had ends this with a message: tests are never skipped for want of a server.
"""

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).parent))
from rabbitmq import SERVER, Node, speaks_amqp

FAKETIME = Path(f"/usr/lib/{platform.machine()}-linux-gnu/faketime/libfaketime.so.1")
"""Sets the clock of one process."""

USUAL = "amqp://guest:guest@127.0.0.1:5672/"


def main(command: list[str]) -> int:
    """Run `command` with OTP_TEST_RABBITMQ_URL set; returns its exit code."""
    needed = {
        "chromium": shutil.which("chromium"),
        "chromium-driver": shutil.which("chromedriver"),
        "curl": shutil.which("curl"),
        "libfaketime": FAKETIME.exists(),
        "openssl": shutil.which("openssl"),
        "rabbitmq-server": SERVER.exists(),
        "redis-server": shutil.which("redis-server"),
    }
    for package, found in needed.items():
        if not found:
            install(package)
    url = os.environ.get("OTP_TEST_RABBITMQ_URL", USUAL)
    if reachable(url):
        return run(command, url)
    if "OTP_TEST_RABBITMQ_URL" in os.environ:
        sys.exit(f"OTP_TEST_RABBITMQ_URL: nothing speaks AMQP at {urlsplit(url).hostname}:{urlsplit(url).port}")
    node = Node(Path(tempfile.mkdtemp(prefix="otp-rabbit-")))
    try:
        sys.stderr.write("starting a private RabbitMQ node …\n")
        node.start()
        return run(command, node.url)
    finally:
        node.remove()


def reachable(url: str) -> bool:
    """Tell whether a RabbitMQ answers there."""
    parts = urlsplit(url)
    return speaks_amqp(parts.port or 5672, parts.hostname or "127.0.0.1")


def install(package: str) -> None:
    """Install one of Debian's packages, or end with what to do."""
    apt = shutil.which("apt-get")
    if apt is None or os.geteuid() != 0:
        sys.exit(f"the live tests need {package}: install it, or run this as root on Debian (see CONTRIBUTING.md)")
    sys.stderr.write(f"installing {package} …\n")
    quiet = {"env": {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}, "stdout": subprocess.DEVNULL}
    done = subprocess.run([apt, "install", "-y", "-q", package], check=False, **quiet)
    if done.returncode:
        subprocess.run([apt, "update", "-q"], check=True, **quiet)
        subprocess.run([apt, "install", "-y", "-q", package], check=True, **quiet)


def run(command: list[str], url: str) -> int:
    """Run the command and return its exit code."""
    return subprocess.run(command, check=False, env={**os.environ, "OTP_TEST_RABBITMQ_URL": url}).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
