"""`otp-stream livecheck`: once, with a mailbox, and beside everything else for as long as that runs."""

import asyncio
import json
import os
import re
import signal
import urllib.request
from pathlib import Path

import pytest
from amqp_proxy import amqp_proxy
from cli import names, otp_stream
from conftest import Stage
from processes import start
from rabbitmq import free_port, until
from smtp_relay import Act

CHECK = ("livecheck", "Live.Check@example.com")
_CODE = re.compile(r"\b\d{8}\b")


async def test_codes_are_followed_into_a_mailbox_and_compared(stage: Stage) -> None:
    port = free_port()
    await stage.run(SMTP_PORT=str(port))
    options = ("--count", "3", "--every", "0.2", "--listen", f"127.0.0.1:{port}", "--json", "--max-p95-ms", "9000")
    ran = await otp_stream(stage.folder, *CHECK, *options, **names(stage))
    assert ran.code == 0, ran.out
    result = json.loads(ran.out)
    assert (result["count"], result["lost"], result["outcomes"]) == (3, 0, {"sent": 3})
    assert result["recipient"] == "L***@example.com"
    for name in ("acceptedMs", "arrivedMs"):
        assert 0 < result[name]["p50"] <= result[name]["p95"] <= result[name]["max"] < 9000
    assert not _CODE.search(ran.out)
    assert "Check" not in ran.out


async def test_a_mail_with_another_code_is_not_taken_for_ours(stage: Stage) -> None:
    folder = stage.folder / "templates" / "otp"
    folder.mkdir(parents=True)
    (folder / "body.txt").write_text("Hello {{ userName }}, your code is {{ otp[::-1] }}x.")
    (folder / "body.html").write_text("<p>Hello {{ userName }}, your code is {{ otp[::-1] }}x.</p>")
    port = free_port()
    await stage.run(SMTP_PORT=str(port), TEMPLATES_DIR=str(folder.parent))
    ran = await otp_stream(stage.folder, *CHECK, "--listen", f"127.0.0.1:{port}", **names(stage))
    assert ran.code == 1
    assert "wrong code: the mail contains another code" in ran.out
    assert not _CODE.search(ran.out)


@pytest.mark.waits
async def test_what_is_slow_lost_or_never_arrives_ends_with_1(stage: Stage) -> None:
    await stage.run()
    stage.relay.then("body", Act(delay_s=0.2))
    ran = await otp_stream(stage.folder, *CHECK, "--max-p95-ms", "150", **names(stage))
    assert ran.code == 1
    assert "1 codes to L***@example.com: sent 1" in ran.out
    # in less time, a busy machine may not even accept it
    options = ("--timeout", "4", "--listen", f"127.0.0.1:{free_port()}")
    ran = await otp_stream(stage.folder, *CHECK, *options, **names(stage))
    assert ran.code == 1
    assert "(not arrived: accepted, but no mail within 4 s)" in ran.out
    job = stage.relay.accepted[0].content
    assert _CODE.search(job.decode())
    assert b"1 minute" in job
    for worker in stage.workers:
        await worker.stop()
    ran = await otp_stream(stage.folder, *CHECK, "--timeout", "4", **names(stage))
    assert ran.code == 1
    assert "stalled: no code has arrived for " in ran.out
    assert "lost 1" in ran.out


@pytest.mark.waits
async def test_beside_everything_else_it_outlives_a_broker_that_goes_away(stage: Stage, tmp_path: Path) -> None:
    await stage.run()
    async with amqp_proxy(stage.url) as (proxy, url):
        port = free_port()
        options = ("--count", "0", "--every", "0.2", "--timeout", "1", "--metrics-port", str(port))
        output, env = tmp_path / "output", os.environ | names(stage) | {"RABBITMQ_URL": url}
        process = await start("otp-stream", *CHECK, *options, folder=tmp_path, env=env, output=output)

        async def counts(outcome: str, more_than: float) -> bool:
            return await _metric(port, f'otp_livecheck_probes_total{{outcome="{outcome}"}}') > more_than

        await until(lambda: counts("sent", 1), "codes that arrived")
        assert await _metric(port, "otp_livecheck_accept_seconds_count") >= 2
        before = await _metric(port, "otp_livecheck_last_success_timestamp_seconds")
        for fault in ("refuse", "swallow"):
            # on a busy machine, some have failed before
            failed = await _metric(port, 'otp_livecheck_probes_total{outcome="failed"}') + 6
            setattr(proxy, fault, True)
            if fault == "refuse":
                proxy.cut()
            await until(lambda failed=failed: counts("failed", failed), "codes that could not be published")
            proxy.release()
            sent = await _metric(port, 'otp_livecheck_probes_total{outcome="sent"}')
            await until(lambda sent=sent: counts("sent", sent + 1), "codes that arrive again")
        assert await _metric(port, "otp_livecheck_last_success_timestamp_seconds") > before
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 30) == 1
    text = output.read_text()
    assert "stalled: no code has arrived for " in text
    assert "codes arrive again, after " in text
    assert re.search(r"\d+ codes to L\*\*\*@example.com: .*failed \d+", text)
    assert not _CODE.search(text)


async def _metric(port: int, name: str) -> float:
    def get() -> str:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
                return answer.read().decode()
        except OSError:
            return ""

    text = await until(lambda: asyncio.to_thread(get), "an answer with the metrics")
    return next((float(row.rpartition(" ")[2]) for row in text.splitlines() if row.startswith(name + " ")), 0.0)
