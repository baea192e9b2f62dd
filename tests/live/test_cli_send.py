"""`otp-stream send` with many jobs."""

import asyncio
import base64
import json
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

from cli import names, otp_stream
from conftest import Stage
from processes import start
from rabbitmq import until
from worker import CODE

from otp_stream.cli.batch import read
from otp_stream.cli.publishing import _MAX_UNCONFIRMED
from otp_stream.core.sealing_keys import NO_KEYS


def lines(folder: Path, *jobs: dict[str, Any] | str) -> str:
    place = folder / "jobs.jsonl"
    place.write_text("\n".join(job if isinstance(job, str) else json.dumps(job) for job in jobs))
    return str(place)


def job(email: str, **more: Any) -> dict[str, Any]:
    return {"email": email, "otp": CODE, **more}


async def test_jobs_of_a_file_are_sent_unchanged_and_their_outcomes_counted(stage: Stage) -> None:
    stage.relay.always("rcpt", "550 5.1.1 no such user", to="nobody@example.com")
    await stage.run()
    file = lines(
        stage.folder,
        job("ada@example.com", jobId="j-1", metadata={"userName": "Ada", "template": "welcome"}),
        "",
        job("nobody@example.com"),
        job("ada@example.com", jobId="j-1"),
        job("zoe@example.com"),
    )
    ran = await otp_stream(stage.folder, "send", "--file", file, "--json", **names(stage))
    assert ran.code == 1
    result, end = json.JSONDecoder().raw_decode(ran.out)
    assert ran.out[end:].startswith("\n4 of 4 published, ")
    assert (result["jobs"], result["published"], result["noEnd"]) == (4, 4, 0)
    assert result["outcomes"]["rejected"] == 1
    assert result["outcomes"]["sent"] + result["outcomes"]["duplicate"] == 3
    assert result["errors"] == [{"outcome": "rejected", "error": "550 5.1.1 no such user (to RCPT)", "count": 1}]
    assert b"Ada" in next(it.content for it in stage.relay.accepted if it.recipient == "ada@example.com")
    for secret in (CODE, "nobody", "ada@"):
        assert secret not in ran.out


async def test_one_job_is_repeated_with_fresh_codes_at_a_rate(stage: Stage) -> None:
    await stage.run()
    began = time.monotonic()
    ran = await otp_stream(stage.folder, "send", "you@example.com", "--repeat", "21", "--rate", "40", **names(stage))
    assert ran.code == 0, ran.out
    assert "sent 21" in ran.out
    assert time.monotonic() - began >= 0.5
    found = {re.findall(rb"\b\d{6}\b", it.content)[0] for it in stage.relay.accepted}
    assert len(stage.relay.accepted) == 21
    assert len(found) > 15


async def test_a_file_with_an_invalid_line_is_not_published_unless_requested(stage: Stage) -> None:
    file = lines(
        stage.folder, job("a@example.com"), {"email": "b@example.com", "otp": 739154}, job("c"), "{", job("d@e.f")
    )
    ran = await otp_stream(stage.folder, "send", "--file", file, "--wait", "0", **names(stage))
    assert ran.code == 1
    for text in (
        "line 2: otp: must be a string",
        "line 3: email: must be one",
        "line 4: body: Invalid JSON",
        "--skip-bad",
    ):
        assert text in ran.out
    assert CODE not in ran.out
    assert await stage.rabbit.depth() is None
    ran = await otp_stream(stage.folder, "send", "--file", file, "--wait", "0", "--skip-bad", **names(stage))
    assert ran.code == 0, ran.out
    assert "2 of 2 published" in ran.out
    assert "3 lines skipped" in ran.out

    async def both() -> bool:
        return await stage.rabbit.depth() == 2

    await until(both, "both jobs in the queue")
    ran = await otp_stream(stage.folder, "send", "--file", file, "--skip-bad", **names(stage))
    assert ran.code == 1
    assert "no worker has declared the exchange" in ran.out


def test_exported_dead_letters_are_read_as_the_jobs_in_them(tmp_path: Path) -> None:
    def exported(content: bytes, **fields: object) -> bytes:
        return json.dumps(
            {"jobId": "made", "reason": "rejected", "body": base64.b64encode(content).decode()} | fields
        ).encode()

    plain = b'{"email": "a@example.com", "otp": "739154", "body": "x"}'
    named = b'{"jobId": "j-1",\n "email": "a@example.com", "otp": "739154"}'
    odd = [b'{"body": ', b'{"otp": "123456", "metadata": {"body": "x"}}', b'{"body": 5}']
    jobs, bad = read(
        [exported(plain), exported(named), plain, exported(b"no job"), exported(b"", body="?"), *odd], NO_KEYS
    )
    assert [job_id for job_id, _ in jobs[:2]] == ["made", "j-1"]
    assert json.loads(jobs[0][1])["otp"] == json.loads(jobs[2][1])["otp"] == "739154"
    assert jobs[1][1] == named
    assert [it.partition(":")[0] for it in bad] == ["line 4", "line 5", "line 6", "line 7", "line 8"]
    old = exported(plain, firstSeen="2026-01-31T12:00:00Z")
    assert json.loads(read([old], NO_KEYS)[0][0][1])["timestamp"] == 1_769_860_800_000  # its code does not grow younger
    assert "timestamp" not in json.loads(jobs[0][1])
    null = exported(b'{"email": "a@example.com", "otp": "739154", "timestamp": null}', firstSeen="2026-01-31T12:00:00Z")
    assert json.loads(read([null], NO_KEYS)[0][0][1])["timestamp"] == 1_769_860_800_000
    assert read([exported(b'{"timestamp": []}', firstSeen="2026-01-31T12:00:00Z")], NO_KEYS)[1]


async def test_without_events_a_job_is_published_without_waiting(stage: Stage) -> None:
    await stage.run(EVENTS="false")
    ran = await otp_stream(stage.folder, "send", "a@example.com", "--wait", "60", EVENTS="false", **names(stage))
    assert ran.code == 0, ran.out
    assert "EVENTS=false: workers publish no events" in ran.out
    await stage.relay.wait_accepted(1)


async def test_ctrl_c_reports_how_many_were_published(stage: Stage, tmp_path: Path) -> None:
    output = tmp_path / "output"
    process = await start(
        "otp-stream", "send", "you@example.com", "--repeat", "5000", "--rate", "50", "--wait", "0",
        folder=tmp_path, env=os.environ | names(stage), output=output,
    )  # fmt: skip

    async def some() -> bool:
        return (await stage.rabbit.depth() or 0) >= 5

    await until(some, "published jobs")
    process.send_signal(signal.SIGINT)
    assert await asyncio.wait_for(process.wait(), 30) == 1
    out = output.read_text()
    totals = re.fullmatch(r"(\d+) of 5 000 published, then interrupted\n", out)
    assert totals, out
    depth = await stage.rabbit.depth() or 0
    # more only if RabbitMQ confirmed nothing for two seconds: then, all that are in flight
    assert 5 <= int(totals[1]) <= depth <= int(totals[1]) + _MAX_UNCONFIRMED


async def test_a_job_that_a_worker_holds_during_an_outage_is_reported_as_such(stage: Stage) -> None:
    arguments = ("send", "you@example.com", "--wait", "1")
    ran = await otp_stream(stage.folder, *arguments, **names(stage))
    assert "published" in ran.out
    worker = stage.worker(SMTP_PORT="1")
    await worker.start(ready=False)
    await worker.wait_log("jobs wait")
    ran = await otp_stream(stage.folder, *arguments, **names(stage))
    assert ran.code == 1
    assert "it is in flight in a worker, or waits for a retry" in ran.out


async def test_a_wrong_password_is_named(stage: Stage) -> None:
    url = stage.url.replace("guest:guest", "guest:Zq7x")
    for words in (("send", "you@example.com"), ("dead", "list"), ("topology", "show")):
        ran = await otp_stream(stage.folder, *words, **(names(stage) | {"RABBITMQ_URL": url}))
        assert ran.code, words
        assert "refuses the login" in ran.out, ran.out
        assert "Zq7x" not in ran.out
