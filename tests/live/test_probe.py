"""Probe now: after a repair of the relay, an operator need not wait for the next probe."""

import json
import re
from datetime import datetime, timedelta
from typing import Any

import pytest
from cli import otp_stream
from conftest import Stage
from rabbitmq import until
from redis_server import RedisServer
from visitor import TOKEN, Visitor
from worker import Worker, job

from otp_stream.cli import relay

LOGIN = {"SMTP_AUTH": "login", "SMTP_USER": "mailer", "SMTP_PASS": "secret"}
PAUSE_MS = 10_000
"""From the second refusal on, a worker waits at least as long for its next probe."""

pytestmark = pytest.mark.waits


async def refused(worker: Worker) -> None:
    """Wait until the next probe is a while away."""

    async def waits() -> bool:
        return any(line["probe_in_ms"] >= PAUSE_MS for line in of(worker, "relay takes no mail"))

    await until(waits, "a long pause", timeout=40)


def of(worker: Worker, event: str) -> list[dict[str, Any]]:
    """Return the log lines of an event."""
    return [line for line in worker.lines if line["event"].startswith(event)]


def was_early(worker: Worker) -> bool:
    """Whether the last probe went out before its pause was over."""
    closed, probed = of(worker, "relay takes no mail")[-1], of(worker, "relay is probed")[-1]
    pause = datetime.fromisoformat(probed["timestamp"]) - datetime.fromisoformat(closed["timestamp"])
    return pause < timedelta(milliseconds=closed["probe_in_ms"] - 100)


async def flows(worker: Worker) -> bool:
    return "circuit breaker closed" in (await worker.get("/readyz"))[1]


async def probe(stage: Stage, *words: str, token: str = TOKEN, json_: bool = True) -> tuple[int, Any]:
    ran = await otp_stream(stage.folder, "relay", "probe", *words, *(["--json"] if json_ else []), HTTP_TOKEN=token)
    return ran.code, json.loads(ran.out) if json_ else ran.out


async def test_a_repaired_login_is_used_at_once_by_every_worker_that_shares_the_redis(
    stage: Stage, redis: RedisServer
) -> None:
    stage.relay.login = ("mailer", "other")
    # with a small prefetch, neither worker can take all jobs
    changes = {"HTTP_TOKEN": TOKEN, "REDIS_URL": redis.url, "PREFETCH_COUNT": "10", **LOGIN}
    first, second = [await stage.run(**changes) for _ in range(2)]
    await stage.rabbit.publish(*(job(f"u{number}@example.com") for number in range(20)))
    for worker in (first, second):
        await refused(worker)
    url = f"http://127.0.0.1:{first.port}"
    code, _ = await probe(stage, url, token="w" * 20)
    assert code == 2
    code, [answer] = await probe(stage, url, "--relay", "other.example:25")
    assert (code, answer["status"]) == (2, 404)
    stage.relay.login = ("mailer", "secret")
    answers: list[tuple[int, Any]] = []

    async def probed() -> bool:
        answers.append(await probe(stage, url))
        return answers[-1][0] == 0

    await until(probed, "a probe that is accepted")
    assert {(code, answer["relays"][0]["result"]) for code, [answer] in answers[:-1]} <= {(1, "too_soon")}
    [relay] = answers[-1][1][0]["relays"]
    assert (relay["relay"], relay["result"]) == (f"127.0.0.1:{stage.relay.port}", "accepted")
    await stage.relay.wait_accepted(20)
    for worker in (first, second):
        await until(lambda worker=worker: flows(worker), "mail that flows")
        assert was_early(worker)
    code, output = await probe(stage, url, f"http://127.0.0.1:{second.port}/", json_=False)
    assert code == 0
    assert output.count("accepts mail; there is nothing to probe") == 2
    await second.kill()
    code, output = await probe(stage, f"http://127.0.0.1:{second.port}", json_=False)
    assert code == 1
    assert "no answer" in output


async def test_the_page_offers_a_probe_to_who_is_logged_in_while_no_mail_flows(stage: Stage) -> None:
    stage.relay.login = ("mailer", "other")
    worker = await stage.run(HTTP_TOKEN=TOKEN, **LOGIN)
    visitor = Visitor(worker)
    assert "Probe now" not in visitor.get("/")
    await stage.rabbit.publish(job())
    await worker.wait_log("relay takes no mail")
    assert "no-session" in (page := visitor.get("/"))
    assert 'name="key"' not in page
    relay = f"127.0.0.1:{stage.relay.port}"
    assert visitor.ask("/probe", relay=relay)[0] == 403
    assert visitor.ask("/probe")[0] == 405
    assert visitor.ask("/login", token=TOKEN, to=".")[0] == 303
    page = visitor.get("/")
    assert "Probe now" in page
    key = re.findall(r'name="key" value="([0-9a-f]+)" form="probe1"', page)[0]
    status, page = visitor.ask("/probe", relay=relay, key="forged")
    assert status == 403
    assert "this form is from another site" in page
    status, page = visitor.ask("/probe", relay=relay, key=key)
    assert (status, "was probed a moment ago" in page) == (429, True)
    await refused(worker)
    stage.relay.login = ("mailer", "secret")

    async def probed() -> bool:
        return visitor.ask("/probe", relay=relay, key=key)[0] == 303

    await until(probed, "a probe that is let out")
    await stage.relay.wait_accepted(1)
    await until(lambda: flows(worker), "mail that flows")
    assert was_early(worker)
    assert "Probe now" not in visitor.get("/")


async def test_a_process_without_a_worker_has_no_relay_to_probe(stage: Stage) -> None:
    worker = await stage.run(WORKER="false", HTTP_TOKEN=TOKEN)
    code, [answer] = await probe(stage, f"http://127.0.0.1:{worker.port}")
    assert (code, answer["status"]) == (2, 404)


@pytest.mark.parametrize("url", ["http://192.0.2.1:1", "http://localhost.example:1"])
def test_a_token_that_goes_to_another_host_without_tls_is_warned_of(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    relay._warn_if_readable("http://127.0.0.1:1")
    relay._warn_if_readable("https://worker.example")
    assert not capsys.readouterr().err
    relay._warn_if_readable(url)
    assert "HTTP_TOKEN is sent without TLS" in capsys.readouterr().err
