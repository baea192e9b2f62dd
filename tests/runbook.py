"""Parses docs/runbook.md, and other pages, for their tests: the commands of each section, and the texts it announces.

`Fault` is one section with its servers: it runs a line unchanged, in a shell that has the worker's settings, and
searches the worker's log, its HTTP responses and the output of commands for the texts.
"""

import asyncio
import json
import os
import random
import re
import shlex
import urllib.request
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from textwrap import dedent
from uuid import uuid4

import yaml
from conftest import Stage, set_stage
from patience import limit
from processes import start
from rabbitmq import Node, until, with_management
from smtp_relay import ScriptedRelay
from worker import CODE, SCRIPT, Worker, job

ROOT = Path(__file__).parents[1]
QUEUE, PREFIX = "service_send_otp", "otp"
WAIT_S = 40
"""Time limit for each condition. It is long, because other faults are tested at the same time."""
_COMMANDS_S = 200
"""Time limit for a line, or for a block of several commands, that hangs."""
_SECTION = re.compile(r"^## (?P<title>.+?)$\n(?P<text>.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
_BLOCK = re.compile(r"^ *```sh$\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
_SIGNS = re.compile(r"^\| \| \|\n\|---\|---\|\n((?:\|.*\n)+)", re.MULTILINE)
"""A table without titles, whose rows are where a text appears, and the text."""
_ROW = re.compile(r"\| (?P<over>over: )?(?P<where>[^|]+?) \| (?P<words>[^|]+) \|")
_CODE = re.compile(r"`([^`]+)`")


@dataclass(frozen=True)
class Sign:
    """A text that appears: as an `alert`, in the `log`, in an HTTP response of the worker, or in a command's output."""

    where: str
    words: str
    over: bool
    """Whether the text means that the fault has ended."""

    def is_in(self, text: str) -> bool:
        """Return whether the text appears; `…` matches anything on the same line."""
        return re.search(".*?".join(map(re.escape, self.words.split("…"))), text) is not None


@dataclass(frozen=True)
class Section:
    """The commands and signs of one fault."""

    title: str
    blocks: tuple[str, ...]
    """Its `sh` blocks."""
    signs: tuple[Sign, ...]

    @property
    def lines(self) -> list[str]:
        """The unchanged lines of its blocks."""
        return [line for block in self.blocks for line in block.splitlines()]

    @property
    def commands(self) -> set[str]:
        """The lines without their comments."""
        return set(map(_bare, self.lines))


@cache
def sections(page: str = "runbook.md") -> dict[str, Section]:
    """Return every section of a page by its title."""
    text = (ROOT / "docs" / page).read_text()
    return {it["title"]: _section(it["title"], it["text"]) for it in _SECTION.finditer(text)}


def _section(title: str, text: str) -> Section:
    blocks = tuple(map(dedent, _BLOCK.findall(text)))
    signs = [
        Sign(row["where"].strip("`"), words, bool(row["over"]))
        for table in _SIGNS.findall(text)
        for row in _ROW.finditer(table)
        for words in _CODE.findall(row["words"])
    ]
    return Section(title, blocks, tuple(signs))


def _bare(line: str) -> str:
    return re.split(r"\s+# ", line)[0]


@cache
def alerts() -> dict[str, str]:
    """Return the section of the runbook for each alert, by its name."""
    groups = yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yaml").read_text())["groups"]
    return {rule["alert"]: rule["annotations"]["runbook_url"] for group in groups for rule in group["rules"]}


@dataclass
class Ground:
    """A RabbitMQ for all faults, at its default ports, on a loopback address that nothing else uses."""

    folder: Path
    host: str = field(default_factory=lambda: ".".join(["127", *(str(random.randint(1, 254)) for _ in range(3))]))  # noqa: S311
    node: Node = field(init=False)

    def __post_init__(self) -> None:
        management = with_management(15672, self.host)
        self.node = Node(
            self.folder / "node", settings=(f"listeners.tcp.2 = {self.host}:5672", *management),
            plugins="rabbitmq_management",
        )  # fmt: skip

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@{self.host}:5672/"

    def start(self) -> None:
        self.node.start()
        self.node.control("eval", "application:set_env(rabbit, quorum_tick_interval, 500).")

    async def virtual_host(self, name: str) -> str:
        """Create one. Returns its URL."""
        await asyncio.to_thread(self._put, f"vhosts/{name}", {})
        everything = {"configure": ".*", "write": ".*", "read": ".*"}
        await asyncio.to_thread(self._put, f"permissions/{name}/guest", everything)
        return self.url + name

    def _put(self, path: str, content: dict[str, str]) -> None:
        headers = {"Authorization": f"Basic {b64encode(b'guest:guest').decode()}", "Content-Type": "application/json"}
        address = f"http://{self.host}:15672/api/{path}"
        with urllib.request.urlopen(
            urllib.request.Request(address, json.dumps(content).encode(), headers, method="PUT"), timeout=20
        ):
            pass


@dataclass
class Fault:
    """A section that is followed on its stage."""

    section: Section
    stage: Stage
    node: Node
    outputs: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    """The output of each command, each time."""
    _worker: Worker | None = None

    @property
    def worker(self) -> Worker:
        """The worker that the operator looks at."""
        assert self._worker is not None
        return self._worker

    @property
    def relay(self) -> ScriptedRelay:
        return self.stage.relay

    @property
    def folder(self) -> Path:
        """The working folder of the operator."""
        return self.stage.folder

    async def start(self, *, ready: bool = True, **changes: str) -> Worker:
        """Start the worker, or stop it and start one with other settings in its place."""
        if self._worker is not None:
            await self._worker.stop()
        self._worker = self.stage.worker(**changes)
        await self._worker.start(ready=ready)
        return self._worker

    async def publish(self, *recipients: str, **more: object) -> None:
        await self.stage.rabbit.publish(*(job(to, **more) for to in recipients))

    async def run(self, command: str, *, code: int = 0, **env: str) -> str:
        """Run a line of the section, answering yes. Returns its output. `env` overrides the worker's settings."""
        line = next(it for it in self.section.lines if _bare(it) == command)
        out = await self.shell(line, code=code, **env)
        assert CODE not in out
        self.outputs.setdefault(command, []).append(out)
        return out

    async def shell(self, line: str, *, code: int = 0, **env: str) -> str:
        """Run a line. A single `otp-stream` command runs without a shell, so that it starts in milliseconds."""
        tools = {
            "PATH": f"{SCRIPT.parent}:{self.node.server.parent}:{os.environ['PATH']}",
            "LANG": "C.UTF-8", "COLUMNS": "400", "NO_COLOR": "1", "PAGE": f"http://127.0.0.1:{self.worker.port}",
            "PID": str(self.worker.process and self.worker.process.pid),
            # with which RabbitMQ's programs find the node
            "HOME": str(self.node.folder), "RABBITMQ_NODENAME": self.node.name,
            # as for a node: with a busy-waiting scheduler for each core, they take more CPU time
            "RABBITMQ_CTL_ERL_ARGS": "+S 1:1 +sbwt none",
        }  # fmt: skip
        everything = self.worker.env | tools | env
        output, answers = self.folder / f"output{uuid4().hex}", self.folder / "answers"
        answers.write_text("y\n")
        name, *words = shlex.split(line, comments=True)
        if name == "otp-stream" and not set(_bare(line)) & set("$|;&<>`") and "LD_PRELOAD" not in env:
            process = await start(name, *words, folder=self.folder, env=everything, output=output, answers=answers)
        else:
            with output.open("ab") as out, answers.open("rb") as source:
                process = await asyncio.create_subprocess_shell(
                    line, cwd=self.folder, env=everything, stdin=source, stdout=out, stderr=out
                )
        ended_with = await asyncio.wait_for(process.wait(), limit(_COMMANDS_S))
        text = output.read_text()
        assert ended_with == code, f"{line}: ended with {ended_with}\n{text}"
        return text

    async def shows(self, *, over: bool = False) -> None:
        """Wait for every sign of the fault, one after the other, or of its end."""
        for sign in self.section.signs:
            if sign.over != over:
                continue
            try:
                await until(lambda sign=sign: self._is_seen(sign), f"{sign}", WAIT_S)
            except AssertionError as error:
                pieces = (str(error), *self.outputs.get(sign.where, []), (await self.worker.get("/readyz"))[1])
                raise AssertionError("\n".join((*pieces, self.worker.log[-4000:]))) from None

    async def _is_seen(self, sign: Sign) -> bool:
        match sign.where:
            case "alert":
                return sign.words in alerts()
            case "log":
                return sign.is_in(self.worker.log)
            case path if path.startswith("/"):
                return sign.is_in((await self.worker.get(path))[1])
            case command:  # its last output
                return any(map(sign.is_in, self.outputs[command][-1:]))

    async def metric(self, line: str, value: float) -> None:
        """Wait until the metric of an alert has this value."""

        async def has() -> bool:
            return await self.worker.metric(line) == value

        await until(has, f"{line} {value}", WAIT_S)

    async def arrive(self, *recipients: str) -> None:
        """Wait until each recipient has exactly one mail."""

        async def arrived() -> bool:
            return {mail.recipient for mail in self.relay.accepted} >= set(recipients)

        await until(arrived, f"mails to all of {recipients}", WAIT_S)
        got = [mail.recipient for mail in self.relay.accepted]
        assert all(got.count(to) == 1 for to in recipients), got

    async def dead(self, count: int) -> None:
        """Wait until there are `count` dead letters."""

        async def died() -> bool:
            return await self.stage.rabbit.depth(f"{PREFIX}.dead") == count

        await until(died, f"{count} dead letters", WAIT_S)


@asynccontextmanager
async def fault(ground: Ground, title: str) -> AsyncIterator[Fault]:
    """Set up the stage for a section, and check at the end that all its commands were run."""
    section = sections()[title]
    name = re.sub(r"\W+", "-", title.lower())
    # rabbitmqctl speaks of the default virtual host by default; the others have a separate one
    default = "rabbitmqctl delete_queue otp.dead" in section.commands
    url = ground.url if default else await ground.virtual_host(name)
    folder = ground.folder / name
    folder.mkdir()
    async with set_stage(url, folder, tidy=False, names=(QUEUE, PREFIX)) as stage:
        it = Fault(section, stage, ground.node)
        yield it
        assert set(it.outputs) == section.commands
