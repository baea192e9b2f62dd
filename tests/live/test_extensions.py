"""Middlewares, a dependency and a codec of an operator, on a real RabbitMQ: jobs are settled as without them."""

import json

import pytest
from conftest import Stage
from worker import CODE, job

APP = """
from faststream import BaseMiddleware
from otp_stream.app import app

class Shouting(BaseMiddleware):
    async def consume_scope(self, call_next, msg):
        print("middleware before", type(await msg.decode()).__name__, flush=True)
        try:
            return await call_next(msg)
        finally:
            print("middleware after", flush=True)

    async def publish_scope(self, call_next, cmd):
        print("middleware publishes to", cmd.destination, flush=True)
        return await call_next(cmd)

app.broker.add_middleware(Shouting)
"""


@pytest.mark.parametrize("extended", [False, True], ids=["direct", "through middlewares"])
async def test_jobs_end_alike_with_a_middleware_and_without(stage: Stage, extended: bool) -> None:  # noqa: FBT001
    stage.relay.then("rcpt", "451 4.3.0 later", to="later@example.com")
    stage.relay.then("rcpt", "550 5.1.1 no such user", to="nobody@example.com")
    await stage.rabbit.declare()
    worker = stage.worker()
    if extended:
        worker.folder.mkdir(parents=True)
        (worker.folder / "extended.py").write_text(APP)
        worker.app = "extended:app"
    await worker.start()
    await stage.rabbit.publish(
        job("user@example.com", jobId="a"),
        job("later@example.com", jobId="b"),
        job("nobody@example.com", jobId="c"),
        b"no job",
    )
    dead_letters = await stage.rabbit.dead(2)
    assert sorted(str(it.headers["x-otp-reason"]) for it in dead_letters) == ["malformed", "rejected"]
    assert {json.loads(it.body)["jobId"] for it in dead_letters if it.body != b"no job"} == {"c"}
    await stage.relay.wait_accepted(2)
    assert {mail.recipient for mail in stage.relay.accepted} == {"user@example.com", "later@example.com"}
    await worker.stop()
    passed = worker.log.count("middleware before OtpJob"), worker.log.count("middleware after")
    assert passed == ((4, 4) if extended else (0, 0))
    assert worker.log.count("middleware publishes to") >= (1 if extended else 0)
    assert CODE not in worker.log_without_fractions


async def test_a_middleware_that_fails_costs_no_job_and_shows_no_code(stage: Stage) -> None:
    await stage.rabbit.declare()
    worker = stage.worker()
    worker.folder.mkdir(parents=True)
    failing = APP.replace("return await call_next(msg)", "raise ValueError(msg.body)")
    (worker.folder / "extended.py").write_text(failing)
    worker.app = "extended:app"
    await worker.start()
    await stage.rabbit.publish(job())
    (dead_letter,) = await stage.rabbit.dead()
    assert dead_letter.headers["x-otp-reason"] == "crashed"
    assert dead_letter.body == job()
    await worker.stop()
    assert CODE not in worker.log_without_fractions


DEPENDENCY_AND_CODEC = """
import json
from faststream import Depends
from otp_stream.app import app

def dependency():
    print("dependency", flush=True)

class Colons:
    async def decode(self, msg):
        if msg.body.startswith(b"{"):
            return json.loads(msg.body)
        email, _, otp = msg.body.decode().partition(":")
        return {"email": email, "otp": otp}

    async def encode(self, msg, serializer):
        return (msg, None) if isinstance(msg, bytes) else (json.dumps(msg).encode(), "application/json")

for subscriber in app.broker.subscribers:
    subscriber.add_call(parser_=None, decoder_=None, dependencies_=(), codec_=Colons())
app.broker.config.broker_config.broker_dependencies = (Depends(dependency),)
"""


async def test_a_dependency_runs_for_each_message_and_a_codec_reads_it(stage: Stage) -> None:
    stage.relay.then("rcpt", "451 4.3.0 later", to="later@example.com")
    await stage.rabbit.declare()
    worker = stage.worker()
    worker.folder.mkdir(parents=True)
    (worker.folder / "extended.py").write_text(DEPENDENCY_AND_CODEC)
    worker.app = "extended:app"
    await worker.start()
    await stage.rabbit.publish(b"user@example.com:" + CODE.encode(), b"later@example.com:" + CODE.encode(), b"no job")
    (dead_letter,) = await stage.rabbit.dead()
    assert (dead_letter.headers["x-otp-reason"], dead_letter.body) == ("malformed", b"no job")
    await stage.relay.wait_accepted(2)
    assert {mail.recipient for mail in stage.relay.accepted} == {"user@example.com", "later@example.com"}
    await worker.stop()
    assert worker.log.count("dependency") == 4  # each message, and one of them again after its retry
    assert CODE not in worker.log_without_fractions
