"""What is measured: this worker in its usual variants, and its peers."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from otp_stream.mail import MailIdentity
from otp_stream.mail.lint import sample_job
from otp_stream.mail.template_data import template_data
from otp_stream.mail.templates import Templates

HERE = Path(__file__).parent
ROOT = HERE.parent
PEERS = HERE / "peers"
PREFIX = "otp-bench"
GO_PACKAGES = Path("/usr/share/gocode")
"""Where Debian's golang-github-rabbitmq-amqp091-go-dev puts its source."""


@dataclass(frozen=True, slots=True)
class System:
    """One worker: how it starts, and how many jobs a run gives it at most, so that none takes long."""

    name: str
    command: tuple[str, ...]
    jobs: int
    env: dict[str, str] = field(default_factory=dict[str, str])
    workers: int = 1

    def environment(self, queue: str, smtp_port: int, amqp_url: str) -> dict[str, str]:
        """Return the environment of one run."""
        usual = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        where = {
            "QUEUE": queue, "SMTP_PORT": str(smtp_port), "AMQP_URL": amqp_url, "TEMPLATES": str(_templates()),
            "RABBITMQ_QUEUE_NAME": queue, "RABBITMQ_PREFIX": PREFIX, "RABBITMQ_URL": amqp_url, "PYTHONPATH": str(ROOT),
        }  # fmt: skip
        return usual | where | self.env


@cache
def _templates() -> Path:
    """Write our template for the peers, so that all send the same mail: Jinja, Handlebars and the Go worker read it."""
    folder = Path(tempfile.gettempdir()) / f"otp-stream-bench-templates-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    identity = MailIdentity(sender=("", "no-reply@example.com"), templates_dir=None, default_locale="en")
    template = Templates(None, "en").find("otp", None)
    data = template_data(sample_job({"expiryMinutes": 15}, 0), template.language, identity)
    _, text, html = template.render(data | {name: f"{{{{ {name} }}}}" for name in ("otp", "userName")})
    for file, content in (("otp.txt", text), ("otp.html", html)):
        (folder / file).write_text(content.replace("15 minutes", "{{ expiryMinutes }} minutes"))
    return folder


def ours(
    name: str = "otp-stream", *, connections: int = 50, workers: int = 1, jobs: int = 20_000, **env: str
) -> System:
    """Return this worker with its usual settings, except for those in `env`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    several = ("--workers", str(workers)) if workers > 1 else ()
    faststream = str(Path(sys.executable).parent / "faststream")
    settings = {
        "WORKER": "true", "PREFETCH_COUNT": str(max(200, 4 * connections)), "SMTP_HOST": "127.0.0.1",
        "SMTP_TLS": "none", "SMTP_AUTH": "none", "SMTP_POOL_SIZE": str(connections),
        "SENDER_EMAIL": "no-reply@example.com", "LOG_LEVEL": "warning",
    }  # fmt: skip
    command = (faststream, "run", "otp_stream.app:app", "--host", "127.0.0.1", "--port", str(port), *several)
    return System(name, command, jobs, settings | env, workers)


@contextmanager
def redis() -> Iterator[str]:
    """Run a separate Redis; yields its URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [shutil.which("redis-server") or "redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", ""],
        stdout=subprocess.DEVNULL, cwd=tempfile.gettempdir(),
    )  # fmt: skip
    try:
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        server.terminate()
        server.wait()


def peers() -> Iterator[System | str]:
    """Return the peers that can run here; for each other one, what it requires."""
    faststream = str(Path(sys.executable).parent / "faststream")
    yield System("naive", (faststream, "run", "naive:app", "--app-dir", str(PEERS)), 1_500)
    yield _nodemailer()
    yield _go()


def _nodemailer() -> System | str:
    node, npm, folder = shutil.which("node"), shutil.which("npm"), PEERS / "nodemailer"
    if node is None or npm is None:
        return "nodemailer: skipped, it requires node and npm"
    if not (folder / "node_modules").is_dir():
        done = subprocess.run([npm, "install", "--no-audit", "--no-fund", "--no-package-lock", "--silent"],
                              cwd=folder, check=False)  # fmt: skip
        if done.returncode:
            return "nodemailer: skipped, npm could not install it"
    return System("nodemailer pool", (node, str(folder / "worker.js")), 6_000, {"POOL": "50"})


def _go() -> System | str:
    go = shutil.which("go")
    if go is None or not (GO_PACKAGES / "src/github.com/rabbitmq/amqp091-go").is_dir():
        return "go: skipped, it requires Debian's golang and golang-github-rabbitmq-amqp091-go-dev"
    binary = Path(tempfile.gettempdir()) / f"otp-stream-bench-go-{os.getuid()}"
    env = {**os.environ, "GO111MODULE": "off", "GOPATH": str(GO_PACKAGES)}
    subprocess.run([go, "build", "-o", str(binary), "main.go"], cwd=PEERS / "go", check=True, env=env)
    return System("go", (str(binary),), 20_000, {"POOL": "50"})


def limited(system: System, jobs: int) -> System:
    """Return the system with fewer jobs a run."""
    return replace(system, jobs=min(system.jobs, jobs))
