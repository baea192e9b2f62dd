"""The HTTP responses of a running worker to monitors and browsers."""

import http.client
import json
import urllib.error
import urllib.request
from pathlib import Path

import yaml
from conftest import Stage
from rabbitmq import until
from worker import Worker, job

ROOT = Path(__file__).parents[2]


async def test_health_has_the_fields_that_monitors_read(stage: Stage) -> None:
    worker = await stage.run()
    await stage.rabbit.publish(job(), b"nonsense")
    await stage.rabbit.dead()

    async def counted() -> bool:
        stats = (await worker.health())["stats"]
        return (stats["processedJobs"], stats["failedJobs"]) == (1, 1)

    await until(counted, "a processed and a failed job")
    status, body = await worker.get("/health")
    health = json.loads(body)
    assert status == 200
    assert health["status"] == "healthy"
    assert {"processedJobs", "failedJobs", "retriedJobs", "startTime", "lastProcessedAt"} == health["stats"].keys()
    assert (health["stats"]["failedJobs"], health["stats"]["retriedJobs"]) == (1, 0)
    assert health["stats"]["startTime"] <= health["stats"]["lastProcessedAt"]
    assert health["uptime"] > 0
    assert health["memoryUsage"]["rss"] > 10_000_000
    assert health["lastError"].startswith("malformed: body: ")
    tables = {"connected": None, "workers": None, "answers": {"admitted": 1}, "possibleDuplicates": 0}
    assert health["tables"] == tables


async def test_metrics_are_in_the_format_of_prometheus(stage: Stage) -> None:
    stage.relay.then("rcpt", "451 4.3.0 later")
    worker = await stage.run(BASE_DELAY_MS="100")
    await stage.rabbit.publish(job())
    await stage.relay.wait_accepted(1)
    await until(lambda: _is(worker, 'otp_jobs_total{outcome="sent"}', 1), "sent")
    relay = f'relay="127.0.0.1:{stage.relay.port}"'
    for line, value in {
        'otp_retries_total{attempt="1"}': 1,
        'otp_attempts_total{outcome="deferred"}': 1,
        'otp_attempts_total{outcome="accepted"}': 1,
        'otp_received_total{lane="jobs"}': 1,
        'otp_received_total{lane="due"}': 1,
        "otp_time_to_accept_seconds_count": 1,
        f'otp_circuit_breaker_state{{{relay},state="closed"}}': 1,
        f'otp_relay_replies_total{{code="250",{relay}}}': 1,
        f'otp_relay_replies_total{{code="451",{relay}}}': 1,
        f"otp_relay_connections_limit{{{relay}}}": 20,
        f"otp_relay_sends_in_flight{{{relay}}}": 0,
        'otp_prefetch_count{lane="high"}': 200,
        "otp_broker_connected": 1,
        'otp_phase{state="consuming"}': 1,
    }.items():
        assert await worker.metric(line) == value, line


async def test_the_ledger_balances_for_every_outcome(stage: Stage) -> None:
    worker = await stage.run(BASE_DELAY_MS="100")
    stage.relay.then("rcpt", "451 4.3.0 later", to="late@example.com")
    stage.relay.then("rcpt", "550 5.1.1 unknown", to="unknown@example.com")
    addresses = ("a@example.com", "late@example.com", "unknown@example.com")
    await stage.rabbit.publish(*(job(address) for address in addresses), b"nonsense")
    await stage.rabbit.dead(2)
    await stage.relay.wait_accepted(2)
    for lane, count in {"due": 1, "jobs": 1}.items():
        ack = f'otp_ledger_settled_total{{how="ack",lane="{lane}"}}'
        await until(lambda ack=ack, count=count: _is(worker, ack, count), f"the acks of {lane}")
    await until(lambda: _is(worker, 'otp_ledger_unacked{lane="jobs"}', 0), "the acks of the others")
    for how, count in {"ack": 1, "retry": 1, "dead": 2, "returned": 0, "taken_back": 0}.items():
        assert await worker.metric(f'otp_ledger_settled_total{{how="{how}",lane="jobs"}}') == count, how
    assert await worker.metric('otp_ledger_received_total{lane="jobs"}') == 4
    assert await worker.metric('otp_ledger_unacked{lane="jobs"}') == 0


async def _is(worker: Worker, line: str, value: float) -> bool:
    return await worker.metric(line) == value


async def test_a_websocket_gets_404(stage: Stage) -> None:
    worker = await stage.run()
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    for path in ("/", "/live", "/nowhere"):
        connection = http.client.HTTPConnection("127.0.0.1", worker.port, timeout=10)
        connection.request("GET", path, headers=upgrade | {"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="})
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (404, b"not found\n"), path
        connection.close()


async def test_every_page_is_found_below_a_path_prefix_of_a_proxy(stage: Stage) -> None:
    worker = stage.worker()
    worker.options = ("--root-path", "/otp")
    await worker.start()
    for path in ("/", "/dead", "/page.css"):
        assert (await worker.get(path))[0] == 200, path
    assert await worker.get("/nowhere") == (404, "not found\n")


async def test_the_asyncapi_document_has_the_queues_of_this_deployment_and_no_password(stage: Stage) -> None:
    worker = await stage.run()
    document = json.loads((await worker.get("/asyncapi.json"))[1])
    assert document["asyncapi"] == "3.0.0"
    assert document["channels"]["sendOtp"]["address"] == stage.rabbit.queue
    assert document == yaml.safe_load((await worker.get("/asyncapi.yaml"))[1])
    assert "guest:guest" not in json.dumps(document)


async def test_pages_load_nothing_from_other_hosts_and_other_methods_get_405(stage: Stage) -> None:
    worker = await stage.run()

    def request(method: str, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
        prepared = urllib.request.Request(f"http://127.0.0.1:{worker.port}{path}", method=method, headers=headers)
        try:
            with urllib.request.urlopen(prepared, timeout=30) as answer:
                return answer.status, dict(answer.headers.items()), answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, dict(error.headers.items()), error.read()

    for path in ("/", "/asyncapi", "/health", "/page.js"):
        status, headers, body = request("HEAD", path)
        assert (status, body) == (200, b"")
        assert headers["content-security-policy"].startswith("default-src 'none'")
        assert headers["x-content-type-options"] == "nosniff"
        assert request("POST", path)[0] == 405
    status, headers, body = request("PUT", "/dead")
    assert (status, headers["allow"], body) == (405, "GET, HEAD", b"method not allowed: use GET or HEAD\n")
    assert request("GET", "/replay")[::2] == (405, b"method not allowed: use POST\n")
    assert request("HEAD", "/live")[0] == 405
    for method, path in (
        ("GET", "/nowhere"),
        ("DELETE", "/nowhere"),
        ("GET", "/dead/"),
        ("GET", "//"),
        ("OPTIONS", "/x"),
    ):
        status, headers, body = request(method, path)
        assert (status, body) == (404, b"not found\n"), (method, path)
        assert headers["content-type"] == "text/plain"
        assert headers["x-content-type-options"] == "nosniff"
    assert request("HEAD", "/nowhere")[::2] == (404, b"")
    assert request("GET", "/dead", Host="attacker.example")[0] == 421
    for path in ("/", "/asyncapi"):
        page = request("GET", path)[2].decode()
        assert "https://" not in page
        assert len(page) < 100_000
