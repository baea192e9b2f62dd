"""`otp-stream load`, against a worker and against the demo."""

import json
import re
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from cli import names, otp_stream
from conftest import Stage
from worker import Worker

LOCAL = {"SMTP_HOST": "127.0.0.1"}
COUNT = 1_000


async def test_a_thousand_jobs_are_sent_measured_and_drawn(stage: Stage) -> None:
    await stage.run()
    chart = stage.folder / "load.svg"
    options = ("--count", str(COUNT), "--json", "--svg", str(chart))
    ran = await otp_stream(stage.folder, "load", *options, **names(stage), **LOCAL)
    assert ran.code == 0, ran.out
    result = json.loads(ran.out)
    assert result["outcomes"] == {"sent": COUNT}
    assert (result["published"]["count"], result["accepted"]["count"], result["noEnd"]) == (COUNT, COUNT, 0)
    for name in ("published", "accepted"):
        assert result[name]["perSecond"] == pytest.approx(COUNT / result[name]["seconds"], rel=0.01)
    times = list(result["timeToAcceptMs"].values())
    assert times == sorted(times)
    assert times[0] > 0
    assert sum(it["count"] for it in result["histogram"]) == COUNT
    assert {it.recipient for it in stage.relay.accepted} == {f"load{number}@example.invalid" for number in range(COUNT)}
    assert "1 000 jobs: " in "".join(ET.parse(chart).getroot().itertext())  # noqa: S314 - we wrote it


async def test_what_was_not_sent_is_reported_with_the_relays_reply(stage: Stage) -> None:
    stage.relay.always("rcpt", "550 5.1.1 no such user", to="u3@example.com")
    stage.relay.then("rcpt", "451 4.3.0 later", to="u4@example.com")
    await stage.run(BASE_DELAY_MS="100")
    options = ("--rate", "100", "--seconds", "0.2", "--recipient", "u{n}@example.com")
    ran = await otp_stream(stage.folder, "load", *options, **names(stage), **LOCAL)
    assert ran.code == 1
    assert re.search(r"published +20 ", ran.out)
    assert "sent 19" in ran.out
    assert "rejected 1: 550 5.1.1 no such user (to RCPT)" in ran.out
    assert "Time to accept, ms: p50 " in ran.out
    assert "█" in ran.out
    assert "u3" not in ran.out


async def test_nothing_is_published_without_confirmation_or_events(stage: Stage) -> None:
    ran = await otp_stream(stage.folder, "load", **names(stage), SMTP_HOST="mail.example.net")
    assert ran.code == 1
    assert "This may send real mail: it uses the relay mail.example.net" in ran.out
    ran = await otp_stream(stage.folder, "load", "--yes", **names(stage), SMTP_HOST="mail.example.net")
    assert ran.code == 1
    assert "no worker has declared the exchange" in ran.out
    assert await stage.rabbit.depth() is None


async def test_the_demo_can_be_loaded_without_a_question(demo: Worker, tmp_path: Path) -> None:
    elsewhere = re.search(r"RABBITMQ_URL=(memory://\S+)", demo.log)
    env = {"RABBITMQ_URL": elsewhere[1]} if elsewhere else {}
    ran = await otp_stream(tmp_path, "load", "--count", "100", **env)
    assert ran.code == 0, ran.out
    assert "sent 100" in ran.out
