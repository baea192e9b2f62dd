"""A private Postfix from Debian's package, unpacked by tests/ground.py, and what verifies its logins."""

import asyncio
import base64
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Self

from debian_relay import DebianRelay, Policy
from relays import POSTFIX, Taken


@dataclass
class Logins:
    """What verifies a login for Postfix, by the protocol of Dovecot's `auth`; the talk with the client is Postfix's."""

    login: tuple[str, str] | None
    mechanism: str

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one smtpd, login by login."""
        hello = f"VERSION\t1\t1\nMECH\t{self.mechanism}\tplaintext\nSPID\t1\nCUID\t1\nCOOKIE\t{'0' * 32}\nDONE\n"
        writer.write(hello.encode())
        given: list[str] = []
        while line := (await reader.readline()).decode().rstrip("\n"):
            verb, *fields = line.split("\t")
            if verb == "AUTH":
                given = [it.removeprefix("resp=") for it in fields if it.startswith("resp=")]
            elif verb == "CONT":
                given.append(fields[1])
            else:
                continue
            writer.write(f"{self._answer(fields[0], given)}\n".encode())
        writer.close()

    def _answer(self, number: str, given: list[str]) -> str:
        texts = [base64.b64decode(it).decode() for it in given]
        if self.mechanism == "PLAIN":
            texts = texts[0].split("\0")[1:] if texts else []
        if len(texts) < 2:
            return f"CONT\t{number}\t{base64.b64encode((b'Username:', b'Password:')[len(texts)]).decode()}"
        return f"OK\t{number}\tuser={texts[0]}" if tuple(texts) == self.login else f"FAIL\t{number}"


_DAEMONS = """\
127.0.0.1:{port} inet n - n - {processes} {command}
smtpd     pass  -  -  n  -  -  smtpd
cleanup   unix  n  -  n  -  0  cleanup
qmgr      unix  n  -  n  300  1  qmgr
rewrite   unix  -  -  n  -  -  trivial-rewrite
tlsmgr    unix  -  -  n  1000?  1  tlsmgr
tlsproxy  unix  -  -  n  -  0  tlsproxy
dnsblog   unix  -  -  n  -  0  dnsblog
bounce    unix  -  -  n  -  0  bounce
defer     unix  -  -  n  -  0  bounce
trace     unix  -  -  n  -  0  bounce
error     unix  -  -  n  -  -  error
retry     unix  -  -  n  -  -  error
proxymap  unix  -  -  n  -  -  proxymap
discard   unix  -  -  n  -  -  discard
anvil     unix  -  -  n  -  1  anvil
postlog   unix-dgram n - n - 1 postlogd
"""

_SETTINGS = """\
compatibility_level = 3.6
queue_directory = {folder}/queue
data_directory = {folder}/data
daemon_directory = {postfix}/usr/lib/postfix/sbin
command_directory = {postfix}/usr/sbin
maillog_file = {folder}/log/maillog
maillog_file_prefixes = {folder}
import_environment = MAIL_CONFIG LD_LIBRARY_PATH
mail_owner = {owner}
setgid_group = {group}
default_privs = nobody
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
myhostname = relay.example
mydestination =
alias_maps =
local_recipient_maps =
default_transport = discard
mynetworks = 127.0.0.0/8
smtpd_peername_lookup = no
smtpd_delay_reject = no
"""

_QUEUE = ("active", "bounce", "corrupt", "defer", "deferred", "flush", "hold", "incoming", "private", "trace")
_REFUSAL = re.compile(r" reject: \S+ from \S+: (\d{3}) .*; from=<\S*?>(?: to=<(\S+?)>)? ")
_LINE = re.compile(r"postfix/(?:qmgr|discard)\[\d+\]: (\w+): (?:from=<.*?>, size=(\d+)|to=<(.+?)>.* status=(\w+))")
_LOGIN = re.compile(r" sasl_method=(\S+), sasl_username=(\S+)")
_POSTSCREEN = """\
postscreen_access_list =
postscreen_greet_wait = 1s
postscreen_greet_action = enforce
postscreen_pipelining_enable = yes
postscreen_pipelining_action = enforce
postscreen_non_smtp_command_enable = yes
postscreen_bare_newline_enable = yes
"""
"""All of its tests. A client that passes them is refused with 450 until it connects again."""
# accounts and groups that every Debian has and nothing uses: Postfix wants its own, and they have to exist
_OWNER, _GROUP = "uucp", "games"


@dataclass
class Postfix(DebianRelay):
    """A private Postfix that discards what it accepts, started with `async with`. A certificate makes TLS required."""

    access: bool = False
    """Whether an access map refuses, and not the policy server. It knows no senders and repeats every 4xx."""
    mechanism: str = "PLAIN"
    """By which the login is required."""
    logins: int | None = None
    """Port of the server that verifies logins, for example Dovecot: a login is required then."""
    postscreen: bool = False
    _servers: list[asyncio.Server] = field(default_factory=list)

    async def __aenter__(self) -> Self:
        self._make_folder()
        policy = Policy(self.refuse_sender_every)
        serves = (policy.serve, Logins(self.login, self.mechanism).serve)
        self._servers = [await asyncio.start_server(serve, "127.0.0.1", 0) for serve in serves]
        self._write_files(*(server.sockets[0].getsockname()[1] for server in self._servers))
        # `master` logs to a file by the daemon `postlogd`
        await self._start([POSTFIX.path(POSTFIX.program), "-d", "-c", self.folder / "etc"], POSTFIX.env)
        return self

    async def __aexit__(self, *_: object) -> None:
        await super().__aexit__()
        for server in self._servers:
            server.close()

    def _write_files(self, policy_port: int, login_port: int) -> None:
        for name in ("etc", "log", "queue/pid"):
            (self.folder / name).mkdir(parents=True)
        for name in ("data", "queue/public", "queue/maildrop", *(f"queue/{name}" for name in _QUEUE)):
            (self.folder / name).mkdir()
            (self.folder / name).chmod(0o700)
            shutil.chown(self.folder / name, _OWNER)
        shutil.chown(self.folder / "queue/public", _OWNER, _GROUP)
        (self.folder / "queue/public").chmod(0o710)
        settings = _SETTINGS.format(folder=self.folder, postfix=POSTFIX.path(""), owner=_OWNER, group=_GROUP)
        settings += "".join(self._refusals(policy_port)) + self._tls_settings() + self._login_settings(login_port)
        (self.folder / "etc/main.cf").write_text(settings + _POSTSCREEN * self.postscreen)
        smtpd = ("1", "postscreen") if self.postscreen else ("-", "smtpd")
        daemons = _DAEMONS.format(port=self.port, processes=smtpd[0], command=smtpd[1])
        (self.folder / "etc/master.cf").write_text(daemons)

    def _refusals(self, policy_port: int) -> Iterator[str]:
        for stage, name in {"mail": "sender", "rcpt": "recipient", "data": "data", "body": "end_of_data"}.items():
            check = f"check_policy_service inet:127.0.0.1:{policy_port}"
            if self.access:
                access = self.folder / f"etc/{stage}"
                access.write_text(f"/^{stage}-(...)-/ ${{1}} refused at {stage}\n")
                check = f"check_recipient_access regexp:{access}"
            yield f"smtpd_{name}_restrictions = {check}\n"

    def _tls_settings(self) -> str:
        if self.tls is None:
            return ""
        certificate, key = self.tls
        return (
            f"smtpd_tls_security_level = encrypt\nsmtpd_tls_cert_file = {certificate}\nsmtpd_tls_key_file = {key}\n"
            f"smtpd_tls_wrappermode = {'yes' if self.implicit else 'no'}\n"
        )

    def _login_settings(self, port: int) -> str:
        port = self.logins or port
        if self.login is None and self.logins is None:
            return "smtpd_relay_restrictions = permit_mynetworks, reject\n"
        return (
            f"smtpd_sasl_auth_enable = yes\nsmtpd_sasl_type = dovecot\nsmtpd_sasl_path = inet:127.0.0.1:{port}\n"
            "smtpd_relay_restrictions = permit_sasl_authenticated, reject\n"
        )

    @property
    def log(self) -> str:
        return self._read("log/maillog")

    async def has_mail(self) -> bool:
        """Return whether it has accepted and discarded a mail."""
        return bool(self.accepted)

    @property
    def mechanisms(self) -> list[tuple[str, str]]:
        """Mechanism and user of each mail that came after a login."""
        return _LOGIN.findall(self.log)

    @property
    def accepted(self) -> list[Taken]:
        """Every mail that it accepted, once it has discarded it."""
        sizes: dict[str, int] = {}
        taken: list[Taken] = []
        for queue_id, size, recipient, status in _LINE.findall(self.log):
            if size:
                sizes[queue_id] = int(size)
            elif status == "sent":
                taken.append(Taken(recipient, sizes[queue_id]))
        return taken

    @property
    def refused(self) -> Counter[tuple[str | None, int]]:
        """How often it refused a recipient (`None`: a sender) with a code."""
        return Counter((recipient or None, int(code)) for code, recipient in _REFUSAL.findall(self.log))
