"""What a sweep does with dead letters that are sealed, and with those that it seals."""

import json
from typing import Any

import pytest
from aio_pika import Message
from deliveries import Deliveries
from sweeps import CODE, DAY, KEY, MINUTE, dead_letter, swept

from otp_stream.broker import outgoing
from otp_stream.broker.headers import verified
from otp_stream.clock import now_ms
from otp_stream.core.otp_job import OtpJob
from otp_stream.core.sealed_body import Content, is_sealed, seal_body
from otp_stream.core.sealing_keys import NO_KEYS, read_keys

SEALING = read_keys(json.dumps({"kty": "oct", "kid": "a", "k": "Wm3vT0cX5qLrYk8dJ1nBhFzUeP7sGiA2oQ9tRxVw4lM"}))


async def test_a_sealed_code_is_erased_with_its_key_and_without() -> None:
    for plain, reason in ((dead_letter().body, "rejected"), (b"no json 4938170625", "malformed")):
        at_rest = outgoing.finished(Message(plain, headers={}), SEALING, None)
        for known in (SEALING, NO_KEYS):
            message = dead_letter(died=16 * MINUTE, body=at_rest.body, **{"x-otp-reason": reason})
            action, copy, _ = await swept(message, keys=known)
            assert action == "erased"
            assert copy is not None
            assert b"eyJ" not in copy.body
            assert CODE.encode() not in copy.body
            again = Deliveries().delivered(copy.body, headers=dict(copy.headers))
            action, _, sweep = await swept(again, keys=known)
            assert action == "kept"
            read = sweep.dead_letters.reader.read(again).dead_letter
            assert (read.erased_ms is not None, read.verified, read.is_job) == (True, True, reason == "rejected")


async def test_a_code_that_is_sealed_with_a_missing_key_and_in_another_field_is_erased() -> None:
    sealed = json.loads(outgoing.finished(Message(dead_letter().body, headers={}), SEALING, None).body)
    body = json.dumps(sealed | {"note": f"code {CODE}"}).encode()
    action, copy, _ = await swept(dead_letter(died=16 * MINUTE, body=body, **{"x-otp-reason": "key_missing"}))
    assert action == "erased"
    assert copy is not None
    assert CODE.encode() not in copy.body
    assert json.loads(copy.body)["email"] == "ada@example.com"


@pytest.mark.parametrize("reason", ["key_missing", "rejected"])
async def test_a_job_that_is_sealed_as_a_whole_is_kept_while_its_key_is_missing(reason: str) -> None:
    body = seal_body(SEALING, Content(dead_letter(minutes=600).body)).body
    for died, with_key in ((16, "kept"), (601, "erased")):
        message = dead_letter(died=died * MINUTE, body=body, **{"x-otp-reason": reason})
        assert (await swept(message))[0] == "kept"
        assert (await swept(message, keys=SEALING))[0] == with_key
    assert (await swept(dead_letter(died=8 * DAY, body=body)))[0] == "too_old"


async def test_a_copy_with_its_code_is_sealed() -> None:
    for message in (dead_letter(deliveries=10), Deliveries().delivered(dead_letter().body)):
        action, copy, _ = await swept(message, keys=SEALING)
        assert action == "copied"
        assert copy is not None
        assert json.loads(copy.body)["otpSealed"]
        assert CODE.encode() not in copy.body
        assert verified(copy.headers, copy.body, [KEY]) is not None


@pytest.mark.parametrize("deliveries", [0, 10])
@pytest.mark.parametrize("plain", [dead_letter().body, b"no json 4938170625"])
async def test_a_forged_erasure_has_no_sealed_body_published_in_plain_text(plain: bytes, deliveries: int) -> None:
    sealed = seal_body(SEALING, Content(plain)).body
    headers: dict[str, Any] = {"x-otp-code-erased": now_ms()}
    if deliveries:
        headers |= {"x-delivery-count": deliveries, "x-otp-first-seen": now_ms()}
    action, copy, _ = await swept(Deliveries().delivered(sealed, headers=headers), keys=SEALING)
    assert action == "copied"
    assert copy is not None
    assert CODE.encode() not in copy.body
    assert OtpJob.from_bytes(copy.body, keys=SEALING).otp == CODE if plain[:1] == b"{" else is_sealed(copy.body)
