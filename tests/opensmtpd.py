"""A private OpenSMTPD from Debian's package, unpacked by tests/ground.py. It refuses by a filter: this process.

Its folders (`/var/spool/smtpd`, …) and accounts are compiled in, so it runs by chroot in a separate root folder.
"""

import asyncio
import functools
import os
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from debian_relay import DebianRelay, Policy
from relays import OPENSMTPD, Taken

_LISTEN = 'listen on 127.0.0.1 port {port} hostname relay.example filter "policy"{options}\n'
_SETTINGS = """\
filter "policy" proc-exec "/policy"
action "keep" relay host "smtp://127.0.0.1:9"
match from any for any action "keep"
"""
_FILTER = "#!/bin/sh\ncat > /requests | cat /replies\n"
"""OpenSMTPD communicates with a filter over its standard streams. These named pipes connect them to this process."""
_FOLDERS = ("dev", "etc/ssl/certs", "tmp", "var/run", "var/lib/opensmtpd/empty", "var/spool/smtpd")
_FILES = {
    "dev/null": "",
    "etc/group": "root:x:0:\nopensmtpd:x:10:\nopensmtpq:x:5:\n",
    "etc/hosts": "127.0.0.1 localhost\n",
    "etc/mailname": "relay.example\n",
    "etc/ssl/certs/ca-certificates.crt": "",
    # by the numbers of accounts that every Debian has and nothing uses: uucp and games
    "etc/passwd": "root:x:0:0::/:/bin/sh\nopensmtpd:x:10:10::/:/bin/false\nopensmtpq:x:5:5::/:/bin/false\n",
    "policy": _FILTER,
}
_STATES = {"mail-from": "MAIL", "rcpt-to": "RCPT", "data": "DATA", "commit": "END-OF-MESSAGE"}
"""OpenSMTPD's names of the stages, and Postfix's."""
_MESSAGE = re.compile(r" smtp message msgid=(\w{8}) size=(\d+) ")
_ENVELOPE = re.compile(r" smtp envelope evpid=(\w{8})\w{8} .* to=<(\S+)>")
_AUTHENTICATED = re.compile(r" smtp authentication user=(\S+) result=(\w+)")


@functools.cache
def _programs() -> dict[str, Path]:
    """Return what the root folder needs: programs and their libraries, by their place in it."""
    programs = {
        "usr/sbin/smtpd": OPENSMTPD.path(OPENSMTPD.program),
        "usr/sbin/smtpctl": OPENSMTPD.path("usr/sbin/smtpctl"),
        "bin/sh": Path("/bin/sh"),
        "bin/cat": Path("/bin/cat"),
    }
    output = subprocess.run(["ldd", *programs.values()], check=True, capture_output=True, text=True).stdout
    libraries = re.findall(r"^\s.*?(/\S+) \(0x", output, re.MULTILINE)
    return programs | {name.lstrip("/"): Path(name) for name in libraries}


@dataclass
class _Conversation:
    """What OpenSMTPD asks its filter and reports to it: smtpd-filters(7)."""

    policy: Policy
    refused: Counter[tuple[str | None, int]] = field(default_factory=Counter)
    _recipients: dict[str, str | None] = field(default_factory=dict)
    """The recipient of each session's mail, `None` before RCPT."""

    def replies(self, line: str) -> list[str]:
        """Return the lines that answer one of OpenSMTPD's."""
        kind, *rest = line.split("|")
        if line == "config|ready":
            filters = [f"register|filter|smtp-in|{phase}" for phase in _STATES]
            reports = [f"register|report|smtp-in|protocol-{side}" for side in ("client", "server")]
            return [*filters, *reports, "register|ready"]
        if kind == "filter":
            _, _, _, phase, session, token, value, *_ = rest
            recipient = value if phase == "rcpt-to" else self._recipients.get(session)
            action = self.policy.action(_STATES[phase], recipient or "")
            return [f"filter-result|{session}|{token}|{'proceed' if action == 'DUNNO' else f'reject|{action}'}"]
        if kind == "report":
            _, _, _, side, session, text, *_ = rest
            self._note(side, session, text)
        return []

    def _note(self, side: str, session: str, text: str) -> None:
        if side == "protocol-client":
            if text.startswith("MAIL FROM"):
                self._recipients[session] = None
            elif found := re.match(r"RCPT TO:<(.+?)>", text):
                self._recipients[session] = found[1]
        elif " refused at " in text:
            self.refused[self._recipients[session], int(text[:3])] += 1


@dataclass
class OpenSMTPD(DebianRelay):
    """A private OpenSMTPD that keeps what it accepts in its queue, started with `async with`."""

    _conversation: _Conversation | None = None
    _filter: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._make_folder()
        self._write_files()
        self._conversation = _Conversation(Policy(self.refuse_sender_every))
        self._filter = asyncio.create_task(self._answer(self._conversation))
        await self._start(["chroot", self._root, "/usr/sbin/smtpd", "-d", "-P", "mta"], {})
        return self

    async def __aexit__(self, *_: object) -> None:
        await super().__aexit__()
        if self._filter is not None:
            self._filter.cancel()
            await asyncio.wait([self._filter])

    @property
    def _root(self) -> Path:
        return self.folder / "root"

    def _write_files(self) -> None:
        for name in _FOLDERS:
            (self._root / name).mkdir(parents=True)
        for name, source in _programs().items():
            (self._root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, self._root / name)
        for name, text in _FILES.items():
            (self._root / name).write_text(text)
        (self._root / "policy").chmod(0o755)
        (self._root / "var/spool/smtpd").chmod(0o711)
        for name in ("requests", "replies"):
            os.mkfifo(self._root / name)
        for name in ("dev/null", "requests", "replies"):
            (self._root / name).chmod(0o666)
        (self._root / "etc/smtpd.conf").write_text(self._settings())

    def _settings(self) -> str:
        settings, options = "", ""
        if self.tls is not None:
            for kind, path in zip(("cert", "key"), self.tls, strict=True):
                shutil.copy(path, self._root / "etc" / kind)
                (self._root / "etc" / kind).chmod(0o600)
                settings += f'pki "relay.example" {kind} "/etc/{kind}"\n'
            options = f' {"smtps" if self.implicit else "tls-require"} pki "relay.example"'
        if self.login is not None:
            user, password = self.login
            hashed = subprocess.run(
                ["openssl", "passwd", "-6", "-stdin"], input=password, check=True, capture_output=True, text=True
            ).stdout
            (self._root / "etc/logins").write_text(f"{user}\t{hashed}")
            settings += "table logins file:/etc/logins\n"
            options += " auth <logins>"
        filtered, _, rest = _SETTINGS.partition("\n")
        return f"{settings}{filtered}\n{_LISTEN.format(port=self.port, options=options)}{rest}"

    async def _answer(self, conversation: _Conversation) -> None:
        """Answer OpenSMTPD's requests to the filter."""
        loop = asyncio.get_running_loop()
        # both ends of a pipe are opened, so that this neither waits for the other process nor ends with it
        requests, replies = (
            os.fdopen(os.open(self._root / name, os.O_RDWR | os.O_NONBLOCK), "r+b", 0)
            for name in ("requests", "replies")
        )
        with replies:
            reader = asyncio.StreamReader()
            transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), requests)
            try:
                while line := (await reader.readline()).decode().rstrip("\n"):
                    for reply in conversation.replies(line):
                        replies.write(f"{reply}\n".encode())
            finally:
                transport.close()

    @property
    def log(self) -> str:
        return self._read("out")

    @property
    def logins(self) -> Counter[tuple[str, str]]:
        """How often each user logged in with each result."""
        return Counter(_AUTHENTICATED.findall(self.log))

    @property
    def accepted(self) -> list[Taken]:
        """Every mail that it accepted."""
        log = self.log
        sizes = {message: int(size) for message, size in _MESSAGE.findall(log)}
        return [Taken(recipient, sizes[message]) for message, recipient in _ENVELOPE.findall(log)]

    @property
    def refused(self) -> Counter[tuple[str | None, int]]:
        """How often it refused a recipient (`None`: a sender) with a code."""
        return self._conversation.refused if self._conversation is not None else Counter()
