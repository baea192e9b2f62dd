"""What is installed from a wheel works from an empty folder."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Stage
from rabbitmq import until
from worker import SCRIPT, Worker, job

ROOT = Path(__file__).parents[2]


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """Return a folder that holds only what the wheel brings."""
    python = [sys.executable, "-m"]
    wheels, site = tmp_path / "wheels", tmp_path / "site"
    subprocess.run(
        [*python, "build", "--wheel", "--no-isolation", "--outdir", wheels, ROOT], check=True, capture_output=True
    )
    (wheel,) = wheels.glob("*.whl")
    subprocess.run(
        [*python, "pip", "install", "-q", "--no-deps", "--target", site, wheel], check=True, capture_output=True
    )
    return site


async def test_an_installed_wheel_runs_from_an_empty_folder(stage: Stage, installed: Path) -> None:
    worker = stage.worker(PYTHONPATH=str(installed))
    worker.folder.mkdir(parents=True)
    assert not list(worker.folder.iterdir())
    where = await asyncio.to_thread(
        subprocess.check_output, [sys.executable, "-c", "import otp_stream; print(otp_stream.__file__)"],
        text=True, cwd=worker.folder, env=os.environ | worker.env,
    )  # fmt: skip
    assert where.startswith(str(installed))
    await worker.start()
    await stage.rabbit.publish(job(metadata={"template": "password_reset", "locale": "de"}))
    await stage.relay.wait_accepted(1)
    for path in ("/", "/asyncapi", "/page.css", "/page.js", "/favicon.svg"):
        assert (await worker.get(path))[0] == 200, path


async def test_the_demo_shows_its_mails_and_takes_one_more(demo: Worker, tmp_path: Path) -> None:
    _, inbox = await demo.get("/inbox")
    assert "ada@example.com" in inbox
    assert "later@example.com" in inbox
    assert "nobody@example.com" not in inbox
    assert (await demo.health())["outcomes"] == {"sent": 2, "rejected": 1, "malformed": 1}
    url = next(word for word in demo.log.split() if word.startswith("rabbitmq_url=")).removeprefix("rabbitmq_url=")
    one_more = await asyncio.create_subprocess_exec(
        SCRIPT, "send", "you@example.com", "--name", "You", cwd=tmp_path, env=os.environ | {"RABBITMQ_URL": url},
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    _, told = await one_more.communicate()
    assert b": sent, after" in told
    assert one_more.returncode == 0

    async def shown() -> bool:
        return "you@example.com" in (await demo.get("/inbox"))[1]

    await until(shown, "mail in the inbox")
    assert await demo.stop() in {0, -15}
