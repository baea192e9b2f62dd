"""The operations page: its stream of updates, wait queues, workers and templates."""

import http.client
import json
import re
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from conftest import Stage
from rabbitmq import until
from redis_server import RedisServer
from worker import CODE, Worker, job

from otp_stream.web.dashboard import PARTS
from otp_stream.web.stream import MAX_VIEWERS

ADDRESS = "ada.lovelace@example.com"


class Viewer:
    """A browser that reads the stream."""

    def __init__(self, worker: Worker) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", worker.port, timeout=10)
        self._connection.request("GET", "/live", headers={"Accept": "text/event-stream"})
        self.answer = self._connection.getresponse()

    def event(self) -> dict[str, Any]:
        """Return the next event."""
        while not (line := self.answer.readline()).startswith(b"data: "):
            assert line, "the stream has ended"
        return json.loads(line.removeprefix(b"data: "))

    def close(self) -> None:
        self.answer.close()
        self._connection.close()


def pid(worker: Worker) -> int:
    assert worker.process is not None
    return worker.process.pid


@contextmanager
def viewer(worker: Worker) -> Iterator[Viewer]:
    with closing(Viewer(worker)) as it:
        yield it


async def test_the_stream_has_all_parts_at_first_then_changes_and_never_a_secret(stage: Stage) -> None:
    worker = await stage.run()
    with viewer(worker) as view:
        assert view.answer.headers["content-type"] == "text/event-stream"
        assert view.answer.headers["cache-control"] == "no-store"
        events = [view.event()]
        assert events[0]["title"] == "Codes are going out"
        assert set(events[0]["parts"]) == set(PARTS)
        page = (await worker.get("/"))[1]
        for name, html in events[0]["parts"].items():  # otherwise the first event would replace whole elements
            element = re.search(rf'id="{name}"[^>]*>', page)
            assert element, name
            assert page.startswith(html[:20], element.end()), name
        await stage.rabbit.publish(job(ADDRESS, jobId="j-1"))
        await stage.relay.wait_accepted(1)
        while "j-1" not in events[-1]["parts"].get("recent", ""):
            events.append(view.event())
            assert len(events) < 20
            assert set(events[-1]["parts"]) < set(PARTS)
        assert "a***@example.com" in events[-1]["parts"]["recent"]
        assert CODE not in json.dumps(events)
        assert ADDRESS not in json.dumps(events)


async def test_a_stopping_worker_completes_the_stream(stage: Stage) -> None:
    worker = await stage.run()
    with socket.create_connection(("127.0.0.1", worker.port), timeout=10) as connection:
        connection.sendall(b"GET /live HTTP/1.1\r\nHost: h\r\n\r\n")
        events = connection.recv(65536)
        worker.signal()
        while some := connection.recv(65536):
            events += some
    assert events.startswith(b"HTTP/1.1 200 ")
    assert events.endswith(b"0\r\n\r\n")  # the last chunk: an aborted response has none
    assert await worker.stopped() in {0, -signal.SIGTERM}


async def test_every_page_is_served_without_a_consumer(stage: Stage) -> None:
    worker = await stage.run(WORKER="false")
    with viewer(worker) as view:
        events = view.event()
    assert events["title"] == "Serving HTTP only"
    assert "consuming nothing" in events["parts"]["status"]
    for path in ("/", "/dead", "/templates"):
        assert (await worker.get(path))[0] == 200


async def test_the_number_of_viewers_is_limited_and_a_disconnect_makes_room(stage: Stage) -> None:
    worker = await stage.run()
    with ExitStack() as viewers:
        first, *_ = [viewers.enter_context(viewer(worker)) for _ in range(MAX_VIEWERS)]
        first.event()
        with viewer(worker) as late:
            assert late.answer.status == 503
            assert late.answer.headers["retry-after"] == "5"
        first.close()

        async def free() -> bool:
            with viewer(worker) as again:
                return again.answer.status == 200

        await until(free, "room for a viewer")


async def test_jobs_in_a_wait_queue_are_shown_with_its_name(stage: Stage) -> None:
    stage.relay.always("rcpt", "451 4.3.0 later")
    worker = await stage.run(BASE_DELAY_MS="20000")
    await stage.rabbit.publish(job(jobId="j-late"))

    async def waits() -> bool:
        rows = re.findall(
            r"retry after (\d+) s <code>(\S+)</code>.*?\"Waiting\">(\d+) <span", (await worker.get("/"))[1]
        )
        return [(row[1].startswith(f"{stage.rabbit.prefix}.retry."), row[2]) for row in rows] == [(True, "1")]

    async def is_recent() -> bool:
        page = (await worker.get("/"))[1]
        return 'class="ending warn">retried<' in page and "451 4.3.0 later (to RCPT)" in page

    await until(waits, "the wait queue")
    await until(is_recent, "the retry among the recent jobs")


async def test_workers_that_share_a_redis_list_each_other(stage: Stage, redis: RedisServer) -> None:
    first, second = [await stage.run(REDIS_URL=redis.url) for _ in range(2)]
    await stage.rabbit.publish(*(job() for _ in range(4)))
    await stage.relay.wait_accepted(4)

    async def seen() -> bool:
        page = (await first.get("/"))[1]
        rows = re.findall(r"<code>[^<]+:(\d+)</code>(.*?)</tr>", page)
        sent = [int(number) for _, row in rows for number in re.findall(r"last minute\">(\d+)<", row)]
        here = [int(pid) for pid, row in rows if "this worker" in row]
        return ({int(pid) for pid, _ in rows}, here, sum(sent)) == ({pid(first), pid(second)}, [pid(first)], 4)

    await until(seen, "both workers")
    key = redis.command("KEYS", "*:workers").split("\r\n")[-1]
    hostile = {"name": "<script>alert(1)</script>", "version": [], "phase": {}, "circuit_breaker": 0, "held": 1}
    for number, about in enumerate(
        ("{", "1", "[]", "{}", '{"held":1e999}', "[" * 50_000, json.dumps(hostile | {"sent_last_minute": "many"}))
    ):
        redis.command("SET", f"{key.removesuffix('workers')}worker:odd{number}", about)
        redis.command("ZADD", key, str(time.time_ns() // 1_000_000), f"odd{number}")
    redis.command("HSET", f"{key.removesuffix('workers')}worker:hash", "a", "b")
    redis.command("ZADD", key, str(time.time_ns() // 1_000_000), "hash")
    redis.command(
        "SET",
        f"{key.removesuffix('workers')}worker:odd0",
        json.dumps(hostile | {"sent_last_minute": 2}, separators=(",", ":")),
    )

    async def shown() -> bool:
        return "&lt;script&gt;alert(1)" in (await first.get("/"))[1]

    await until(shown, "the hostile worker")
    await until(seen, "both workers, and no other data in Redis as a worker")
    redis.freeze()
    try:  # a Redis that does not answer does not keep the page from appearing
        assert "Workers" in (await first.get("/"))[1]
    finally:
        redis.thaw()
    await second.stop()

    async def alone() -> bool:
        return f":{pid(second)}<" not in (await first.get("/"))[1]

    await until(alone, "one worker")


async def test_templates_are_previewed_as_they_are_sent_and_run_no_script(stage: Stage, tmp_path: Path) -> None:
    own = tmp_path / "templates"
    for file, text in {"subject.txt": "Hi", "body.txt": "{{ otp }}", "body.html": "<h1>{{ otp[9:][0] }}</h1>"}.items():
        (own / "broken").mkdir(parents=True, exist_ok=True)
        (own / "broken" / file).write_text(text)
    worker = await stage.run(TEMPLATES_DIR=str(own))
    page = (await worker.get("/templates"))[1]
    assert "Your one-time code" in page
    assert '<option value="welcome">welcome</option>' in page
    assert '<option value="de">de</option>' in page
    assert 'src="preview?name=otp&amp;language="' in page
    connection = http.client.HTTPConnection("127.0.0.1", worker.port, timeout=10)
    connection.request("GET", "/preview?name=otp&language=de")
    answer = connection.getresponse()
    assert "sandbox" in answer.headers["content-security-policy"]
    assert "123456" in answer.read().decode()
    connection.close()
    status, page = await worker.get("/templates?name=broken&language=")
    assert status == 200
    assert "The e-mail cannot be composed." in page
    assert "template broken/body.html, line 1" in page
    for query in ("name=broken&language=", "name=nothing", "", "name=otp&language=xx"):
        assert (await worker.get(f"/preview?{query}"))[0] == 404
    hostile = (await worker.get("/templates?name=%3Cscript%3Ealert(1)%3C/script%3E"))[1]
    assert "<script>alert" not in hostile
