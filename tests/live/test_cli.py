"""The command line, as a person uses it."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cli import names, otp_stream
from conftest import Stage
from processes import SCRIPTS, start
from rabbitmq import free_port, until
from worker import CODE


async def test_help_and_version(tmp_path: Path) -> None:
    assert (await otp_stream(tmp_path, "--version")).out.startswith("otp-stream 0.")
    helped = await otp_stream(tmp_path, "--help")
    assert helped.code == 0
    assert "send" in helped.out
    assert "demo" in helped.out
    assert (await otp_stream(tmp_path)).code == 2


async def test_a_job_is_sent_and_its_outcome_reported(stage: Stage) -> None:
    await stage.run()
    ran = await otp_stream(stage.folder, "send", "you@example.com", "--otp", CODE, "--job-id", "j-1", **names(stage))
    assert ran.code == 0, ran.out
    assert ran.out.startswith("j-1: sent, after ")
    assert CODE not in ran.out
    assert stage.relay.accepted[0].recipient == "you@example.com"
    again = await otp_stream(stage.folder, "send", "you@example.com", "--otp", CODE, "--job-id", "j-1", **names(stage))
    assert (again.code, again.out.split(",")[0]) == (1, "j-1: duplicate")


async def test_fields_of_a_job_can_be_given(stage: Stage) -> None:
    await stage.run()
    options = ("--template", "welcome", "--locale", "de", "--name", "Zoë", "--priority", "high", "--high-lane")
    ran = await otp_stream(stage.folder, "send", "you@example.com", *options, "--expiry-minutes", "7", **names(stage))
    assert ran.code == 0, ran.out
    content = stage.relay.accepted[0].content.decode()
    assert "Zo=C3=AB" in content
    assert "7 Minuten" in content


async def test_a_rejected_job_is_reported_and_fails(stage: Stage) -> None:
    stage.relay.always("rcpt", "550 5.1.1 no such user")
    await stage.run()
    ran = await otp_stream(stage.folder, "send", "nobody@example.com", **names(stage))
    assert ran.code == 1
    assert "rejected 550 5.1.1 no such user" in ran.out


async def test_before_any_worker_the_job_waits_in_a_plain_queue(stage: Stage) -> None:
    ran = await otp_stream(stage.folder, "send", "you@example.com", **names(stage))
    assert ran.code == 0, ran.out
    assert ran.out.startswith("published ")
    await stage.rabbit.declare()  # plain, as producers do

    async def there() -> bool:
        return await stage.rabbit.depth() == 1

    await until(there, "the job in the queue")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("send", "nobody"), "email: must be one e-mail address"),
        (("send", "a@b.c", "--otp", "1"), "otp: must have 4 to 64 characters"),
        (("send", "a@b.c", "--priority", "urgent"), "--priority: must be one of low, normal, high"),
        (("send", "a@b.c", "--template", "../x"), "metadata.template: must consist of"),
    ],
)
async def test_an_invalid_job_is_refused_with_its_fix(tmp_path: Path, arguments: tuple[str, ...], text: str) -> None:
    ran = await otp_stream(tmp_path, *arguments)
    assert ran.code == 2
    assert text in ran.out


async def test_a_broker_that_is_away_is_named(tmp_path: Path) -> None:
    url = f"amqp://u:hunter2@127.0.0.1:{free_port()}/"
    ran = await otp_stream(tmp_path, "send", "a@b.c", RABBITMQ_URL=url)
    assert ran.code == 2
    assert "does not answer" in ran.out
    assert "hunter2" not in ran.out
    assert (await otp_stream(tmp_path, "send", "a@b.c", RABBITMQ_URL="ftp://x")).code == 2


_INTERRUPTED = """
import os, signal, sys
sys.argv = ["/usr/bin/otp-stream", "check"]

class Finder:
    def find_spec(self, name, path, target=None):
        if name == "importlib.metadata":
            os.kill(os.getpid(), signal.SIGINT)

sys.modules.pop("importlib.metadata", None)
sys.meta_path.insert(0, Finder())
import otp_stream.cli
"""


async def test_ctrl_c_before_anything_is_imported_is_no_traceback(tmp_path: Path) -> None:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _INTERRUPTED, cwd=tmp_path, stdout=pipe, stderr=asyncio.subprocess.STDOUT
    )
    out, _ = await asyncio.wait_for(process.communicate(), 30)
    assert (process.returncode, out) == (-signal.SIGINT, b"")


@pytest.mark.parametrize("words", [("check",), ("dead", "list"), ("load", "--yes"), ("send", "a@example.com"),
    ("topology", "show")])  # fmt: skip
async def test_ctrl_c_while_a_command_waits_for_the_broker_is_no_traceback(
    tmp_path: Path, words: tuple[str, ...]
) -> None:
    reached = asyncio.Event()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reached.set()
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    output = tmp_path / "output"
    env = os.environ | {"RABBITMQ_URL": f"amqp://127.0.0.1:{port}/"}
    process = await start("otp-stream", *words, folder=tmp_path, env=env, output=output)
    try:
        await asyncio.wait_for(reached.wait(), 20)
        process.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(process.wait(), 30) in {1, 130}
    finally:
        process.kill()
        server.close()
    assert "Traceback" not in output.read_text()
    assert "Exception" not in output.read_text()


@pytest.mark.parametrize(
    ("closed", "words"),
    [
        ("<&-", ("sealing", "new")),
        (">&-", ("sealing", "new")),
        ("<&- >&- 2>&-", ("sealing", "new")),
        ("<&-", ("dead", "drop", "--all", "--yes")),
        (">&-", ("dead", "drop", "--all", "--yes")),
    ],
)
def test_a_command_needs_no_open_input_or_output(closed: str, words: tuple[str, ...], stage: Stage) -> None:
    # in a new interpreter, which has no stream for what is closed
    shell = ("sh", "-c", f'exec "$@" {closed}', "sh", str(SCRIPTS / "otp-stream"), *words)
    env = {"PATH": os.environ["PATH"], **names(stage)}
    ran = subprocess.run(shell, env=env, capture_output=True, text=True, check=False, timeout=60)
    assert "Traceback" not in ran.stderr
    if words[0] == "sealing":
        assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("words", [("sealing", "new"), ("tokens", "new", "ada"), ("asyncapi",)], ids=" ".join)
async def test_an_output_that_cannot_be_written_is_reported(tmp_path: Path, words: tuple[str, ...]) -> None:
    env, errors = {"PATH": os.environ["PATH"]}, tmp_path / "errors"
    process = await start("otp-stream", *words, folder=tmp_path, env=env, output=Path("/dev/full"), errors=errors)
    assert await asyncio.wait_for(process.wait(), 60) == 1
    shown = (await asyncio.to_thread(errors.read_text)).splitlines()
    assert shown[-1] == "otp-stream: the output cannot be written: No space left on device"
