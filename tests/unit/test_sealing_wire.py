"""How the broker package seals what it publishes and opens what it receives."""

import json
from base64 import urlsafe_b64decode
from pathlib import Path
from typing import Any

import pytest
from aio_pika import Message
from deliveries import Deliveries, MadeIds, Publishing
from faststream import BaseMiddleware
from in_memory import Start
from typer.testing import CliRunner

from otp_stream.broker import outgoing
from otp_stream.broker.headers import sign, verified
from otp_stream.broker.job_message import JobMessage, Reader
from otp_stream.broker.message import open_message
from otp_stream.broker.settle import Settler
from otp_stream.broker.topology import Topology
from otp_stream.broker.unread_moves import _tenant_and_timestamp
from otp_stream.cli import batch
from otp_stream.cli.main import cli
from otp_stream.client import OtpClient, OtpJob
from otp_stream.core.backoff import Backoff
from otp_stream.core.body_at_rest import at_rest
from otp_stream.core.dead_letter import outline
from otp_stream.core.otp_job import KeyMissingError
from otp_stream.core.possible_secrets import readable_job_id
from otp_stream.core.sealed_body import JOSE, Content, is_sealed
from otp_stream.core.sealing_keys import NO_KEYS, keys_of, new_jwk, read_keys

CODE, KEY = "739154", b"k" * 32
JWK = new_jwk("p256")
KEYS = keys_of(JWK)
PLAIN = json.dumps({"email": "user@example.com", "otp": CODE, "jobId": "j-1", "timestamp": 1_700_000_000_000}).encode()
SEALED = at_rest(Content(PLAIN), KEYS).body
WHOLE = at_rest(Content(b'{"email": 7, "otp": "739154"}', "text/x", "identity"), KEYS).body


def settler(publish: Publishing) -> Settler:
    backoff = Backoff(1000, 30_000, 3)
    return Settler(Topology("jobs", "otp", backoff), backoff, publish, lambda _: None, KEY, lambda: KEYS)


def signed(body: bytes) -> JobMessage:
    """Return a message of the lane of retries, signed by a worker."""
    headers: dict[str, Any] = {"x-otp-attempt": 1, "x-otp-job-id": "j-1", "x-otp-first-seen": 5}
    sign(headers, body, KEY)
    return Deliveries().message(body, "due", headers=headers)


@pytest.mark.parametrize("body", [PLAIN, SEALED])
async def test_a_renewed_message_is_sealed_and_its_signature_is_valid(body: bytes) -> None:
    publish = Publishing()
    assert await settler(publish).renew(signed(body), "otp.retry.due")
    (published,) = publish.tries
    assert CODE.encode() not in published.body
    assert OtpJob.from_bytes(published.body, keys=KEYS).otp == CODE
    ours = verified(published.headers, published.body, [KEY])
    assert ours is not None
    assert ours["x-otp-job-id"] == "j-1"


async def test_a_message_of_a_producer_is_renewed_without_a_signature() -> None:
    publish = Publishing()
    assert await settler(publish).renew(Deliveries().message(PLAIN), "jobs")
    assert publish.tries[0].headers == {}


def test_a_sealed_body_is_opened_with_its_properties_and_sealed_again() -> None:
    raw = Deliveries().delivered(WHOLE, content_type=JOSE)
    open_message(raw, KEYS)
    assert (raw.body, raw.content_type, raw.content_encoding) == (
        b'{"email": 7, "otp": "739154"}', "text/x", "identity",
    )  # fmt: skip
    copy = outgoing.finished(outgoing.unchanged(raw), KEYS, None)
    assert (copy.content_type, copy.content_encoding, is_sealed(copy.body)) == (JOSE, None, True)


def test_a_sealed_body_without_its_key_stays_sealed() -> None:
    raw = Deliveries().delivered(WHOLE, content_type=JOSE)
    open_message(raw, NO_KEYS)
    assert (raw.body, raw.content_type, raw.opened) == (WHOLE, JOSE, False)


def test_headers_and_properties_with_the_code_are_not_published_again() -> None:
    raw = Deliveries().delivered(
        PLAIN, headers={"note": "739 154", CODE: 1, "kept": "x"}, message_id=f"m-{CODE}", correlation_id="c-1"
    )
    for keys, kept in ((KEYS, {"kept": "x"}), (NO_KEYS, raw.headers)):
        copy = outgoing.finished(outgoing.unchanged(raw), keys, None, CODE)
        assert copy.headers == kept
        assert copy.message_id == (None if keys else f"m-{CODE}")
        assert copy.correlation_id == "c-1"


@pytest.mark.parametrize("name", ["content_type", "content_encoding"])
def test_a_property_with_the_code_is_in_no_sealed_body(name: str) -> None:
    body = json.dumps({"email": "ada@example.com", "otp": CODE, "note": CODE}).encode()
    copy = outgoing.finished(Message(body, headers={}, **{name: f"x/{CODE}"}), KEYS, None, CODE)
    header = urlsafe_b64decode(copy.body.partition(b".")[0] + b"==")
    assert CODE.encode() not in header
    assert CODE not in f"{copy.content_type} {copy.content_encoding}"


@pytest.mark.parametrize(
    "body",
    [PLAIN, SEALED.replace(b'{"email"', b'{"otp":null,"email"'), SEALED.replace(b"otpSealed", b"otp_sealed"), b"{}"],
)
def test_with_keys_only_a_job_without_a_plain_code_is_moved_unread(body: bytes) -> None:
    assert _tenant_and_timestamp(SEALED, identified=True, sealed=True) == (None, 1_700_000_000_000)
    assert _tenant_and_timestamp(body, identified=True, sealed=False)[0] is None
    with pytest.raises(ValueError, match="plain code"):
        _tenant_and_timestamp(body, identified=True, sealed=True)


async def test_the_id_of_a_job_without_one_is_the_same_for_its_sealed_copy() -> None:
    body = json.dumps({"email": "user@example.com", "otp": CODE, "timestamp": 1_700_000_000_000}).encode()
    reader = Reader(15, KEY, MadeIds(), keys=lambda: KEYS)
    ids = {
        await reader.job_id(Deliveries().message(it), reader.read(it))
        for it in (body, at_rest(Content(body), KEYS).body)
    }
    assert len(ids) == 1


def test_a_sealed_code_hides_no_job_id() -> None:
    assert readable_job_id(SEALED) == "j-1"
    token = json.loads(SEALED)["otpSealed"]
    assert readable_job_id(json.dumps({"jobId": token[:20], "otpSealed": token[:20]}).encode()) is None


def test_an_outline_names_what_is_sealed() -> None:
    assert "sealed as a whole" in str(outline(WHOLE))
    shown = outline(SEALED)
    assert isinstance(shown, dict)
    assert shown["otpSealed"] == f"text of {len(json.loads(SEALED)['otpSealed'])} characters"
    assert shown["jobId"] == "j-1"


async def test_every_way_through_the_worker_opens_a_sealed_job(start_stream: Start) -> None:
    now = json.dumps({"email": "user@example.com", "otp": CODE, "jobId": "j-1"}).encode()
    sealed = at_rest(Content(now), KEYS).body
    direct = await start_stream(sealing_keys=json.dumps(JWK))
    await direct.publish(sealed)
    extended = await start_stream(lambda it: it.add_middleware(_Passing), sealing_keys=json.dumps(JWK))
    await extended.publish(sealed)
    for stream in (direct, extended):
        assert stream.outcomes == ["sent"]
        assert CODE in stream.relay.accepted[0].content.decode()
    without = await start_stream()
    await without.publish(SEALED)
    await without.publish(WHOLE)
    assert [it.headers["x-otp-reason"] for it in without.dead] == ["key_missing", "key_missing"]
    assert [it.body for it in without.dead] == [SEALED, WHOLE]
    assert without.events[0]["jobId"] == "j-1"


class _Passing(BaseMiddleware):
    """A middleware that does nothing."""


# producers and commands


@pytest.mark.parametrize("key", [KEYS.public(), json.dumps(KEYS.public()), JWK, KEYS])
def test_a_client_takes_a_key_in_every_form(key: Any) -> None:
    assert OtpClient(sealing_key=key)._keys.first.kid == JWK["kid"]


def test_a_client_refuses_a_key_that_cannot_seal() -> None:
    with pytest.raises(ValueError, match=r"^sealing_key: key 1: has another kty"):
        OtpClient(sealing_key={"kty": "RSA"})


def test_jobs_of_a_file_may_be_sealed() -> None:
    no_id = at_rest(Content(b'{"email": "user@example.com", "otp": "739154"}'), KEYS).body
    jobs, bad = batch.read([SEALED, no_id], KEYS)
    assert bad == []
    assert [OtpJob.from_bytes(body, keys=KEYS).job_id for _, body in jobs] == [job_id for job_id, _ in jobs]
    jobs, bad = batch.read([SEALED, no_id, WHOLE], NO_KEYS)
    assert jobs == [("j-1", SEALED)]
    assert [it.partition(":")[2].strip().partition(":")[0] for it in bad] == ["jobId", "body"]


def test_commands_make_keys_add_one_and_show_the_public_ones(tmp_path: Any) -> None:
    run, file = CliRunner(), tmp_path / "keys.json"
    file.write_text(run.invoke(cli, ["sealing", "new", "--kind", "x25519"]).stdout)
    kid = read_keys(file.read_text()).first.kid
    file.chmod(0o644)
    assert run.invoke(cli, ["sealing", "new", "--kind", "oct", "--add-to", str(file)]).stdout == ""
    assert file.stat().st_mode & 0o777 == 0o640
    more = file.read_text()
    first, second = read_keys(more).keys
    assert (first.alg, second.alg, first.kid) == ("ECDH-ES", "dir", kid)
    public = run.invoke(cli, ["sealing", "public"], env={"SEALING_KEYS": more})
    assert json.loads(public.stdout) == read_keys(more).public()
    assert run.invoke(cli, ["sealing", "public"]).exit_code == 2
    file.write_text('{"keys": [{"kty": "RSA"}]}')
    for path in (file, tmp_path / "none"):
        assert run.invoke(cli, ["sealing", "new", "--add-to", str(path)]).exit_code == 2


def test_the_new_key_is_made_the_first_one_and_no_other_user_can_read_the_file(tmp_path: Path) -> None:
    run, file = CliRunner(), tmp_path / "keys.json"
    file.write_text(run.invoke(cli, ["sealing", "new"]).stdout)
    file.chmod(0o600)
    old = read_keys(file.read_text()).first.kid
    assert run.invoke(cli, ["sealing", "new", "--add-to", str(file)]).exit_code == 0
    assert run.invoke(cli, ["sealing", "promote", str(file)]).exit_code == 0
    first, last = read_keys(file.read_text()).keys
    assert (last.kid, first.kid != old) == (old, True)
    assert file.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [file]


async def test_a_client_publishes_no_code_in_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Content] = []

    class Link:
        publishing = type("Channel", (), {"is_closed": False})

        async def publish(self, content: Content, *_: object) -> None:
            sent.append(content)

    client = OtpClient(sealing_key=KEYS.public())
    client._link = Link()  # type: ignore[assignment] # only publishes
    await client.publish(OtpJob(email="User@Example.com", otp=CODE, job_id="j-1"))
    await client.publish(PLAIN)
    await client.publish(SEALED)
    await client.publish(b"no job 739154")
    assert not any(CODE.encode() in it.body for it in sent)
    assert [OtpJob.from_bytes(it.body, keys=KEYS).otp for it in sent[:3]] == [CODE] * 3
    assert sent[3].content_type == JOSE
    with pytest.raises(KeyMissingError):
        OtpJob.from_bytes(sent[0].body)
