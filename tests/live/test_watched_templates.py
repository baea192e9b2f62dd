"""Templates that change while a worker runs."""

import signal
from email import message_from_bytes, policy
from pathlib import Path

from conftest import Stage
from smtp_relay import Received
from worker import Worker, job

USED = '"event":"templates have changed"'
KEPT = "templates have changed and cannot be used"


def put(folder: Path, text: str, name: str = "subject.txt") -> None:
    """Replace a file of `otp` in one step."""
    path = folder / "otp" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".new").write_text(text)
    path.with_suffix(".new").replace(path)


def subject(mail: Received) -> str:
    return str(message_from_bytes(mail.content, policy=policy.default)["subject"])


async def send(stage: Stage, number: int) -> str:
    """Send a mail and return its subject."""
    await stage.rabbit.publish(job(f"user{number}@example.com"))
    await stage.relay.wait_accepted(number)
    return subject(stage.relay.accepted[-1])


async def started(stage: Stage, folder: Path) -> Worker:
    put(folder, "first")
    return await stage.run(TEMPLATES_DIR=str(folder))


async def test_a_changed_template_is_used_for_the_next_mail_and_a_broken_one_is_not(stage: Stage) -> None:
    folder = stage.folder / "templates"
    worker = await started(stage, folder)
    assert await send(stage, 1) == "first"
    put(folder, "second")
    await worker.wait_log(USED)
    assert await send(stage, 2) == "second"
    put(folder, "{% if %}")
    await worker.wait_log(KEPT)
    assert await send(stage, 3) == "second"
    put(folder, "third")
    await worker.wait_log(USED, times=2)
    assert await send(stage, 4) == "third"
    assert worker.log.count(KEPT) == 1


async def test_a_file_that_crashes_or_stops_its_compilation_changes_nothing(stage: Stage) -> None:
    folder = stage.folder / "templates"
    worker = await started(stage, folder)
    html = "<html><style data-inline>p{color:red}</style><body>{{ otp }}"
    attacks = ("{% for i in [1] %}" * 25 + "{% endfor %}" * 25, html + "<b>" * 20_000, html + '<a"' * 12_000)
    for number, attack in enumerate(attacks, 1):
        put(folder, attack, "body.html")
        await worker.wait_log(KEPT, 120, times=number)
        assert await send(stage, number) == "first"
    (folder / "otp/body.html").unlink()
    put(folder, "second")
    await worker.wait_log(USED)
    assert await send(stage, len(attacks) + 1) == "second"
    assert "background task failed" not in worker.log


async def test_sighup_reads_templates_at_any_time(stage: Stage) -> None:
    folder = stage.folder / "templates"
    worker = await started(stage, folder)
    for number, text in enumerate(("second", "third", "fourth"), 1):
        put(folder, text)
        worker.signal(signal.SIGHUP)
        await worker.wait_log(USED, times=number)
        assert await send(stage, number) == text
    for _ in range(3):  # nothing has changed
        worker.signal(signal.SIGHUP)
    assert await send(stage, 4) == "fourth"
    assert worker.log.count(USED) == 3
    assert KEPT not in worker.log
