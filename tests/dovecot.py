"""A private Dovecot from Debian's package, unpacked by tests/ground.py: it verifies the logins of a Postfix."""

import asyncio
import base64
import hashlib
import hmac
import os
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from rabbitmq import free_port, until
from relays import DOVECOT, stop
from token_server import TokenServer

_SETTINGS = """\
base_dir = {folder}/base
libexec_dir = {dovecot}/usr/lib/dovecot
import_environment = LD_LIBRARY_PATH
log_path = {folder}/log
protocols =
ssl = no
default_login_user = nobody
default_internal_user = nobody
default_internal_group = nogroup
disable_plaintext_auth = no
auth_mechanisms = {mechanisms}
auth_failure_delay = 0
# otherwise each login after a refused one waits for up to 15 s
service anvil {{
  unix_listener anvil-auth-penalty {{
    mode = 0
  }}
}}
service auth {{
  inet_listener {{
    address = 127.0.0.1
    port = {port}
  }}
}}
userdb {{
  driver = static
  args = uid=nobody gid=nogroup home=/nonexistent
}}
"""
_USERS = "passdb {{\n  driver = passwd-file\n  args = {folder}/users\n}}\n"
_TOKENS = "passdb {{\n  driver = oauth2\n  mechanisms = xoauth2 oauthbearer\n  args = {folder}/oauth2\n}}\n"


_UNSUPPORTED = DOVECOT.path("").exists() and not DOVECOT.path("usr/lib/dovecot/director").exists()
"""Whether it is Dovecot 2.4, which has other settings and starts only if it is installed."""


def verifier(password: str) -> str:
    """Return what Dovecot stores for SCRAM-SHA-256 instead of the password (RFC 5802 §3)."""
    salt, rounds = os.urandom(16), 4096
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, rounds)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    parts = (salt, stored, hmac.digest(salted, b"Server Key", "sha256"))
    return f"{{SCRAM-SHA-256}}{rounds},{','.join(base64.b64encode(it).decode() for it in parts)}"


@dataclass
class Dovecot:
    """A private Dovecot, started with `async with`. Needs root, as the Postfix does that asks it."""

    mechanisms: str
    users: dict[str, str] = field(default_factory=dict)
    """The password of each user, with the scheme in which it is stored: `{PLAIN}secret`."""
    tokens: TokenServer | None = None
    """Which access tokens are valid."""
    port: int = field(default_factory=free_port)
    """For the server that asks it."""
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="otp-dovecot-")))
    """Not the test's own folder, which Dovecot's unprivileged processes may not read."""
    _process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        assert not _UNSUPPORTED, (
            "Dovecot 2.4, as of Debian trixie, starts only if it is installed: run this on bookworm"
        )
        self._write_files()
        settings, output = self.folder / "dovecot.conf", self.folder / "out"
        # Dovecot would read its settings by the `doveconf` of an installed package
        command = [DOVECOT.path("usr/bin/doveconf"), "-f", "service=master", "-c", settings, "-m", "master", "-e"]
        with output.open("wb") as out:
            self._process = await asyncio.create_subprocess_exec(
                *command, DOVECOT.path("usr/sbin/dovecot"), "-F", "-c", settings,
                env={"PATH": os.environ["PATH"]} | DOVECOT.env, stdout=out, stderr=out, start_new_session=True,
            )  # fmt: skip
        try:
            await until(self._answers, "Dovecot", 20)
        except BaseException as error:
            await stop(self._process)
            raise AssertionError(output.read_text() + self.log) from error
        return self

    async def __aexit__(self, *_: object) -> None:
        await stop(self._process)
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def log(self) -> str:
        path = self.folder / "log"
        return path.read_text() if path.exists() else ""

    def _write_files(self) -> None:
        self.folder.chmod(0o755)
        values = {"folder": self.folder, "dovecot": DOVECOT.path(""), "port": self.port, "mechanisms": self.mechanisms}
        settings = _SETTINGS + _USERS * bool(self.users) + _TOKENS * (self.tokens is not None)
        (self.folder / "dovecot.conf").write_text(settings.format(**values))
        (self.folder / "users").write_text("".join(f"{user}:{stored}\n" for user, stored in self.users.items()))
        if self.tokens is not None:
            url = self.tokens.url
            (self.folder / "oauth2").write_text(f"introspection_mode = auth\nintrospection_url = {url}\n")

    async def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.returncode is None
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return False
        writer.write(b"VERSION\t1\t1\nCPID\t1\n")
        answer = await reader.readline()
        writer.close()
        return answer.startswith(b"VERSION")
