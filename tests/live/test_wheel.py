"""What is installed from a wheel works from an empty folder."""

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, PathDistribution, distribution
from pathlib import Path

import pytest
from conftest import Stage
from packaging.requirements import Requirement
from rabbitmq import until
from worker import SCRIPT, Worker, job

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that holds only what the wheel brings."""
    python, folder = [sys.executable, "-m"], tmp_path_factory.mktemp("installed")
    wheels, site = folder / "wheels", folder / "site"
    subprocess.run(
        [*python, "build", "--wheel", "--no-isolation", "--outdir", wheels, ROOT], check=True, capture_output=True
    )
    (wheel,) = wheels.glob("*.whl")
    subprocess.run(
        [*python, "pip", "install", "-q", "--no-deps", "--target", site, wheel], check=True, capture_output=True
    )
    return site


def python_with(installed: Path, *extras: str) -> Path:
    """Return the Python of a new environment with the wheel and what it requires with these extras."""
    environment = installed.parent / "-".join(("environment", *extras))
    if environment.exists():
        return environment / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    (site,) = environment.glob("lib/python*/site-packages")
    (metadata,) = installed.glob("otp_stream-*.dist-info")
    for entry in (*installed.iterdir(), *_required(PathDistribution(metadata), set(extras), {})):
        if entry.name not in {"bin", "__pycache__"} and not (site / entry.name).exists():
            (site / entry.name).symlink_to(entry)
    return environment / "bin" / "python"


def _required(package: Distribution, extras: set[str], found: dict[str, set[str]]) -> Iterator[Path]:
    """Yield the files and folders of everything that a package requires."""
    for text in package.requires or ():
        it = Requirement(text)
        environments = [{"extra": extra} for extra in extras or {""}]
        if it.marker is not None and not any(map(it.marker.evaluate, environments)):
            continue
        if it.name in found and it.extras <= found[it.name]:
            continue
        found[it.name] = found.get(it.name, set()) | it.extras
        other = distribution(it.name)
        yield from {Path(str(other.locate_file(file.parts[0]))) for file in other.files or () if file.parts[0] != ".."}
        yield from _required(other, it.extras, found)


def test_each_extra_brings_what_its_part_needs(installed: Path, tmp_path: Path) -> None:
    def run(python: Path, code: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [python, "-c", code], cwd=tmp_path, env={"HOME": str(tmp_path)}, capture_output=True, text=True, check=False
        )

    client, worker = python_with(installed, "client"), python_with(installed, "worker")
    ran = run(client, "import otp_stream.client")
    assert ran.returncode == 0, ran.stderr
    others = ["aiosmtpd", "babel", "faststream", "jinja2", "prometheus_client", "redis", "starlette", "uvicorn"]
    ran = run(client, f"import importlib.util as it; print(list(filter(it.find_spec, {others})))")
    assert (ran.returncode, ran.stdout) == (0, "[]\n"), ran.stderr
    ran = run(worker, "import otp_stream.app, sys; print('aiosmtpd' in sys.modules)")
    assert (ran.returncode, ran.stdout) == (0, "False\n"), ran.stderr
    assert run(worker, "import opentelemetry").returncode == 1
    for python in (client, worker):
        ran = run(python, "import otp_stream.cli")
        assert ran.returncode == 1
        assert re.match(r"otp-stream: the command line needs \w+, which is not installed\. ", ran.stderr)
        assert "  pip install 'otp-stream[cli]'\n" in ran.stderr
        assert "  pipx run --spec 'otp-stream[demo]' otp-stream demo\n" in ran.stderr


TYPED = """
from typing import assert_type
from otp_stream.client import JobEvent, OtpClient, OtpJob


async def send(client: OtpClient) -> str:
    event = await client.send(OtpJob(email="a@example.com", otp="123456"))
    assert_type(event, JobEvent)
    return event.outcome
"""


def test_type_checkers_see_the_types_of_an_installed_wheel(installed: Path, tmp_path: Path) -> None:
    client = python_with(installed, "client")
    (tmp_path / "pyrightconfig.json").write_text('{"typeCheckingMode": "strict"}')
    (tmp_path / "right.py").write_text(TYPED)
    (tmp_path / "wrong.py").write_text(TYPED.replace('otp="123456"', "otp=123456"))
    ran = subprocess.run(
        [sys.executable, "-m", "pyright", "--pythonpath", client, "right.py", "wrong.py"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 1
    assert '"Literal[123456]" is not assignable to "str"' in ran.stdout
    assert "\n1 error, 0 warnings, 0 informations\n" in ran.stdout
    assert "right.py" not in ran.stdout


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

    async def ended() -> bool:
        return (await demo.health())["outcomes"] == {"sent": 2, "rejected": 1, "malformed": 1}

    await until(ended, "the outcomes of its samples")
    _, inbox = await demo.get("/inbox")
    assert "ada@example.com" in inbox
    assert "later@example.com" in inbox
    assert "nobody@example.com" not in inbox
    (url,) = set(re.findall(r"rabbitmq_url='(.*?)'", demo.log))
    one_more = await asyncio.create_subprocess_exec(
        SCRIPT, "send", "you@example.com", "--name", "You", cwd=tmp_path, env=os.environ | {"RABBITMQ_URL": url},
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    _, text = await one_more.communicate()
    assert b": sent, after" in text
    assert one_more.returncode == 0

    async def shown() -> bool:
        return "you@example.com" in (await demo.get("/inbox"))[1]

    await until(shown, "mail in the inbox")
    assert await demo.stop() in {0, -15}
