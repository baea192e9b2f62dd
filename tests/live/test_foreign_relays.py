"""The whole worker against third-party relays. Each job ends as its relay recorded it."""

import asyncio
import itertools
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from aio_pika import Message
from certificates import Authority
from conftest import Stage
from exim import Exim
from maildev import MailDev
from opensmtpd import OpenSMTPD
from postfix import Postfix
from rabbitmq import until
from relays import NodeRelay
from worker import Worker, job

EMPTY = 1_000
"""More bytes than an empty mail has with what a relay adds to it, and fewer than any mail of ours has."""
RETRIES = {"MAX_RETRIES": "3", "MAX_DELAY_MS": "1000"}
"""A job may be refused at MAIL, where the relay does not know the recipient yet, and once more for its name."""
STAGES = {"haraka": ("rcpt", "data", "body"), "smtp-server": ("rcpt", "body"), "postfix": ("rcpt", "data", "body"),
          "opensmtpd": ("rcpt", "data", "body")}  # fmt: skip
LOGIN = ("otp@example.com", "pa:ss wörd")


def recipients(stages: tuple[str, ...], jobs: int = 200, codes: tuple[int, ...] = (450, 550)) -> list[str]:
    """Return the recipients of all jobs. Every 25th is to be refused: 4 %, or each kind once where jobs are few."""
    kinds = [f"{stage}-{code}" for stage in stages for code in codes]
    every = min(25, jobs // len(kinds))
    names = itertools.cycle(kinds)
    return [f"{'job' if at % every else next(names)}-{at}@example.com" for at in range(jobs)]


def secured(folder: Path, tls: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the arguments of a relay that wants a login by TLS (`starttls`, `implicit`), and the worker's settings."""
    authority = Authority(folder)
    login = {"SMTP_AUTH": "login", "SMTP_USER": LOGIN[0], "SMTP_PASS": LOGIN[1]}
    arguments = {"tls": authority.issue("127.0.0.1"), "implicit": tls == "implicit", "login": LOGIN}
    return arguments, {"SMTP_TLS": tls, "SMTP_CA_FILE": str(authority.ca_file), **login, **RETRIES}


async def publish(stage: Stage, to: list[str]) -> None:
    """Publish one job for each recipient; the job's id is the address without the domain."""
    exchange, now_ms = stage.rabbit.channel.default_exchange, time.time_ns() // 1_000_000
    for at in range(0, len(to), 100):
        bodies = [job(it, jobId=it.partition("@")[0], timestamp=now_ms) for it in to[at : at + 100]]
        messages = [Message(body, delivery_mode=2) for body in bodies]
        await asyncio.gather(*(exchange.publish(message, stage.rabbit.queue) for message in messages))


async def dead(stage: Stage) -> dict[str, tuple[str, str]]:
    """Take all dead letters; returns reason and error by recipient."""
    queue = await stage.rabbit.channel.get_queue(f"{stage.rabbit.prefix}.dead", ensure=False)
    found: dict[str, tuple[str, str]] = {}
    while (message := await queue.get(fail=False)) is not None:
        await message.ack()
        headers = message.headers
        recipient = f"{headers['x-otp-job-id']}@example.com"
        assert recipient not in found
        found[recipient] = (str(headers["x-otp-reason"]), str(headers["x-otp-error"]))
    return found


async def settled(worker: Worker, messages: float) -> bool:
    """Whether so many messages have been received, and all are settled."""
    _, body = await worker.get("/metrics")
    rows = [row.rpartition(" ") for row in body.splitlines() if row.startswith("otp_ledger_")]
    received, done, held = (
        sum(float(value) for name, _, value in rows if name.startswith(f"otp_ledger_{which}"))
        for which in ("received_total", "settled_total", "unacked")
    )
    return received >= messages and received == done and held == 0


async def every_job_ends_by_its_relays_reply(
    stage: Stage,
    worker: Worker,
    relay: NodeRelay | Postfix | Exim | OpenSMTPD | MailDev,
    to: list[str],
    *,
    chunking: bool = False,
) -> None:
    """Send all jobs, and compare each job's end with the relay's record.

    With `chunking`, what refuses DATA may refuse BDAT instead.
    """
    codes = {it: int(it.split("-")[1]) for it in to if not it.startswith("job-")}
    never = {it for it, code in codes.items() if code >= 500}
    await publish(stage, to)
    dead_letters: dict[str, tuple[str, str]] = {}

    def refused_at_mail() -> set[str]:
        return {it for it, (_, error) in dead_letters.items() if error.endswith("(to MAIL)")}

    def is_recorded() -> bool:  # a relay may write its record after its reply
        expected = {(it, code) for it, code in codes.items() if it not in refused_at_mail()}
        return set(relay.refused) >= expected and relay.refused[None, 550] >= len(refused_at_mail())

    async def ended() -> bool:
        dead_letters.update(await dead(stage))
        accepted = {taken.recipient for taken in relay.accepted}
        return accepted | dead_letters.keys() >= set(to) and await settled(worker, len(to)) and is_recorded()

    try:
        await until(ended, "end of all jobs", 60)
    except AssertionError as error:
        missing = set(to) - {taken.recipient for taken in relay.accepted} - dead_letters.keys()
        raise AssertionError(f"{error}: {sorted(missing)}\n{worker.log[-3000:]}") from None

    # a 550 to MAIL is about no recipient: only jobs that got one may be dead
    at_mail = refused_at_mail()
    assert len(at_mail) <= relay.refused[None, 550]
    assert dead_letters.keys() - at_mail == never - at_mail
    for recipient in never - at_mail:
        at = recipient.split("-")[0]
        reason, error = dead_letters[recipient]
        assert reason == "rejected"
        # while one mail tries BDAT, the others get DATA
        steps = {at.upper(), "BODY"} if chunking and at == "data" else {at.upper()}
        assert any(error.endswith(f"refused at {at} (to {step})") for step in steps), error
    # once, or twice where the relay closed the connection before its reply to the content arrived
    refused = {at for at in relay.refused if at[0] is not None and at[0] not in at_mail}
    assert refused == {(it, code) for it, code in codes.items() if it not in at_mail}
    assert Counter(taken.recipient for taken in relay.accepted) == Counter(set(to) - never - at_mail)
    assert all(taken.size > EMPTY for taken in relay.accepted)
    assert not any((await stage.rabbit.depths()).values())


# Haraka answers the commands of one packet one by one, each after an acknowledgement: about 90 ms for each mail
@pytest.mark.parametrize(
    ("kind", "pool_size", "jobs"), [("haraka", 20, 200), ("haraka", 1, 60), ("smtp-server", 2, 200)]
)
async def test_a_relay_of_npm_refuses_at_every_stage(
    stage: Stage, tmp_path: Path, kind: str, pool_size: int, jobs: int
) -> None:
    async with NodeRelay(tmp_path / "relay", kind, refuse_sender_every=90) as relay:
        worker = await stage.run(SMTP_PORT=str(relay.port), SMTP_POOL_SIZE=str(pool_size), **RETRIES)
        await every_job_ends_by_its_relays_reply(stage, worker, relay, recipients(STAGES[kind], jobs))


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
@pytest.mark.parametrize("kind", ["haraka", "smtp-server"])
async def test_a_relay_of_npm_with_tls_and_login_refuses_at_every_stage(
    stage: Stage, tmp_path: Path, kind: str, tls: str
) -> None:
    arguments, env = secured(tmp_path, tls)
    async with NodeRelay(tmp_path / "relay", kind, **arguments) as relay:
        worker = await stage.run(SMTP_PORT=str(relay.port), **env)
        await every_job_ends_by_its_relays_reply(stage, worker, relay, recipients(STAGES[kind]))


@pytest.mark.parametrize(("tls", "login"), [("none", None), ("none", LOGIN), ("implicit", LOGIN)])
async def test_maildev_takes_every_mail(stage: Stage, tmp_path: Path, tls: str, login: tuple[str, str] | None) -> None:
    arguments, env = secured(tmp_path, tls)
    certificate = arguments["tls"] if tls == "implicit" else None
    async with MailDev(tmp_path / "relay", certificate, login) as relay:
        changes = {} if login else {"SMTP_AUTH": "none"}
        worker = await stage.run(SMTP_PORT=str(relay.port), **env | changes)
        await every_job_ends_by_its_relays_reply(stage, worker, relay, [f"job-{at}@example.com" for at in range(200)])


async def test_smtp_server_takes_the_access_token_of_a_command(stage: Stage, tmp_path: Path) -> None:
    tokens, current = tmp_path / "valid", tmp_path / "current"
    tokens.write_text("token-1")
    current.write_text("token-1")
    env = {"SMTP_AUTH": "oauth2", "SMTP_USER": "otp@example.com", "SMTP_OAUTH_TOKEN_COMMAND": f"cat '{current}'"}
    async with NodeRelay(tmp_path / "relay", "smtp-server", tokens=tokens) as relay:
        worker = await stage.run(SMTP_PORT=str(relay.port), SMTP_POOL_SIZE="2", **env, **RETRIES)
        to = recipients(STAGES["smtp-server"])
        await every_job_ends_by_its_relays_reply(stage, worker, relay, to)
        assert relay.refused_tokens == []


@pytest.mark.parametrize(("pool_size", "jobs"), [(20, 200), (1, 100)])
@pytest.mark.parametrize("chunking", [True, False], ids=["BDAT", "DATA"])
async def test_postfix_refuses_at_every_stage_by_a_policy_server(
    stage: Stage,
    pool_size: int,
    jobs: int,
    chunking: bool,  # noqa: FBT001
) -> None:
    env = {} if chunking else {"SMTP_CHUNKING": "off"}
    async with Postfix(refuse_sender_every=90) as relay:
        worker = await stage.run(SMTP_PORT=str(relay.port), SMTP_POOL_SIZE=str(pool_size), **RETRIES, **env)
        to = recipients(STAGES["postfix"], jobs)
        await every_job_ends_by_its_relays_reply(stage, worker, relay, to, chunking=chunking)


@pytest.mark.parametrize(("mechanism", "jobs"), [("PLAIN", 200), ("LOGIN", 50)])
async def test_postfix_with_tls_and_login_refuses_at_every_stage_by_access_maps(
    stage: Stage, tmp_path: Path, mechanism: str, jobs: int
) -> None:
    authority, login = Authority(tmp_path), ("otp", "pa:ss wörd")
    tls = authority.issue("127.0.0.1")
    async with Postfix(access=True, tls=tls, login=login, mechanism=mechanism) as relay:
        env = {"SMTP_TLS": "starttls", "SMTP_CA_FILE": str(authority.ca_file), "SMTP_AUTH": "login"}
        worker = await stage.run(SMTP_PORT=str(relay.port), SMTP_USER=login[0], SMTP_PASS=login[1], **env)
        to = recipients(STAGES["postfix"], jobs, (550, 554))
        await every_job_ends_by_its_relays_reply(stage, worker, relay, to, chunking=True)


async def test_postfix_with_implicit_tls_and_login_refuses_at_every_stage(stage: Stage, tmp_path: Path) -> None:
    arguments, env = secured(tmp_path, "implicit")
    async with Postfix(**arguments) as relay:
        worker = await stage.run(SMTP_PORT=str(relay.port), **env)
        await every_job_ends_by_its_relays_reply(stage, worker, relay, recipients(STAGES["postfix"]), chunking=True)


# with BDAT, Exim has no refusal before the content
@pytest.mark.parametrize(
    ("tls", "chunking", "stages"),
    [
        ("none", "auto", ("rcpt", "body")),
        ("none", "off", ("rcpt", "data", "body")),
        ("starttls", "auto", ("rcpt", "body")),
        ("implicit", "off", ("rcpt", "data", "body")),
    ],
)
async def test_exim_refuses_at_every_stage(
    stage: Stage, tmp_path: Path, tls: str, chunking: str, stages: tuple[str, ...]
) -> None:
    arguments, env = ({}, RETRIES) if tls == "none" else secured(tmp_path, tls)
    async with Exim(refuse_sender_every=90, **arguments) as relay:
        worker = await stage.run(SMTP_PORT=str(relay.port), SMTP_CHUNKING=chunking, **env)
        await every_job_ends_by_its_relays_reply(stage, worker, relay, recipients(stages))


async def test_opensmtpd_refuses_at_every_stage(stage: Stage) -> None:
    async with OpenSMTPD(refuse_sender_every=90) as relay:
        worker = await stage.run(SMTP_PORT=str(relay.port), **RETRIES)
        await every_job_ends_by_its_relays_reply(stage, worker, relay, recipients(STAGES["opensmtpd"]))


# by default, OpenSMTPD accepts 100 mails in one session
@pytest.mark.parametrize("tls", ["starttls", "implicit"])
async def test_opensmtpd_with_tls_and_login_refuses_at_every_stage_and_limits_each_session(
    stage: Stage, tmp_path: Path, tls: str
) -> None:
    arguments, env = secured(tmp_path, tls)
    async with OpenSMTPD(**arguments) as relay:
        worker = await stage.run(SMTP_PORT=str(relay.port), SMTP_POOL_SIZE="3", **env)
        await every_job_ends_by_its_relays_reply(stage, worker, relay, recipients(STAGES["opensmtpd"], 500))
        assert "Too many messages sent" in relay.log
        assert "circuit breaker open" not in worker.log
        assert relay.logins.keys() == {(LOGIN[0], "ok")}


async def test_postscreen_tests_the_client_and_costs_no_job(stage: Stage) -> None:
    async with Postfix(postscreen=True) as relay:
        worker = await stage.run(SMTP_PORT=str(relay.port), **RETRIES)
        await every_job_ends_by_its_relays_reply(stage, worker, relay, recipients(STAGES["postfix"]), chunking=True)
