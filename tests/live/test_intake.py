"""Jobs over HTTP, on a real RabbitMQ: 202 only for a job that is in it, and each code once."""

import asyncio
import base64
import json
import re
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from amqp_proxy import ACK, AmqpProxy, amqp_proxy
from api import TOKEN, Answer, call, job, post
from conftest import Stage
from hook_payloads import (
    KRATOS,
    LOGTO,
    SUPABASE,
    SUPABASE_SECRET,
    ZITADEL,
    ZITADEL_KEY,
    encoded,
    supabase_headers,
    zitadel_headers,
)
from rabbitmq import until
from redis_server import RedisServer
from worker import CODE, Worker

from otp_stream.core.http_token import digest_of
from otp_stream.core.metadata import MAX_VALUES

ROOT = Path(__file__).parents[2]
SHOP = "7a0e95d3c1b8f264"
KEY = "c3a5f0917be4d826"


async def run(stage: Stage, **more: str) -> Worker:
    return await stage.run(**{"INTAKE_TOKEN": TOKEN, "SECRET_KEY": KEY} | more)


async def status(worker: Worker, job_id: str, state: str, **headers: Any) -> dict[str, Any]:
    """Wait until a job has this state."""
    answers: list[Answer] = []

    async def has_state() -> bool:
        answers.append(await call(worker, "GET", f"/v1/jobs/{job_id}", **headers))
        return answers[-1].status == 200 and answers[-1].content["state"] == state

    await until(has_state, state)
    return answers[-1].content


async def test_a_job_is_confirmed_sent_and_its_outcome_is_known(stage: Stage) -> None:
    worker = await run(stage)
    answer = await post(worker, job(jobId="signup 1/2", metadata={"userName": "Ada"}))
    assert (answer.status, answer.content) == (202, {"jobId": "signup 1/2", "state": "queued"})
    assert answer.headers["location"] == "/v1/jobs/signup%201%2F2"
    await stage.relay.wait_accepted(1)
    assert CODE.encode() in stage.relay.accepted[0].content
    found = await status(worker, "signup%201%2F2", "sent")
    assert (found["jobId"], found["outcome"], found["attempt"]) == ("signup 1/2", "sent", 1)
    stage.relay.always("rcpt", "550 5.1.1 mailbox unknown")
    refused = await post(worker, job(email="other@example.com"))
    found = await status(worker, refused.job_id, "failed")
    assert (found["outcome"], found["replyClass"]) == ("rejected", "address")
    assert (await call(worker, "GET", "/v1/jobs/never-sent")).status == 404
    assert CODE not in worker.log_without_fractions
    assert TOKEN not in worker.log


async def test_without_a_token_setting_there_is_no_intake_and_a_session_is_no_token(stage: Stage) -> None:
    worker = await stage.run(HTTP_TOKEN=TOKEN)
    assert (await post(worker, job())).status == 404
    await worker.stop()
    worker = await run(stage, HTTP_TOKEN=SHOP)
    for headers in (
        {"token": None},
        {"token": SHOP},
        {"token": None, "Cookie": "otp_session=x"},
        {"token": None, "Authorization": "Basic ÿ"},
    ):
        answer = await post(worker, job(), **headers)
        assert (answer.status, answer.headers["www-authenticate"]) == (401, 'Bearer realm="otp-stream"')
        assert answer.headers.get_content_type() == "application/problem+json"
    await worker.wait_log("token.refused")
    assert (await call(worker, "GET", f"/v1/jobs/ada@example.com-{CODE}", token=SHOP)).status == 401
    await worker.wait_log('"target":"/v1/jobs/{jobId}"')
    assert CODE not in worker.log_without_fractions
    assert not stage.relay.accepted


REFUSED: list[tuple[Any, dict[str, str], int, str]] = [
    (b"{", {}, 400, "body: "),
    (job(otp="12 345"), {}, 422, "otp: "),
    ({"otp": CODE}, {}, 422, "email: is required"),
    (job(), {"Content_Type": "application/x-www-form-urlencoded"}, 415, "content-type: must be application/json"),
    (job(), {"Content_Encoding": "gzip"}, 415, "content-encoding: "),
    (job(), {"Idempotency_Key": "k" * 256}, 400, "idempotency-key: "),
    (job(metadata={"tenant": "shop-17"}), {}, 403, "metadata.tenant: "),
    (b" " * 65_537, {}, 413, "at most 65536 bytes"),
    (job(metadata={"a": [1e15] * 900, "b": "x" * 55_000}), {}, 413, "at most 65536 bytes"),
]
"""Body, headers, status, and a part of the detail."""


async def test_a_bad_request_names_the_field_and_the_fix_and_quotes_nothing(stage: Stage) -> None:
    worker = await run(stage)
    for body, headers, expected, text in REFUSED:
        answer = await post(worker, body, **headers)
        assert (answer.status, answer.content["status"]) == (expected, expected), text
        assert text in answer.content["detail"]
        assert CODE not in answer.text
        assert answer.headers.get_content_type() == "application/problem+json"
    assert (await call(worker, "GET", "/v1/jobs")).headers["allow"] == "POST"
    assert (await call(worker, "DELETE", "/v1/jobs/x")).headers["allow"] == "GET, HEAD"
    assert (await call(worker, "GET", "/v1/other")).status == 404
    assert (await call(worker, "HEAD", "/v1/jobs/x")).status == 404


async def test_an_odd_optional_field_does_not_cost_the_code_and_is_named(stage: Stage) -> None:
    worker = await run(stage)
    answer = await post(worker, job(priority=5, timestamp="2026-11-30T03:00:00Z", metadata={"expiryMinutes": "1e9"}))
    assert {it["field"] for it in answer.content["lenient"]} == {"priority", "timestamp", "metadata.expiryMinutes"}


async def test_an_idempotency_key_sends_the_code_once_and_belongs_to_one_body_and_one_token(
    stage: Stage, tmp_path: Path, redis: RedisServer
) -> None:
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(f'[tokens.shop]\nrole = "producer"\ntenant = "shop"\ntoken = "sha256:{digest_of(SHOP).hex()}"\n')
    more = {"HTTP_TOKENS_FILE": str(tokens), "REDIS_URL": redis.url}
    first, second = await run(stage, **more), await run(stage, **more)

    async def share() -> bool:
        return all([(await it.health())["tables"]["connected"] for it in (first, second)])

    await until(share, "both at Redis")
    answers = [await post(it, job(), Idempotency_Key='"8e03978e-40d5"') for it in (first, second, first, second)]
    answers += await asyncio.gather(*(post(it, job(), Idempotency_Key="8e03978e-40d5") for it in (first, second)))
    assert len({it.job_id for it in answers}) == 1
    for worker in (first, second):
        other = await post(worker, job(otp="482915"), Idempotency_Key="8e03978e-40d5")
        assert (other.status, "idempotency-key: " in other.content["detail"]) == (422, True)
    await stage.relay.wait_accepted(1)
    for worker in (first, second):
        await status(worker, answers[0].job_id, "sent")
    foreign = await post(first, job(otp="482915"), token=SHOP, Idempotency_Key="8e03978e-40d5")
    assert foreign.job_id != answers[0].job_id
    await stage.relay.wait_accepted(2)
    await status(second, foreign.job_id, "sent", token=SHOP)
    assert (await call(first, "GET", f"/v1/jobs/{foreign.job_id}")).status == 404

    async def counted() -> float:
        return sum([await it.metric('otp_jobs_total{outcome="sent"}') for it in (first, second)])

    async def both_counted() -> bool:
        return await counted() >= 2

    await until(both_counted, "two jobs in the metrics")
    assert await counted() == len(stage.relay.accepted) == 2


async def test_the_order_of_fields_makes_no_other_job_of_a_repeated_one(stage: Stage) -> None:
    worker = await run(stage)
    texts = ('"userName": "Ada", "b": {"x": 1, "y": [2, 3]}', '"b": {"y": [2, 3], "x": 1}, "userName": "Ada"')
    bodies = [f'{{"otp": "{CODE}", "metadata": {{{it}}}, "email": "user@example.com"}}'.encode() for it in texts]
    answers = [await post(worker, it, Idempotency_Key="k") for it in (*bodies, bodies[0].replace(b"[2, 3]", b"[3, 2]"))]
    assert [it.status for it in answers] == [202, 202, 422]
    assert answers[0].job_id == answers[1].job_id


async def test_a_token_sends_for_its_tenant_only(stage: Stage, tmp_path: Path) -> None:
    tenants, tokens = tmp_path / "tenants.toml", tmp_path / "tokens.toml"
    tenants.write_text('[tenants.shop]\nsender_email = "Shop <no-reply@shop.example>"\n')
    tokens.write_text(
        f'[tokens.shop]\nrole = "producer"\ntenant = "shop"\ntoken = "{SHOP}"\n'
        '[tokens.gone]\nrole = "producer"\ntenant = "gone"\ntoken = "b1e6042d97fc35a8"\n'
    )
    worker = await run(stage, HTTP_TOKENS_FILE=str(tokens), TENANTS_FILE=str(tenants))
    assert (await post(worker, job(), token=SHOP)).status == 202
    await stage.relay.wait_accepted(1)
    assert b"no-reply@shop.example" in stage.relay.accepted[0].content
    full = job(email="other@example.com", metadata={"request": {"x": [1000] * (MAX_VALUES - 5)}})
    assert (await post(worker, full, token=SHOP)).status == 202
    await stage.relay.wait_accepted(2)
    assert b"no-reply@shop.example" in stage.relay.accepted[1].content
    assert (await post(worker, job(metadata={"tenant": "shop"}), token=SHOP)).status == 202
    for tenant in ("default", "", "other", ["shop"]):
        assert (await post(worker, job(metadata={"tenant": tenant}), token=SHOP)).status == 403
    named = await post(worker, job(metadata={"tenant": "default"}))
    await status(worker, named.job_id, "sent")
    assert (await post(worker, job(metadata={"tenant": "shop"}))).status == 403
    gone = await post(worker, job(), token="b1e6042d97fc35a8")
    assert (gone.status, "TENANTS_FILE" in gone.content["detail"]) == (403, True)


async def test_too_many_requests_with_one_token_are_refused_until_later(stage: Stage) -> None:
    worker = await run(stage, INTAKE_RATE_PER_SECOND="1", INTAKE_TOKEN=f"{TOKEN},{SHOP}")
    answers: list[Answer] = []

    async def refused() -> bool:
        answers.extend([await call(worker, "GET", "/v1/jobs/x", token=token) for token in (TOKEN, SHOP, TOKEN, SHOP)])
        return answers[-1].status == 429

    await until(refused, "a refused request")
    assert {it.status for it in answers} == {404, 429}
    assert {it.headers["retry-after"] for it in answers if it.status == 429} <= {"1", "2"}


@pytest.fixture
async def proxied(stage: Stage) -> AsyncIterator[tuple[AmqpProxy, Worker]]:
    """Start a worker whose connections to RabbitMQ go through a proxy."""
    async with amqp_proxy(stage.url) as (proxy, url):
        worker = stage.worker(url=url, INTAKE_TOKEN=TOKEN, SECRET_KEY=KEY)
        await worker.start()
        yield proxy, worker


async def test_while_rabbitmq_is_away_nothing_is_accepted_and_afterwards_everything(
    stage: Stage, proxied: tuple[AmqpProxy, Worker]
) -> None:
    proxy, worker = proxied
    proxy.refuse = True
    proxy.cut()
    answers = await asyncio.gather(*(post(worker, job(), Idempotency_Key=f"k{n}") for n in range(5)))
    assert {it.status for it in answers} == {503}
    assert all(it.headers["retry-after"] for it in answers)
    assert all(it.content["jobId"] for it in answers)
    proxy.release()

    async def accepted() -> bool:
        return (await post(worker, job(), Idempotency_Key="k0")).status == 202

    await until(accepted, "202 after the return of RabbitMQ")
    assert (await post(worker, job(), Idempotency_Key="k0")).job_id == answers[0].content["jobId"]
    await stage.relay.wait_accepted(1)


async def test_a_confirm_that_does_not_arrive_in_time_is_503_and_the_repeat_sends_no_second_mail(
    stage: Stage, proxied: tuple[AmqpProxy, Worker]
) -> None:
    proxy, worker = proxied
    hold = proxy.hold("to worker", ACK)
    late = await post(worker, job(), Idempotency_Key="k")
    assert late.status == 503
    await asyncio.wait_for(hold.reached.wait(), 20)
    proxy.release()
    repeated = await post(worker, job(), Idempotency_Key="k")
    assert repeated.job_id == late.content["jobId"]
    await status(worker, repeated.job_id, "sent")
    await worker.wait_metric('otp_jobs_total{outcome="duplicate"}', 1)
    assert len(stage.relay.accepted) == 1


async def test_a_job_that_is_returned_is_not_accepted_and_the_queue_is_declared_again(stage: Stage) -> None:
    worker = await run(stage)
    answers: list[Answer] = []

    async def is_returned() -> bool:  # unless the worker has already declared the queue again
        await stage.rabbit.channel.queue_delete(stage.rabbit.queue)
        answers.append(await post(worker, job()))
        return answers[-1].status == 503

    await until(is_returned, "job that is returned")
    assert "missing or full" in answers[-1].content["detail"]
    before = len(stage.relay.accepted)

    async def declared() -> bool:
        return (await post(worker, job())).status == 202

    await until(declared, "202 once the worker has declared its queue again")
    await stage.relay.wait_accepted(before + 1)


async def test_a_job_that_a_full_queue_refuses_is_not_accepted(stage: Stage) -> None:
    await stage.rabbit.declare(**{"x-max-length": 0, "x-overflow": "reject-publish"})
    worker = await run(stage)
    answer = await post(worker, job())
    assert (answer.status, "missing or full" in answer.content["detail"]) == (503, True)


async def test_a_worker_that_stops_accepts_nothing(stage: Stage) -> None:
    worker = await run(stage, INTAKE_RATE_PER_SECOND="10000")
    seen: list[int] = []

    async def send() -> None:
        while True:
            try:
                seen.append((await post(worker, job(email=f"u{len(seen)}@example.com"))).status)
            except OSError:
                return

    sending = [asyncio.create_task(send()) for _ in range(4)]

    async def busy() -> bool:
        return len(seen) > 20

    await until(busy, "some jobs")
    worker.signal(signal.SIGTERM)
    assert await worker.stopped() in {0, -signal.SIGTERM}
    await asyncio.wait_for(asyncio.gather(*sending), 20)
    assert set(seen) <= {202, 503}
    accepted = seen.count(202)

    async def none_is_lost() -> bool:  # RabbitMQ returns unacked jobs a moment after the end of their connection
        left = await stage.rabbit.depth(stage.rabbit.queue)
        return len(stage.relay.accepted) + (left or 0) >= accepted

    await until(none_is_lost, f"{accepted} jobs, sent or in the queue")


async def hook(worker: Worker, name: str, payload: Any, headers: dict[str, str] | None = None) -> Answer:
    """Send a hook: with these headers, or with the token."""
    path, body = f"/v1/hooks/{name}", payload if isinstance(payload, bytes) else encoded(payload)
    return await call(worker, "POST", path, body, token=None if headers is not None else TOKEN, **(headers or {}))


async def test_each_hook_sends_its_documented_payload_once_however_often_it_is_repeated(stage: Stage) -> None:
    worker = await run(stage, INTAKE_SUPABASE_SECRET=SUPABASE_SECRET, INTAKE_ZITADEL_KEY=ZITADEL_KEY)
    now_s = int(time.time())
    basic = base64.b64encode(f"kratos:{TOKEN}".encode()).decode()
    for _ in range(2):
        for number in range(2):  # Supabase repeats a request with another id
            headers = supabase_headers(encoded(SUPABASE), now_s + number, webhook_id=f"msg_{number}")
            answer = await hook(worker, "supabase", SUPABASE, headers)
            assert (answer.status, answer.text, answer.headers.get_content_type()) == (200, "{}", "application/json")
        assert (await hook(worker, "zitadel", ZITADEL, zitadel_headers(encoded(ZITADEL), now_s))).status == 200
        assert (await hook(worker, "kratos", KRATOS)).status == 200
        assert (await hook(worker, "logto", LOGTO)).status == 200
    assert (await hook(worker, "kratos", KRATOS, {"Authorization": f"Basic {basic}"})).status == 200
    await stage.relay.wait_accepted(4)
    for code, recipient in (
        ("305805", "valid.email@supabase.io"), ("0M53RF", "example@zitadel.com"), ("523196", "user@example.com"),
        ("123456", "foo@logto.io"),
    ):  # fmt: skip
        (mail,) = (it for it in stage.relay.accepted if it.recipient == recipient)
        assert code.encode() in mail.content
        assert code not in worker.log_without_fractions
    await worker.wait_metric('otp_jobs_total{outcome="sent"}', 4)
    assert await worker.metric('otp_received_total{lane="high"}') == 4


async def test_a_name_with_invalid_characters_does_not_cost_the_code(stage: Stage) -> None:
    worker = await run(stage)
    body = b'{"to": "foo@logto.io", "type": "SignIn", "payload": {"code": "123456", "user": {"name": "\\ud83d \xff"}}}'
    assert (await hook(worker, "logto", body)).status == 200
    await stage.relay.wait_accepted(1)


async def test_a_change_of_address_sends_two_mails(stage: Stage) -> None:
    worker = await stage.run(INTAKE_SUPABASE_SECRET=SUPABASE_SECRET)
    payload = {
        "user": {"email": "old@example.com", "new_email": "new@example.com"},
        "email_data": {"email_action_type": "email_change", "token": "305805", "token_new": "814772"},
    }
    headers = supabase_headers(encoded(payload), int(time.time()))
    assert (await hook(worker, "supabase", payload, headers)).status == 200
    await stage.relay.wait_accepted(2)
    codes = {it.recipient: it.content for it in stage.relay.accepted}
    assert b"305805" in codes["old@example.com"]
    assert b"814772" in codes["new@example.com"]


async def test_a_hook_that_is_not_signed_or_has_no_code_is_refused_in_the_form_of_its_sender(stage: Stage) -> None:
    worker = await stage.run(INTAKE_SUPABASE_SECRET=SUPABASE_SECRET, INTAKE_ZITADEL_KEY=ZITADEL_KEY)
    body, now_s = encoded(SUPABASE), int(time.time())
    for headers in ({}, supabase_headers(body + b" ", now_s), supabase_headers(body, now_s - 301)):
        answer = await hook(worker, "supabase", SUPABASE, headers)
        assert (answer.status, answer.content["error"]["http_code"]) == (401, 401)
        assert "305805" not in answer.text
    no_code: dict[str, Any] = {"user": {"email": "user@example.com"}, "email_data": {"token": ""}}
    answer = await hook(worker, "supabase", no_code, supabase_headers(encoded(no_code), now_s))
    assert answer.status == 422
    assert answer.content == {"error": {"http_code": 422, "message": answer.content["error"]["message"]}}
    assert "email_data.token: is empty" in answer.content["error"]["message"]
    refused = await hook(worker, "zitadel", ZITADEL, zitadel_headers(encoded(ZITADEL), now_s, key="another key"))
    assert (refused.status, refused.headers.get_content_type()) == (401, "application/problem+json")
    for name in ("kratos", "logto", "other"):  # there is no token of the intake
        assert (await hook(worker, name, KRATOS)).status == 404
    assert (await post(worker, job())).status == 401
    assert not stage.relay.accepted


async def test_a_hook_that_rabbitmq_has_not_confirmed_may_be_sent_again(
    stage: Stage, proxied: tuple[AmqpProxy, Worker]
) -> None:
    proxy, worker = proxied
    proxy.refuse = True
    proxy.cut()
    answer = await hook(worker, "logto", LOGTO)
    assert (answer.status, bool(answer.headers["retry-after"])) == (503, True)
    proxy.release()

    async def accepted() -> bool:
        return (await hook(worker, "logto", LOGTO)).status == 200

    await until(accepted, "200 after the return of RabbitMQ")
    await stage.relay.wait_accepted(1)


@pytest.mark.waits
async def test_a_client_that_sends_its_body_slowly_is_refused_and_delays_no_one(stage: Stage) -> None:
    worker = await run(stage)
    reader, writer = await asyncio.open_connection("127.0.0.1", worker.port)
    head = (
        f"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"
        "Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"
    )
    writer.write(head.encode())
    assert (await post(worker, job())).status == 202
    line = await asyncio.wait_for(reader.readline(), 60)
    assert b" 408 " in line
    writer.close()


async def test_a_secret_that_changes_in_its_file_is_used_without_a_restart(stage: Stage, tmp_path: Path) -> None:
    secret = tmp_path / "token"
    secret.write_text(SHOP)
    worker = await stage.run(INTAKE_TOKEN_FILE=str(secret))
    assert (await post(worker, job(), token=SHOP)).status == 202
    secret.write_text(TOKEN)
    worker.signal(signal.SIGHUP)

    async def accepted() -> bool:
        return (await call(worker, "GET", "/v1/jobs/x")).status == 404

    await until(accepted, "the new token")
    assert (await post(worker, job(), token=SHOP)).status == 401


async def test_the_openapi_document_is_served_while_the_intake_is_on(stage: Stage) -> None:
    worker = await run(stage)
    served = json.loads((await worker.get("/openapi.json"))[1])
    assert served == json.loads((ROOT / "openapi" / "otp-stream.json").read_text())
    assert yaml.safe_load((await worker.get("/openapi.yaml"))[1]) == served
    await worker.stop()
    worker = await stage.run()
    assert (await worker.get("/openapi.json"))[0] == 404


async def test_several_workers_of_one_command_share_what_they_know_in_redis(stage: Stage, redis: RedisServer) -> None:
    worker = stage.worker(INTAKE_TOKEN=TOKEN, SECRET_KEY=KEY, REDIS_URL=redis.url)
    worker.options = ("--workers", "2")
    await worker.start()
    answers: list[Answer] = []

    async def is_taken_again() -> bool:
        answer = await post(worker, job(), Idempotency_Key="k")
        if answer.status == 503:  # this worker has no connection yet
            return False
        answers.append(answer)
        return len(answers) == 6

    await until(is_taken_again, "six answers")
    assert len({it.job_id for it in answers}) == 1
    await stage.relay.wait_accepted(1)
    for _ in range(6):
        await status(worker, answers[0].job_id, "sent")
    assert len(stage.relay.accepted) == 1
    await worker.stop()


@pytest.fixture
def _token_in_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTAKE_TOKEN", TOKEN)
    monkeypatch.setenv("INTAKE_SUPABASE_SECRET", SUPABASE_SECRET)


@pytest.mark.usefixtures("_token_in_environment")
async def test_the_programs_of_the_documentation_send_codes_to_the_embedded_broker(demo: Worker) -> None:
    text = (ROOT / "docs" / "http.md").read_text()
    first, signed = (it for it in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) if "curl -i" in it)
    sent = await output("sh", "-c", first.replace("localhost:8000", f"localhost:{demo.port}"))
    assert "HTTP/1.1 202 Accepted" in sent
    code = "123456"

    async def arrived() -> bool:  # the page shows the newest e-mail
        return code in (await demo.get("/inbox"))[1]

    await until(arrived, "the first code")
    (plugin,) = re.findall(r"```js\n(.*?)```", text, re.DOTALL)
    code = "604417"
    program = plugin.replace("https://otp.example.com", f"http://127.0.0.1:{demo.port}")
    call_it = 'await plugin.sendVerificationOTP({ email: "ada@example.com", otp: "604417", type: "sign-in" });'
    await output(
        "node", "--input-type=module", "-e", f"const emailOTP = (it) => it;\nconst plugin = {program}\n{call_it}"
    )

    await until(arrived, "the second code")
    code = "123456"
    assert "HTTP/1.1 200 OK" in await output("sh", "-c", signed.replace("localhost:8000", f"localhost:{demo.port}"))

    await until(arrived, "the code of Supabase")


async def output(*command: str) -> str:
    """Run a program that must succeed. Returns its output."""
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    found, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, found.decode()
    return found.decode()
