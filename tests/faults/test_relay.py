"""The relay fails at every step and in every way: nothing is lost, and only an unknown outcome makes a copy."""

from collections.abc import Callable
from pathlib import Path

import pytest
from certificates import Authority
from conftest import Stage
from ledger import Ledger
from smtp_relay import CLOSE, RESET, SILENCE, Act, ScriptedRelay
from worker import Worker

JOBS = 60
TIMES = 3
TAKEN_THEN_CLOSED = Act("", then="close", keep=True)
TAKEN_THEN_RESET = Act("", then="reset", keep=True)

Fault = Callable[[ScriptedRelay], None]


def at(step: str, act: str | Act, times: int = TIMES) -> Fault:
    """Return a fault that happens so many times, and then no more."""
    return lambda relay: relay.then(step, *[act] * times)


def at_each(step: str, act: str | Act, count: int) -> Fault:
    """Return a fault that happens once for each of so many jobs."""

    def of(relay: ScriptedRelay) -> None:
        for number in range(count):
            relay.then(step, act, to=f"job{number}@example.com")

    return of


def chunking(fault: Fault) -> Fault:
    """Return the same fault of a relay that offers CHUNKING."""

    def of(relay: ScriptedRelay) -> None:
        relay.keywords = (*relay.keywords, "CHUNKING")
        fault(relay)

    return of


# name, fault, most duplicates; a mail whose outcome is unknown twice becomes a dead letter
FAULTS: dict[str, tuple[Fault, int]] = {
    "closes after the greeting": (at("greeting", Act(then="close")), 0),
    "replies 421 instead of a greeting": (at("greeting", Act("421 4.3.2 not now", then="close")), 0),
    "replies 421 at MAIL": (at("mail", Act("421 4.3.2 closing", then="close")), 0),
    "resets at MAIL": (at("mail", RESET), 0),
    "closes at RCPT": (at("rcpt", CLOSE), 0),
    "closes before the content": (at("data", CLOSE), 0),
    "closes after the final dot, without accepting": (at_each("body", CLOSE, TIMES), 0),
    "closes after accepting, before the 250": (at_each("body", TAKEN_THEN_CLOSED, TIMES), TIMES),
    "resets after accepting, before the 250": (at_each("body", TAKEN_THEN_RESET, TIMES), TIMES),
    "replies 451 at MAIL": (at("mail", "451 4.3.0 later"), 0),
    "replies 451 at RCPT": (at_each("rcpt", "451 4.3.0 later", 20), 0),
    "replies 451 at DATA": (at("data", "451 4.3.0 later"), 0),
    "replies 451 at the final dot": (at("body", "451 4.3.0 later"), 0),
    "replies 452 too many recipients": (at("rcpt", "452 4.5.3 too many recipients", 2), 0),
    "replies 421 too many connections": (at("greeting", Act("421 4.7.0 too many connections", then="close")), 0),
    "throttles": (at("rcpt", "450 4.7.0 rate limit exceeded", 2), 0),
    "replies 554 instead of a greeting": (at("greeting", Act("554 5.7.1 go away", then="close")), 0),
    "replies with an invalid line": (at("mail", "what?"), 0),
    "replies 421 at EHLO": (at("ehlo", Act("421 4.3.2 busy", then="close")), 0),
    "replies 451 at EHLO": (at("ehlo", "451 4.3.0 later"), 0),
    "replies to some after two seconds": (at("body", Act(delay_s=2.0), 10), 0),
    "offers CHUNKING, resets at MAIL": (chunking(at("mail", RESET)), 0),
    "offers CHUNKING, closes at RCPT": (chunking(at("rcpt", CLOSE)), 0),
    "offers CHUNKING, replies 421 at MAIL": (chunking(at("mail", Act("421 4.3.2 closing", then="close"))), 0),
    "offers CHUNKING, closes after the chunk, without accepting": (chunking(at_each("body", CLOSE, TIMES)), 0),
    "offers CHUNKING, closes after accepting, before the 250": (
        chunking(at_each("body", TAKEN_THEN_CLOSED, TIMES)),
        TIMES,
    ),
    "offers CHUNKING, replies 451 to BDAT": (chunking(at("body", "451 4.3.0 later")), 0),
    "offers CHUNKING, replies 502 to BDAT": (chunking(at("body", "502 5.5.1 not implemented", 1)), 0),
    "offers CHUNKING, replies to some after two seconds": (chunking(at("body", Act(delay_s=2.0), 10)), 0),
}


@pytest.mark.parametrize("name", FAULTS)
async def test_the_relay(stage: Stage, name: str) -> None:
    fault, most = FAULTS[name]
    ledger = Ledger(stage)
    fault(stage.relay)
    worker = stage.worker(SMTP_POOL_SIZE="5", BASE_DELAY_MS="100", MAX_RETRIES="3")
    await worker.start()
    await ledger.publish(JOBS)
    ledger.fault_ended()
    await ledger.balance(30)
    row = ledger.row(f"relay {name}")
    assert row.lost == 0
    assert row.duplicated <= most
    assert ledger.copies_are_identical
    assert ledger.reasons.total() == 0


async def test_it_takes_the_mail_and_does_not_reply_twice(stage: Stage) -> None:
    ledger = Ledger(stage)
    stage.relay.always("body", TAKEN_THEN_CLOSED, to="job0@example.com")
    worker = stage.worker(SMTP_POOL_SIZE="5", BASE_DELAY_MS="100", MAX_RETRIES="3")
    await worker.start()
    await ledger.publish(JOBS)
    await ledger.balance(30)
    row = ledger.row("relay closes after accepting, before the 250, every time", may_end_twice=1)
    assert (row.lost, ledger.duplicated) == (0, {"job0"})
    assert sum(mail.recipient == "job0@example.com" for mail in stage.relay.accepted) == 2  # sent again once
    assert ledger.reasons == {"retries_exhausted": 1}
    assert ledger.copies_are_identical


async def test_it_may_have_the_mail_and_nothing_is_to_be_sent_twice(stage: Stage) -> None:
    ledger = Ledger(stage)
    stage.relay.then("body", *[TAKEN_THEN_CLOSED] * TIMES)
    worker = stage.worker(SMTP_POOL_SIZE="5", SMTP_UNCERTAIN="dead")
    await worker.start()
    await ledger.publish(JOBS)
    await ledger.balance(30)
    row = ledger.row("relay closes after accepting, before the 250; SMTP_UNCERTAIN=dead", may_end_twice=TIMES)
    assert (row.lost, row.duplicated) == (0, 0)
    assert ledger.reasons == {"retries_exhausted": TIMES}


@pytest.mark.parametrize("step", ["mail", "rcpt", "data", "body"])
async def test_a_5xx_for_some_ends_just_them(stage: Stage, step: str) -> None:
    ledger = Ledger(stage)
    if step == "rcpt":
        for number in range(TIMES):
            stage.relay.always("rcpt", "550 5.1.1 no such user", to=f"job{number}@example.com")
    else:
        stage.relay.then(step, *["554 5.6.0 no"] * TIMES)
    worker = stage.worker(SMTP_POOL_SIZE="5", BASE_DELAY_MS="100")
    await worker.start()
    await ledger.publish(JOBS)
    ledger.fault_ended()
    await ledger.balance(30)
    row = ledger.row(f"relay replies 5xx to some at {step.upper() if step != 'body' else 'the final dot'}")
    assert (row.lost, row.duplicated) == (0, 0)
    assert ledger.reasons == {"rejected": TIMES}
    assert "circuit breaker open" not in worker.log


async def test_the_relay_refuses_connections_for_a_while(stage: Stage) -> None:
    ledger = Ledger(stage)
    worker = stage.worker(SMTP_POOL_SIZE="5")
    await worker.start()
    await stage.relay.stop()
    await ledger.publish(JOBS)
    await worker.wait_log("circuit breaker open")
    await worker.wait_log("circuit breaker open", times=3)  # two failed probes
    await stage.relay.start()
    ledger.fault_ended()
    await ledger.balance(30)
    row = ledger.row("relay refuses connections until two probes have failed")
    assert (row.lost, row.duplicated, ledger.reasons.total()) == (0, 0, 0)
    assert '"event":"job will be retried"' not in worker.log


async def test_the_relay_answers_byte_by_byte(stage: Stage) -> None:
    ledger = Ledger(stage)
    stage.relay.byte_by_byte = True
    stage.relay.byte_s = 0.02
    worker = stage.worker(SMTP_POOL_SIZE="20")
    await worker.start()
    await ledger.publish(JOBS)
    ledger.fault_ended()
    await ledger.balance(60)
    row = ledger.row("relay sends one byte at a time, 50 a second")
    assert (row.lost, row.duplicated, ledger.reasons.total()) == (0, 0, 0)


SETTING_UP = {"replies 454": Act("454 4.7.0 not now"), "closes": CLOSE, "never replies": SILENCE}


async def _behind_tls_and_login(stage: Stage, folder: Path) -> Worker:
    authority = Authority(folder)
    stage.relay.mode, stage.relay.tls, stage.relay.login = "starttls", authority.server("127.0.0.1"), ("otp", "right")
    worker = stage.worker(
        SMTP_POOL_SIZE="8", SMTP_TLS="starttls", SMTP_CA_FILE=str(authority.ca_file),
        SMTP_AUTH="login", SMTP_USER="otp", SMTP_PASS="right",
    )  # fmt: skip
    await worker.start()
    return worker


@pytest.mark.parametrize("does", ["replies 454", "closes", pytest.param("never replies", marks=pytest.mark.waits)])
@pytest.mark.parametrize("step", ["starttls", "auth"])
async def test_the_relay_fails_while_a_connection_is_set_up(stage: Stage, tmp_path: Path, step: str, does: str) -> None:
    ledger = Ledger(stage)
    stage.relay.then(step, *[SETTING_UP[does]] * 2)
    worker = await _behind_tls_and_login(stage, tmp_path)
    await ledger.publish(JOBS)
    ledger.fault_ended()
    await ledger.balance(60)
    row = ledger.row(f"relay {does} at {step.upper()}")
    assert (row.lost, row.duplicated, ledger.reasons.total()) == (0, 0, 0)
    assert "job will be retried" not in worker.log


@pytest.mark.waits
async def test_the_relay_never_answers_some_commands(stage: Stage) -> None:
    """Takes a minute: the mails in flight there wait for our time limits."""
    ledger = Ledger(stage)
    for step in ("greeting", "ehlo", "mail", "rcpt", "data"):
        stage.relay.then(step, SILENCE)
    worker = stage.worker(SMTP_POOL_SIZE="8")
    await worker.start()
    await ledger.publish(JOBS)
    await stage.relay.wait_accepted(JOBS - 3, timeout=30)  # the other jobs are sent
    ledger.fault_ended()
    await ledger.balance(90)
    row = ledger.row("relay never replies: greeting, EHLO, MAIL, RCPT, DATA, once each")
    assert (row.lost, row.duplicated, ledger.reasons.total()) == (0, 0, 0)
    assert "job will be retried" not in worker.log


CERTIFICATES: dict[str, tuple[tuple[str, ...], bool]] = {
    "expired": (("127.0.0.1",), True),
    "for another host": (("relay.example",), False),
}


@pytest.mark.parametrize("name", CERTIFICATES)
async def test_the_certificate_is_not_to_be_trusted_for_a_while(stage: Stage, tmp_path: Path, name: str) -> None:
    hosts, expired = CERTIFICATES[name]
    authority = Authority(tmp_path)
    ledger = Ledger(stage)
    stage.relay.mode, stage.relay.tls = "starttls", authority.server(*hosts, expired=expired)
    worker = stage.worker(SMTP_POOL_SIZE="5", SMTP_TLS="starttls", SMTP_CA_FILE=str(authority.ca_file))
    await worker.start()
    await ledger.publish(JOBS)
    await worker.wait_log('"reason":"tls_failed"')
    stage.relay.tls = authority.server("127.0.0.1")
    ledger.fault_ended()
    await ledger.balance(30)
    row = ledger.row(f"relay's certificate {name}, then replaced")
    assert (row.lost, row.duplicated, ledger.reasons.total()) == (0, 0, 0)
    assert "job will be retried" not in worker.log
    assert "MAIL" not in stage.relay.commands(1)


async def test_our_login_is_refused_for_a_while(stage: Stage) -> None:
    ledger = Ledger(stage)
    stage.relay.login = ("otp", "another")
    worker = stage.worker(SMTP_POOL_SIZE="5", SMTP_AUTH="login", SMTP_USER="otp", SMTP_PASS="right")
    await worker.start()
    await ledger.publish(JOBS)
    await worker.wait_log('"reason":"login_refused"')
    stage.relay.login = ("otp", "right")
    ledger.fault_ended()
    await ledger.balance(30)
    row = ledger.row("relay refuses the login, then accepts it")
    assert (row.lost, row.duplicated, ledger.reasons.total()) == (0, 0, 0)
    assert "job will be retried" not in worker.log
    # refused on each connection that was being set up, once for each probe, then one for each connection
    probes = worker.log.count("circuit breaker half-open")
    assert stage.relay.commands().count("AUTH") <= 5 + probes + 5
