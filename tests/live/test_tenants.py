"""One worker sends for several tenants, each with its sender, templates, relay and limits."""

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
from conftest import Stage, set_stage
from rabbitmq import Node, until
from smtp_relay import SILENCE, Act, Received, ScriptedRelay
from tenants import at, job_of, tenants_toml, write
from worker import Worker

SHOP: dict[str, object] = {
    "sender_email": "Shop Zoë <no-reply@shop.example>",
    "envelope_sender": "bounces@shop.example",
    "reply_to": "Help <help@shop.example>",
    "default_locale": "de",
}


@pytest.fixture
async def own() -> AsyncIterator[ScriptedRelay]:
    """Another relay, for a tenant."""
    async with ScriptedRelay() as relay:
        yield relay


def file_of(stage: Stage) -> Path:
    return stage.folder / "tenants.toml"


async def run(stage: Stage, content: str, **changes: str) -> Worker:
    set_tenants(stage, content)
    return await stage.run(TENANTS_FILE=str(file_of(stage)), **changes)


def set_tenants(stage: Stage, content: str) -> None:
    """Replace the file."""
    write(file_of(stage), content)


def read(mail: Received) -> EmailMessage:
    found = message_from_bytes(mail.content, policy=policy.default)
    assert isinstance(found, EmailMessage)
    return found


def text(mail: Received) -> str:
    body = read(mail).get_body(("plain",))
    assert body is not None
    return body.get_content()


async def test_each_tenant_has_its_sender_language_and_templates(stage: Stage) -> None:
    mails = stage.folder / "mails" / "otp"
    mails.mkdir(parents=True)
    (mails / "subject.txt").write_text("Hello from shop 2\n")
    shops = {"shop-1": SHOP, "shop-2": {"sender_email": "no-reply@two.example", "templates_dir": "mails"}}
    await run(stage, tenants_toml(shops))
    await stage.rabbit.publish(job_of("shop-1"), job_of("shop-2"), job_of(None), job_of("shop-3"))
    await stage.relay.wait_accepted(4)
    by = {it.recipient.partition("0@")[0]: it for it in stage.relay.accepted}
    first = read(by["shop-1"])
    assert (str(first["From"]), str(first["Reply-To"])) == (
        "Shop Zoë <no-reply@shop.example>",
        "Help <help@shop.example>",
    )
    assert by["shop-1"].sender == "bounces@shop.example"
    assert "Der Code ist 15 Minuten lang gültig" in text(by["shop-1"])
    assert str(read(by["shop-2"])["Subject"]) == "Hello from shop 2"
    assert by["shop-2"].sender == "no-reply@two.example"
    for name in ("user", "shop-3"):  # jobs of unknown tenants are those of the default one
        assert str(read(by[name])["From"]) == "Example <no-reply@example.com>"
        assert read(by[name])["Reply-To"] is None
        assert by[name].sender == "no-reply@example.com"


async def test_a_job_of_an_unknown_tenant_can_be_refused(stage: Stage) -> None:
    await run(stage, tenants_toml({"shop": SHOP}, unknown="malformed"))
    await stage.rabbit.publish(job_of("739154"), job_of("shop"), job_of(None))
    (dead,) = await stage.rabbit.dead()
    assert dead.headers["x-otp-reason"] == "malformed"
    assert "metadata.tenant" in str(dead.headers["x-otp-error"])
    assert "739154" not in str(dead.headers["x-otp-error"])
    await stage.relay.wait_accepted(2)


async def test_a_tenant_with_its_own_relay_uses_no_other(stage: Stage, own: ScriptedRelay) -> None:
    own.login, own.tls = ("shop", "hunter2-own"), None
    worker = await run(stage, tenants_toml({"shop": at(own), "same": at(own), "rated": {"smtp_rate_per_second": 50}}))
    own.login = None
    await stage.rabbit.publish(*(job_of(name) for name in ("shop", "same", "rated", None)))
    await own.wait_accepted(2)
    await stage.relay.wait_accepted(2)
    assert {it.recipient for it in own.accepted} == {"shop0@example.com", "same0@example.com"}
    # equal settings are one group of connections
    name = f"shop/127.0.0.1:{own.port}"
    assert await worker.metric(f'otp_relay_connects_total{{relay="{name}"}}') >= 1
    names = [it for it in (await worker.get("/metrics"))[1].splitlines() if it.startswith("otp_relay_connects_total")]
    assert len(names) == 3


async def test_metrics_health_and_page_know_the_tenants(stage: Stage, own: ScriptedRelay) -> None:
    own.always("mail", "421 4.3.2 going down")
    worker = await run(stage, tenants_toml({"shop": SHOP, "down": at(own)}))
    await stage.rabbit.publish(*(job_of("shop", number) for number in range(3)), job_of(None), job_of("down"))
    await stage.relay.wait_accepted(4)

    expected = {
        'otp_tenant_mail_waits{tenant="down"}': 1,
        'otp_tenant_mail_waits{tenant="shop"}': 0,
        'otp_tenant_jobs_total{outcome="sent",tenant="shop"}': 3,
        'otp_tenant_jobs_total{outcome="sent",tenant="default"}': 1,
        'otp_tenant_jobs_unacked{tenant="down"}': 1,
    }

    async def counted() -> bool:
        return {line: await worker.metric(line) for line in expected} == expected

    await until(counted, "the tenants' metrics")
    health = await worker.health()
    assert health["status"] == "degraded"
    assert (await worker.get("/readyz"))[0] == 200
    _, page = await worker.get("/")
    assert "<h2>Tenants</h2>" in page
    assert "down (" in page
    own.always("mail", None)
    await own.wait_accepted(1, 30)


async def test_a_changed_file_applies_to_the_next_mail(stage: Stage, own: ScriptedRelay) -> None:
    worker = await run(stage, tenants_toml({"shop": {"sender_email": "old@shop.example"}}))
    await stage.rabbit.publish(job_of("shop"))
    await stage.relay.wait_accepted(1)
    set_tenants(stage, tenants_toml({"shop": {"sender_email": "new@shop.example"}, "more": at(own)}))
    await worker.wait_log("TENANTS_FILE has changed")
    await stage.rabbit.publish(job_of("shop", 1), job_of("more"))
    await stage.relay.wait_accepted(2)
    await own.wait_accepted(1)
    assert [it.sender for it in stage.relay.accepted] == ["old@shop.example", "new@shop.example"]
    for number, broken in enumerate(("[tenants.shop", "", tenants_toml({"shop": {"templates_dir": "gone"}})), 1):
        set_tenants(stage, broken)
        await worker.wait_log("the earlier tenants stay in use", times=number)
    await stage.rabbit.publish(job_of("shop", 2))
    await stage.relay.wait_accepted(3)
    assert stage.relay.accepted[-1].sender == "new@shop.example"


async def test_a_template_with_an_error_is_not_used(stage: Stage) -> None:
    mails = stage.folder / "mails" / "otp"
    mails.mkdir(parents=True)
    (mails / "subject.txt").write_text("Right\n")
    shop = {"templates_dir": "mails"}
    worker = await run(stage, tenants_toml({"shop": shop}))
    (mails / "subject.txt").write_text("{% if %}\n")
    set_tenants(stage, tenants_toml({"shop": {**shop, "reply_to": "a@b.example"}}))
    await worker.wait_log("the earlier tenants stay in use")
    await stage.rabbit.publish(job_of("shop"))
    await stage.relay.wait_accepted(1)
    assert str(read(stage.relay.accepted[0])["Subject"]) == "Right"
    assert read(stage.relay.accepted[0])["Reply-To"] is None
    (mails / "subject.txt").write_text("Corrected\n")
    worker.signal(signal.SIGHUP)
    await worker.wait_log("TENANTS_FILE has changed")
    await stage.rabbit.publish(job_of("shop", 1))
    await stage.relay.wait_accepted(2)
    assert str(read(stage.relay.accepted[1])["Subject"]) == "Corrected"


async def test_mails_that_wait_move_to_the_new_relay(stage: Stage, own: ScriptedRelay) -> None:
    async with ScriptedRelay() as down:
        port = down.port
    nowhere = {**at(own), "smtp_port": port}
    worker = await run(stage, tenants_toml({"shop": nowhere}))
    await stage.rabbit.publish(*(job_of("shop", number) for number in range(20)))
    await worker.wait_log("relay takes no mail: circuit breaker open")
    set_tenants(stage, tenants_toml({"shop": at(own)}))
    await own.wait_accepted(20)
    assert len({it.recipient for it in own.accepted}) == len(own.accepted) == 20
    await worker.stop()
    assert "stopped" in worker.log


@pytest.mark.parametrize("removed", [False, True])
async def test_no_relay_gets_a_mail_of_a_sender_that_is_not_configured_for_it(
    stage: Stage, own: ScriptedRelay, *, removed: bool
) -> None:
    async with ScriptedRelay() as down:
        port = down.port
    old: dict[str, object] = {"sender_email": "no-reply@old.example", **at(own), "smtp_port": port}
    worker = await run(stage, tenants_toml({"shop": old, "other": SHOP}))
    await stage.rabbit.publish(*(job_of("shop", number) for number in range(5)))
    await worker.wait_log("relay takes no mail: circuit breaker open")
    new = {} if removed else {"shop": {"sender_email": "no-reply@new.example", **at(own)}}
    set_tenants(stage, tenants_toml({**new, "other": SHOP}))
    relay, domain = (stage.relay, "example.com") if removed else (own, "new.example")
    await relay.wait_accepted(5)
    assert {(it.sender, str(read(it)["From"]).rpartition("@")[2].strip(">")) for it in relay.accepted} == {
        (f"no-reply@{domain}", domain)
    }
    assert len(relay.accepted) == len(stage.relay.accepted) + len(own.accepted) == 5


@pytest.mark.parametrize("change", ["relay", "sender", "removed"])
async def test_mails_that_wait_for_a_relay_that_others_keep_are_composed_again(
    stage: Stage, own: ScriptedRelay, change: str
) -> None:
    """A tenant leaves relays that it has shared: they stay, but no more get its mail, or the mail of its old sender."""
    async with ScriptedRelay() as shared:
        port = shared.port
        await shared.stop()
        first, last = ({name: {**at(own), "smtp_port": port}} for name in ("first", "last"))
        old = {**at(own), "smtp_port": port, "sender_email": "no-reply@old.example"}
        worker = await run(stage, tenants_toml({**first, "shop": old, **last}))
        await stage.rabbit.publish(*(job_of("shop", number) for number in range(5)))
        await worker.wait_log("relay takes no mail: circuit breaker open")
        new = {"relay": at(own), "sender": {**old, "sender_email": "no-reply@new.example"}}
        shop = {"shop": new[change]} if change in new else {}
        set_tenants(stage, tenants_toml({**first, **shop, **last}))
        await worker.wait_log("TENANTS_FILE has changed")
        relay = {"relay": own, "sender": shared, "removed": stage.relay}[change]
        if relay is shared:
            await shared.start()
        await relay.wait_accepted(5)
        domain = "new.example" if relay is shared else "example.com"
        assert {it.sender for it in relay.accepted} == {f"no-reply@{domain}"}
        assert "MAIL FROM:<no-reply@old.example>" not in str(shared.log)
    assert len(relay.accepted) == 5


async def test_each_group_of_relays_has_a_name_of_its_own(stage: Stage) -> None:
    slow, fast = {"smtp_rate_per_second": 50}, {"smtp_rate_per_second": 60}
    worker = await run(stage, tenants_toml({"a": slow, "b": slow, "c": slow}))
    await stage.rabbit.publish(*(job_of(name) for name in "abc"))
    await stage.relay.wait_accepted(3)
    set_tenants(stage, tenants_toml({"a": fast, "b": slow, "c": slow}))
    await worker.wait_log("TENANTS_FILE has changed")
    await stage.rabbit.publish(*(job_of(name, 1) for name in "abc"))
    await stage.relay.wait_accepted(6)
    for name, rate in (("a", 60), ("b", 50)):
        assert await worker.metric(f'otp_relay_rate_limit{{relay="{name}/127.0.0.1:{stage.relay.port}"}}') == rate


async def test_a_mail_in_flight_is_completed_at_the_old_relay(stage: Stage, own: ScriptedRelay) -> None:
    worker = await run(stage, tenants_toml({"shop": at(own)}))
    changed = asyncio.Event()
    own.always("body", Act(until=changed))
    await stage.rabbit.publish(job_of("shop"))
    await own.wait(lambda: own.contents == 1, "content")
    set_tenants(stage, tenants_toml({"shop": {}}))
    await worker.wait_log("TENANTS_FILE has changed")
    await stage.rabbit.publish(job_of("shop", 1))
    await stage.relay.wait_accepted(1)
    assert not own.accepted
    changed.set()
    await own.wait_accepted(1)
    assert [it.recipient for it in (*own.accepted, *stage.relay.accepted)] == ["shop0@example.com", "shop1@example.com"]
    await stage.rabbit.wait_depth(0)
    await own.wait(lambda: not own.open_connections, "closed connections")


async def test_secrets_of_tenants_are_rotated(stage: Stage, own: ScriptedRelay) -> None:
    own.login = ("shop", "old-9-word")
    secret = stage.folder / "secret"
    secret.write_text("old-9-word")
    shop = {**at(own), "smtp_auth": "plain", "smtp_user": "shop", "smtp_pass_file": "secret"}
    worker = await run(stage, tenants_toml({"shop": shop}))
    await stage.rabbit.publish(job_of("shop"))
    await own.wait_accepted(1)
    own.login = ("shop", "new-9-word")
    own.cut()
    write(secret, "new-9-word")
    await worker.wait_log("TENANTS_FILE has changed")
    await stage.rabbit.publish(*(job_of("shop", number) for number in range(1, 11)))
    await own.wait_accepted(11)
    assert "9-word" not in worker.log


async def test_limits_of_recipients_count_the_jobs_of_each_tenant(stage: Stage) -> None:
    shops = {"strict": {"recipient_limit": "2/1h"}, "inherits": {}}
    await run(stage, tenants_toml(shops), RECIPIENT_LIMIT="3/1h")
    person = "person@example.com"
    for tenant in ("strict", "inherits", None):
        metadata = {"tenant": tenant} if tenant else {}
        bodies = [
            json.dumps({"email": person, "otp": f"1000{n}", "jobId": f"{tenant}{n}", "metadata": metadata}).encode()
            for n in range(4)
        ]
        await stage.rabbit.publish(*bodies)
        await stage.rabbit.wait_depth(0)
    # two of the strict one, three of each other one
    await stage.relay.wait_accepted(8)
    dead = await stage.rabbit.dead(4)
    assert {it.headers["x-otp-reason"] for it in dead} == {"throttled"}
    assert len(stage.relay.accepted) == 8


async def test_a_sender_that_the_shared_relay_refuses_delays_no_other_tenant(stage: Stage) -> None:
    worker = await run(stage, tenants_toml({"bad": {"sender_email": "no-reply@bad.example"}, "good": SHOP}))
    refusal = "553 5.7.1 <no-reply@bad.example>: Sender address rejected: not owned by user"
    stage.relay.always("mail", refusal, by="no-reply@bad.example")
    await stage.rabbit.publish(*(job_of("bad", number) for number in range(20)))

    async def waits() -> bool:
        return await worker.metric('otp_tenant_mail_waits{tenant="bad"}') == 1

    await until(waits, "the refused tenant")
    await stage.rabbit.publish(*(job_of("good", number) for number in range(50)), job_of(None))
    await stage.relay.wait_accepted(51)
    assert "circuit breaker open" not in worker.log
    assert await worker.metric(f'otp_circuit_breaker_state{{relay="127.0.0.1:{stage.relay.port}",state="closed"}}') == 1
    stage.relay.always("mail", None, by="no-reply@bad.example")
    await worker.wait_log("relay refuses the tenant's sender: its jobs wait")
    await stage.relay.wait_accepted(71, 40)
    await worker.wait_log("relay accepts the tenant's sender again")
    assert len({it.recipient for it in stage.relay.accepted}) == 71


async def test_a_worker_with_a_broken_file_does_not_start(stage: Stage) -> None:
    set_tenants(stage, tenants_toml({"shop": {"smtp_port": 0}}))
    worker = stage.worker(TENANTS_FILE=str(file_of(stage)))
    await worker.start(ready=False)
    assert await worker.stopped() == 2
    assert "[tenants.shop] smtp_port: must be 1 or more" in worker.log


async def test_a_job_of_one_tenant_supersedes_none_of_another(stage: Stage) -> None:
    worker = await run(stage, tenants_toml({"a": {}, "b": {}}), SUPERSEDE="latest")
    now = time.time_ns() // 1_000_000

    def body(tenant: str, otp: str, made_ms: int, **metadata: str) -> bytes:
        fields: dict[str, Any] = {"email": "p@example.com", "otp": otp, "jobId": otp, "timestamp": made_ms}
        return json.dumps({**fields, "metadata": {"tenant": tenant, **metadata}}).encode()

    await stage.rabbit.publish(body("a", "2222", now), body("default", "4444", now, purpose="\0otp\0b"))
    await stage.relay.wait_accepted(2)
    await stage.rabbit.publish(body("b", "3333", now - 5_000), body("a", "1111", now - 5_000))
    await stage.relay.wait_accepted(3)

    async def superseded() -> bool:
        return await worker.metric('otp_jobs_total{outcome="superseded"}') == 1

    await until(superseded, "the older job of the same tenant")
    assert len(stage.relay.accepted) == 3


async def test_no_queue_of_a_test_s_tenants_is_left_on_the_shared_broker(shared_node: Node, tmp_path: Path) -> None:
    def queues(start: str) -> int:
        matching = f'string:prefix(element(4, Q), <<"{start}">>) =/= nomatch'
        return int(shared_node.control("eval", f'length([Q || Q <- rabbit_amqqueue:list_names(<<"/">>), {matching}])'))

    async with set_stage(shared_node.url, tmp_path) as stage:
        prefix = stage.rabbit.prefix
        worker = await run(stage, tenants_toml({"at-start": {}, "removed": {}, "Größe 1": {}}))
        set_tenants(stage, tenants_toml({"at-start": {}, "added": {}}))
        await worker.wait_log("TENANTS_FILE has changed")
        set_tenants(stage, tenants_toml({"at-start": {}, "more": {}}))
        await worker.wait_log("TENANTS_FILE has changed", times=2)

        async def declared() -> bool:
            return await asyncio.to_thread(queues, f"{prefix}.tenant.") == 6

        await until(declared, "the queues of five tenants and the default one")
        set_tenants(stage, "broken")
    assert queues(prefix) == 0


@pytest.mark.waits
async def test_a_relay_that_hangs_holds_up_one_tenant_only(stage: Stage, own: ScriptedRelay) -> None:
    own.always("mail", SILENCE)
    worker = await run(stage, tenants_toml({"hangs": at(own), "good": SHOP}), PREFETCH_COUNT="20")
    await stage.rabbit.publish(*(job_of("hangs", number) for number in range(100)))
    await stage.rabbit.publish(*(job_of("good", number) for number in range(50)))
    await stage.relay.wait_accepted(50)
    assert not own.accepted
    own.always("mail", None)
    own.cut()
    await own.wait_accepted(100, 60)
    assert len({it.recipient for it in own.accepted}) == len(own.accepted) == 100
    await stage.rabbit.wait_depth(0)
    await worker.stop()


async def test_backlogs_of_many_tenants_stay_in_the_broker(stage: Stage) -> None:
    """A worker whose relay hangs has not many more jobs in its memory for many tenants than for one."""
    names = "abcdefghijklmnopqrst"
    stage.relay.always("mail", SILENCE)
    worker = await run(stage, tenants_toml({name: {} for name in names}), PREFETCH_COUNT="30")
    await stage.rabbit.publish(*(job_of(name, number) for number in range(25) for name in names))

    async def figures(metric: str) -> list[float]:
        rows = (await worker.get("/metrics"))[1].splitlines()
        return [float(row.rpartition(" ")[2]) for row in rows if row.startswith(metric)]

    async def is_moved() -> bool:
        return await worker.metric('otp_ledger_settled_total{how="moved",lane="jobs"}') >= 500 - 30

    await until(is_moved, "jobs in the queues of all tenants", 60)
    for _ in range(5):  # the counts may grow once a second
        assert sum(await figures("otp_tenant_jobs_unacked{")) <= 5 * 30
        await asyncio.sleep(1)
    stage.relay.always("mail", None)
    stage.relay.cut()
    await stage.relay.wait_accepted(500, 60)
    assert len({it.recipient for it in stage.relay.accepted}) == len(stage.relay.accepted) == 500
