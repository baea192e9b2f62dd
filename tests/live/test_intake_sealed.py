"""Sealed codes over HTTP: a token is no way to another tenant's code, nor to a comparison with a guess."""

import json
from pathlib import Path
from typing import Any

from api import TOKEN, job, post
from conftest import Stage
from worker import CODE, Worker

from otp_stream.core.sealed_body import Content, seal_body
from otp_stream.core.sealed_code import seal_code
from otp_stream.core.sealing_keys import SealingKeys, keys_of, new_jwk

SHOP = "7a0e95d3c1b8f264"
KEY = "c3a5f0917be4d826"


async def run(stage: Stage, folder: Path, keys: dict[str, Any]) -> Worker:
    """Start a worker with a token of the default tenant and one of the tenant `shop`."""
    tenants, tokens = folder / "tenants.toml", folder / "tokens.toml"
    tenants.write_text('[tenants.shop]\nsender_email = "no-reply@shop.example"\n')
    tokens.write_text(f'[tokens.shop]\nrole = "producer"\ntenant = "shop"\ntoken = "{SHOP}"\n')
    files = {"HTTP_TOKENS_FILE": str(tokens), "TENANTS_FILE": str(tenants)}
    return await stage.run(INTAKE_TOKEN=TOKEN, SECRET_KEY=KEY, SEALING_KEYS=json.dumps(keys), **files)


def sealed(keys: SealingKeys, tenant: str, code: str = CODE, **more: Any) -> dict[str, Any]:
    """Return a job whose code is sealed for a tenant."""
    fields = {"email": "user@example.com", "jobId": f"sealed-{tenant}", **more}
    return {**fields, "otpSealed": seal_code(keys, code, fields["email"], fields["jobId"], tenant)}


async def test_a_code_that_is_sealed_for_one_tenant_is_not_sent_with_the_token_of_another(
    stage: Stage, tmp_path: Path
) -> None:
    jwk = new_jwk("p256")
    keys = keys_of(jwk)
    worker = await run(stage, tmp_path, jwk)
    # the tenant is in the protected header, and nowhere else
    moved = await post(worker, sealed(keys, ""), token=SHOP)
    assert (moved.status, "otpSealed: was sealed for another tenant" in moved.content["detail"]) == (403, True)
    assert (await post(worker, sealed(keys, "shop"))).status == 422
    assert (await post(worker, sealed(keys, "shop", metadata={"tenant": "shop"}))).status == 403
    for body in (job(), job(metadata={"tenant": "shop"})):
        whole = seal_body(keys, Content(json.dumps(body).encode())).body
        assert [(await post(worker, whole, token=it)).status for it in (TOKEN, SHOP)] == [400, 400]
    assert (await post(worker, sealed(keys, "shop", metadata={"tenant": "shop"}), token=SHOP)).status == 202
    assert (await post(worker, sealed(keys, ""))).status == 202
    await stage.relay.wait_accepted(2)
    await worker.wait_metric('otp_jobs_total{outcome="sent"}', 2)


async def test_an_idempotency_key_compares_no_guess_with_a_sealed_code(stage: Stage, tmp_path: Path) -> None:
    jwk = new_jwk("p256")
    keys = keys_of(jwk)
    worker = await run(stage, tmp_path, jwk)
    body = sealed(keys, "")
    assert [(await post(worker, body, Idempotency_Key="k")).status for _ in range(2)] == [202, 202]
    plain = {"email": body["email"], "jobId": body["jobId"]}
    guesses = [{**plain, "otp": it} for it in ("482915", CODE)] + [sealed(keys, "", it) for it in ("482915", CODE)]
    answers = [await post(worker, it, Idempotency_Key="k") for it in guesses]
    assert [it.status for it in answers] == [422] * 4
    assert len({it.text for it in answers}) == 1
    await stage.relay.wait_accepted(1)
    await worker.wait_metric('otp_jobs_total{outcome="sent"}', 1)
