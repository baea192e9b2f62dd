"""Logins by SCRAM-SHA-256, by one mechanism alone, and by our certificate."""

import asyncio
import ssl
import threading
import time
from base64 import b64decode, b64encode
from functools import partial
from pathlib import Path

import pytest
import uvloop
from certificates import Authority
from cryptography.hazmat.primitives import serialization
from scramp import ScramClient
from smtp_relay import ManualRelay, ScriptedRelay, client, send

from otp_stream.core.masking import contains_secret
from otp_stream.core.outcome import Accepted, Outcome, Unavailable
from otp_stream.relay import SmtpRelay, login
from otp_stream.relay.protocol import SmtpProtocol

USER, PASSWORD = "user@example.com", "hünter22"
EVERY = "LOGIN PLAIN CRAM-MD5 SCRAM-SHA-256"


def commands(relay: ScriptedRelay) -> list[str]:
    """Return the mechanism of each AUTH."""
    return [line.split()[1] for _, line in relay.log if line.startswith("AUTH")]


async def refusal(smtp: SmtpRelay) -> str:
    outcome = await send(smtp)
    assert isinstance(outcome, Unavailable)
    assert outcome.reason in {"login_refused", "tls_failed"}
    assert PASSWORD not in outcome.error
    return outcome.error


@pytest.mark.parametrize("step", ["auth", "mail", "rcpt", "data", "body"])
@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
async def test_a_relay_that_quotes_the_login_shows_no_password(mechanism: str, step: str) -> None:
    password = "Wrong@Horse/7-battery"
    forms = (password, b64encode(password.encode()).decode(), b64encode(f"\0{USER}\0{password}".encode()).decode())
    for form in forms:
        async with ScriptedRelay(login=(USER, password), mechanisms=mechanism) as relay:
            relay.always(step, f"554-5.7.0 bad line\r\n554 5.7.0 {form} was not understood")
            async with client(relay, user=USER, password=password) as smtp:
                outcome = await send(smtp)
        assert "bad line" in repr(outcome)
        assert "was not understood" in repr(outcome)
        assert not contains_secret(repr(outcome), "", password, partial=True)


@pytest.mark.parametrize("place", ["in the command", "in a response"])
async def test_scram_is_preferred_and_shows_no_password(place: str) -> None:
    async with ScriptedRelay(
        login=(USER, PASSWORD), mechanisms=EVERY, initial_response=place == "in the command"
    ) as relay:
        async with client(relay, user=USER, password=PASSWORD) as smtp:
            assert isinstance(await send(smtp), Accepted)
        assert commands(relay) == ["SCRAM-SHA-256"]


def test_the_example_of_rfc_7677(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(login, "ScramClient", partial(ScramClient, c_nonce="rOprNGfwEbeRWgbNEkqO"))
    dialogue = login._scram("user", "pencil")
    nonce = "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
    assert next(dialogue) == "n,,n=user,r=rOprNGfwEbeRWgbNEkqO"
    proof = "p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
    assert dialogue.send(f"{nonce},s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096") == f"c=biws,{nonce},{proof}"
    assert dialogue.send("v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=") == ""


async def test_where_scram_is_refused_the_next_mechanism_is_used_from_then_on() -> None:
    async with ScriptedRelay(login=(USER, PASSWORD), mechanisms=EVERY) as relay:
        relay.scram_iterations = 5000
        relay.then("auth", "535 5.7.8 no verifier for this user")
        async with client(relay, user=USER, password=PASSWORD) as smtp:
            assert isinstance(await send(smtp), Accepted)
            relay.cut()
            assert isinstance(await send(smtp), Accepted)
        assert commands(relay) == ["SCRAM-SHA-256", "PLAIN", "PLAIN"]


async def test_a_wrong_password_is_refused_by_scram() -> None:
    async with (
        ScriptedRelay(login=(USER, "other"), mechanisms="SCRAM-SHA-256") as relay,
        client(relay, user=USER, password=PASSWORD) as smtp,
    ):
        assert await refusal(smtp) == "535 5.7.8 authentication credentials invalid (to AUTH)"


@pytest.mark.parametrize(
    "changes", [{"scram_lies": True}, {"scram_iterations": 20_000_000}, {"scram_iterations": 1}, {"scram_nonce": ""}]
)
async def test_a_relay_that_does_not_prove_that_it_knows_the_password_gets_no_mail(changes: dict[str, object]) -> None:
    async with ScriptedRelay(login=(USER, PASSWORD), mechanisms="SCRAM-SHA-256", **changes) as relay:
        async with client(relay, user=USER, password=PASSWORD) as smtp:
            error = await refusal(smtp)
        assert error == "the relay answers SCRAM-SHA-256 wrongly: it may not know the password (at AUTH)"
        assert relay.accepted == []


@pytest.mark.parametrize("challenged", [False, True])
async def test_a_relay_that_accepts_scram_without_its_proof_gets_no_mail(*, challenged: bool) -> None:
    async with ManualRelay() as relay, client(relay, user=USER, password=PASSWORD) as smtp:
        sending = asyncio.create_task(refusal(smtp))
        connection = await relay.connection()
        await connection.reply("220 relay.example")
        await connection.expect(b"EHLO worker.example\r\n")
        await connection.reply("250-relay.example", "250 AUTH SCRAM-SHA-256")
        command = (await connection.expect_line()).split()
        if challenged:
            nonce = b64decode(command[2]).decode().rpartition("r=")[2]
            first = f"r={nonce}abc,s={b64encode(bytes(16)).decode()},i=4096"
            await connection.reply(f"334 {b64encode(first.encode()).decode()}")
            await connection.expect_line()
        await connection.reply("235 2.7.0 welcome")
        assert await sending == "the relay answers SCRAM-SHA-256 wrongly: it may not know the password (at AUTH)"


@pytest.mark.parametrize("challenge", ["!", "x=1", "r=,s=,i=", "r=abc,s=!!!,i=4096", "r=abc,s=MTIz", "e=other-error"])
def test_a_challenge_that_is_not_scram_is_an_error_of_scram(challenge: str) -> None:
    dialogue = login._scram(USER, PASSWORD)
    next(dialogue)
    with pytest.raises(login.SCRAM_ERRORS):
        dialogue.send(challenge)


@pytest.mark.parametrize("count", ["2000001", "2147483647", "9" * 5_000])
def test_a_relay_that_asks_for_too_many_iterations_keeps_no_thread_busy(count: str) -> None:
    dialogue = login._scram(USER, PASSWORD)
    nonce = next(dialogue).rpartition("r=")[2]
    began = time.process_time()
    with pytest.raises(ValueError, match=r"too many iterations|Exceeds the limit"):
        dialogue.send(f"r={nonce}abc,s=MTIzNDU2Nzg5MDEyMzQ1Ng==,i={count}")
    assert time.process_time() - began < 0.1


@pytest.mark.parametrize("last", [(), ("421 4.3.2 bye",)], ids=["alone", "after 421"])
def test_a_connection_that_is_lost_during_a_login_opens_the_circuit_breaker(
    monkeypatch: pytest.MonkeyPatch, last: tuple[str, ...]
) -> None:
    lost = threading.Event()
    respond, connection_lost = login._next, SmtpProtocol.connection_lost

    def respond_late(dialogue: login.Dialogue, challenge: str) -> str | None:
        assert lost.wait(5)
        return respond(dialogue, challenge)

    def note_loss(protocol: SmtpProtocol, exc: Exception | None) -> None:
        connection_lost(protocol, exc)
        lost.set()

    monkeypatch.setattr(login, "_next", respond_late)
    monkeypatch.setattr(SmtpProtocol, "connection_lost", note_loss)

    async def main() -> tuple[Outcome | None, str, int]:
        async with ManualRelay() as relay, client(relay, user=USER, password=PASSWORD) as smtp:
            sending = asyncio.create_task(send(smtp))
            connection = await relay.connection()
            await connection.reply("220 relay.example")
            await connection.expect(b"EHLO worker.example\r\n")
            await connection.reply("250-relay.example", "250 AUTH LOGIN")
            await connection.expect(b"AUTH LOGIN\r\n")
            await connection.reply("334 VXNlcm5hbWU6", *last)
            connection.close()
            await asyncio.wait({sending}, timeout=5)
            upstream = smtp._upstreams[0]
            return sending.result() if sending.done() else None, upstream.breaker.state, upstream.availability.owed

    # a worker runs on uvloop; unlike asyncio's own loop, it raises on a write to a closed transport
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        outcome, breaker, owed = runner.run(main())
    assert isinstance(outcome, Unavailable)
    assert outcome.error == ("421 4.3.2 bye (to AUTH)" if last else "the connection was lost (at AUTH)")
    assert (breaker, owed) == ("open", 0)


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-256", "PLAIN", "CRAM-MD5"])
async def test_one_mechanism_can_be_insisted_on(mechanism: str) -> None:
    login_of = {"user": USER, "password": PASSWORD, "mechanism": mechanism}
    async with (
        ScriptedRelay(login=(USER, PASSWORD), mechanisms=EVERY) as relay, client(relay, **login_of) as smtp,
    ):  # fmt: skip
        assert isinstance(await send(smtp), Accepted)
        assert commands(relay) == [mechanism]
    async with ScriptedRelay(login=(USER, PASSWORD), mechanisms="LOGIN") as relay, client(relay, **login_of) as smtp:
        assert await refusal(smtp) == f"the relay offers no login by {mechanism} (it offers LOGIN); see SMTP_AUTH"


def requiring(authority: Authority, mode: str = "starttls", **changes: object) -> ScriptedRelay:
    """A relay that requires a certificate of its clients."""
    context = authority.server("127.0.0.1")
    context.load_verify_locations(authority.ca_file)
    context.verify_mode = ssl.CERT_REQUIRED
    return ScriptedRelay(tls=context, mode=mode, **changes)


@pytest.mark.parametrize("user", [None, USER])
async def test_the_certificate_is_the_login(tmp_path: Path, user: str | None) -> None:
    authority = Authority(tmp_path)
    tls = {"tls": "starttls", "ca_file": authority.ca_file, "certificate": authority.issue("worker")}
    async with requiring(authority, login=(user or "", ""), mechanisms="PLAIN EXTERNAL") as relay:
        async with client(relay, user=user, mechanism="EXTERNAL", **tls) as smtp:
            assert isinstance(await send(smtp), Accepted)
        assert ("AUTH EXTERNAL =" in [line for _, line in relay.log]) == (user is None)


async def test_a_certificate_and_a_password_may_both_be_required(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    tls = {"tls": "starttls", "ca_file": authority.ca_file}
    async with requiring(authority, login=(USER, PASSWORD)) as relay:
        async with client(relay, user=USER, password=PASSWORD, certificate=authority.issue("worker"), **tls) as smtp:
            assert isinstance(await send(smtp), Accepted)
        async with client(relay, user=USER, password=PASSWORD, **tls) as smtp:
            outcome = await send(smtp)
            assert isinstance(outcome, Unavailable)
            assert outcome.error.endswith("; it may require a client certificate: SMTP_CERT_FILE")


@pytest.mark.parametrize("mode", ["starttls", "implicit"])
async def test_a_certificate_of_an_unknown_authority_is_named(tmp_path: Path, mode: str) -> None:
    (tmp_path / "other").mkdir()
    authority, other = Authority(tmp_path), Authority(tmp_path / "other")
    tls = {"tls": mode, "ca_file": authority.ca_file, "certificate": other.issue("worker")}
    async with requiring(authority, mode) as relay, client(relay, **tls) as smtp:
        outcome = await send(smtp)
        assert isinstance(outcome, Unavailable)
        assert outcome.error.endswith("; it may refuse the certificate in SMTP_CERT_FILE")


@pytest.mark.parametrize("broken", ["certificate", "key", "encrypted"])
async def test_a_certificate_that_cannot_be_used_is_named(tmp_path: Path, broken: str) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.issue("worker")
    if broken == "encrypted":
        loaded = serialization.load_pem_private_key(key.read_bytes(), None)
        key.write_bytes(
            loaded.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.BestAvailableEncryption(b"hunter2"),
            )
        )
    else:
        (certificate if broken == "certificate" else key).write_text("no PEM")
    async with requiring(authority) as relay:
        tls = {"tls": "starttls", "ca_file": authority.ca_file, "certificate": (certificate, key)}
        async with client(relay, **tls) as smtp:
            error = await refusal(smtp)
    assert error.startswith("SMTP_CERT_FILE and SMTP_KEY_FILE cannot be used: ")
