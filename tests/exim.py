"""A private Exim from Debian's package, unpacked by tests/ground.py. Its ACLs ask a policy."""

import asyncio
import re
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from debian_relay import DebianRelay, Policy
from relays import EXIM, NSS_WRAPPER, Taken

_SETTINGS = """\
primary_hostname = relay.example
spool_directory = {folder}/spool
log_file_path = {folder}/log/%slog
log_selector = +received_recipients
pid_file_path =
exim_user = {owner}
exim_group = {owner}
keep_environment =
local_interfaces = 127.0.0.1
daemon_smtp_ports = {port}
queue_only
smtp_accept_max = 100
host_lookup =
rfc1413_query_timeout = 0s
"""
_STAGES = {"mail": ("MAIL", "-"), "rcpt": ("RCPT", "$local_part@$domain"), "predata": ("DATA", "$recipients"),
           "data": ("END-OF-MESSAGE", "$recipients")}  # fmt: skip
"""Exim's names of its ACLs: the state as Postfix names it, and what is known of the recipient."""
_ACL = """\
{stage}:
  deny
    condition = {login}
    ! authenticated = *
    message = 530 5.7.0 Authentication required
  warn
    set acl_m_answer = ${{readsocket{{inet:127.0.0.1:{policy}}}{{{state} {who}\\n}}{{10s}}}}
  deny
    condition = ${{if match{{$acl_m_answer}}{{\\N^5\\N}}}}
    message = $acl_m_answer
    log_message = refused <{who}> $acl_m_answer
  defer
    condition = ${{if match{{$acl_m_answer}}{{\\N^4\\N}}}}
    message = $acl_m_answer
    log_message = refused <{who}> $acl_m_answer
  accept
"""
_AUTHENTICATORS = """\
begin authenticators
plain:
  driver = plaintext
  public_name = PLAIN
  server_prompts = :
  server_condition = ${{if and{{{{eq{{$auth2}}{{{user}}}}}{{eq{{$auth3}}{{{password}}}}}}}}}
  server_set_id = $auth2
login:
  driver = plaintext
  public_name = LOGIN
  server_prompts = User Name : Password
  server_condition = ${{if and{{{{eq{{$auth1}}{{{user}}}}}{{eq{{$auth2}}{{{password}}}}}}}}}
  server_set_id = $auth1
cram:
  driver = cram_md5
  public_name = CRAM-MD5
  server_secret = ${{if eq{{$auth1}}{{{user}}}{{{password}}}fail}}
  server_set_id = $auth1
"""
_REFUSAL = re.compile(r": refused <(.*?)> (\d{3}) ")
_TAKEN = re.compile(r" <= .* S=(\d+) .* for (\S+)$", re.MULTILINE)
_OWNER = "uucp"
"""An account that every Debian has and nothing uses."""
_ACCOUNTS = {"passwd": "Debian-exim:x:10:10::/:/bin/false\n", "group": "Debian-exim:x:10:\n"}
"""Exim's own, without which it does not start. nss_wrapper shows it to this Exim alone."""


@dataclass
class Exim(DebianRelay):
    """A private Exim that keeps what it accepts in its queue, started with `async with`."""

    _server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._make_folder()
        policy = Policy(self.refuse_sender_every)

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            state, recipient = (await reader.readline()).decode().split()
            writer.write(policy.action(state, recipient).encode())
            writer.close()

        self._server = await asyncio.start_server(answer, "127.0.0.1", 0)
        self._write_files(self._server.sockets[0].getsockname()[1])
        accounts = {f"NSS_WRAPPER_{name.upper()}": str(self.folder / name) for name in ("passwd", "group")}
        env = {"LD_PRELOAD": str(NSS_WRAPPER.path(NSS_WRAPPER.program))} | accounts
        await self._start([EXIM.path(EXIM.program), "-C", self.folder / "conf", "-bdf"], env)
        return self

    async def __aexit__(self, *_: object) -> None:
        await super().__aexit__()
        if self._server is not None:
            self._server.close()

    def _write_files(self, policy_port: int) -> None:
        for name in ("spool", "log"):
            (self.folder / name).mkdir()
            shutil.chown(self.folder / name, _OWNER)
        for name, account in _ACCOUNTS.items():
            (self.folder / name).write_text(Path("/etc", name).read_text() + account)
        settings = _SETTINGS.format(folder=self.folder, owner=_OWNER, port=self.port) + self._tls_settings()
        settings += "".join(f"acl_smtp_{stage} = {stage}\n" for stage in _STAGES) + "begin acl\n"
        for stage, (state, who) in _STAGES.items():
            login = str(self.login is not None and stage == "mail").lower()
            settings += _ACL.format(stage=stage, state=state, who=who, login=login, policy=policy_port)
        if self.login is not None:
            settings += _AUTHENTICATORS.format(user=self.login[0], password=self.login[1])
        (self.folder / "conf").write_text(settings)

    def _tls_settings(self) -> str:
        if self.tls is None:
            return "tls_advertise_hosts =\n"
        names = [shutil.copy(path, self.folder) for path in self.tls]
        for name in names:
            shutil.chown(name, _OWNER)
        implicit = f"tls_on_connect_ports = {self.port}\n" if self.implicit else ""
        return f"tls_certificate = {names[0]}\ntls_privatekey = {names[1]}\n{implicit}"

    @property
    def log(self) -> str:
        return self._read("log/mainlog")

    @property
    def accepted(self) -> list[Taken]:
        """Every mail that it accepted."""
        return [Taken(recipient, int(size)) for size, recipient in _TAKEN.findall(self.log)]

    @property
    def refused(self) -> Counter[tuple[str | None, int]]:
        """How often it refused a recipient (`None`: a sender) with a code."""
        found = _REFUSAL.findall(self.log)
        return Counter((None if recipient == "-" else recipient, int(code)) for recipient, code in found)
