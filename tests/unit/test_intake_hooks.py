"""Hooks of authentication servers: their documented payloads become jobs, and only signed ones are accepted."""

import json
from contextlib import suppress
from copy import deepcopy
from typing import Any

import pytest
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
from hypothesis import given
from hypothesis import strategies as st

from otp_stream.core.hook_signatures import SignatureError, read_webhook, read_zitadel, webhook_keys
from otp_stream.core.otp_job import OtpJob
from otp_stream.intake.hooks import HOOKS, NoCodeError
from otp_stream.mail.template_data import ACTIONS

NOW = 1_796_000_000


def verify_webhook(headers: dict[str, str], body: bytes, keys: list[bytes], now_s: float) -> None:
    read_webhook(headers).verify(body, keys, now_s)


def verify_zitadel(headers: dict[str, str], body: bytes, keys: list[bytes], now_s: float) -> None:
    read_zitadel(headers).verify(body, keys, now_s)


def changed(given_payload: dict[str, Any], /, **changes: Any) -> dict[str, Any]:
    """Return a payload with other values, by path: `user__new_email`."""
    copy = deepcopy(given_payload)
    for path, value in changes.items():
        *parents, last = path.split("__")
        at = copy
        for name in parents:
            at = at[name]
        at[last] = value
    return copy


@pytest.mark.parametrize(
    ("hook", "payload", "email", "code", "metadata"),
    [
        ("supabase", SUPABASE, "valid.email@supabase.io", "305805", {"purpose": "sign_up"}),
        (
            "zitadel", ZITADEL, "example@zitadel.com", "0M53RF",
            {"purpose": "sign_up", "userName": "GivenName FamilyName"},
        ),
        (
            "kratos", KRATOS, "user@example.com", "523196",
            {"purpose": "login", "userName": "Ada", "locale": "de", "expiryMinutes": 5},
        ),
        ("logto", LOGTO, "foo@logto.io", "123456", {"purpose": "login", "locale": "de"}),
    ],
)  # fmt: skip
def test_the_documented_payload_of_each_hook_is_a_job(
    hook: str, payload: dict[str, Any], email: str, code: str, metadata: dict[str, Any]
) -> None:
    assert HOOKS[hook].jobs(payload) == [{"email": email, "otp": code, "metadata": metadata}]


def test_each_purpose_is_one_that_the_built_in_e_mails_have() -> None:
    found = [
        *HOOKS["supabase"].jobs(SUPABASE),
        *(HOOKS["logto"].jobs(changed(LOGTO, type=it))[0] for it in ("Register", "MfaVerification", "BindMfa")),
        *HOOKS["zitadel"].jobs(changed(ZITADEL, contextInfo__eventType="session.otp.email.challenged")),
    ]
    assert {it["metadata"]["purpose"] for it in found} <= set(ACTIONS)


def test_a_change_of_address_that_both_mailboxes_confirm_is_two_jobs() -> None:
    payload = changed(
        SUPABASE,
        email_data__email_action_type="email_change",
        email_data__token_new="814772",
        email_data__token_hash_new="b1",
        user__new_email="new@supabase.io",
    )
    jobs = HOOKS["supabase"].jobs(payload)
    assert [(it["email"], it["otp"]) for it in jobs] == [
        ("valid.email@supabase.io", "305805"), ("new@supabase.io", "814772"),
    ]  # fmt: skip
    assert all(it["metadata"]["purpose"] == "change_email" for it in jobs)
    for one in ({"email_data__token_new": ""}, {"email_data__token": "", "email_data__token_new": "305805"}):
        (job,) = HOOKS["supabase"].jobs(changed(payload, **one))
        assert (job["email"], job["otp"]) == ("new@supabase.io", "305805")


def test_a_reset_of_the_password_uses_its_own_template() -> None:
    recovery = changed(KRATOS, template_type="recovery_code_valid", template_data__recovery_code="411880")
    payloads = {
        "supabase": changed(SUPABASE, email_data__email_action_type="recovery"),
        "kratos": recovery,
        "zitadel": changed(ZITADEL, contextInfo__eventType="user.human.password.code.added"),
        "logto": changed(LOGTO, type="ForgotPassword"),
    }
    for name, payload in payloads.items():
        assert HOOKS[name].jobs(payload)[0]["metadata"]["template"] == "password_reset"


def test_the_one_time_code_of_zitadel_and_its_expiry_in_nanoseconds_are_read() -> None:
    args = {"oTP": "60331427", "expiry": 300_000_000_000}
    payload = changed(ZITADEL, contextInfo__eventType="session.otp.email.challenged", args=args)
    assert HOOKS["zitadel"].jobs(payload) == [
        {"email": "example@zitadel.com", "otp": "60331427", "metadata": {"purpose": "login", "expiryMinutes": 5}}
    ]


@pytest.mark.parametrize("expiry", [pytest.param(10**400, id="huge"), -1, 0, float("nan"), "5m0s", True, None, [3]])
def test_an_odd_expiry_of_zitadel_does_not_cost_the_code(expiry: Any) -> None:
    (job,) = HOOKS["zitadel"].jobs(changed(ZITADEL, args={"code": "0M53RF", "expiry": expiry}))
    assert OtpJob.from_bytes(json.dumps(job).encode()).otp == "0M53RF"


def test_the_name_and_language_in_a_registration_of_kratos_are_in_its_own_traits() -> None:
    data = {"registration_code": "523196", "traits": {"name": {"first": "Ada"}, "locale": "de"}}
    payload = changed(KRATOS, template_type="registration_code_valid", template_data=data)
    assert HOOKS["kratos"].jobs(payload) == [
        {
            "email": "user@example.com",
            "otp": "523196",
            "metadata": {"purpose": "sign_up", "userName": "Ada", "locale": "de"},
        }
    ]


@pytest.mark.parametrize(
    ("hook", "payload", "text"),
    [
        ("supabase", changed(SUPABASE, email_data__token=""), "email_data.token: is empty"),
        ("kratos", changed(KRATOS, template_type="recovery_valid"), "template_type: must be login_code_valid"),
        ("kratos", changed(KRATOS, template_data__login_code=""), "template_data.login_code: is required"),
        ("zitadel", changed(ZITADEL, args={}), "args.code: is required"),
        (
            "zitadel",
            changed(ZITADEL, contextInfo__eventType="user.human.passwordless.initialization.code.requested"),
            "no code to enter",
        ),
        ("logto", changed(LOGTO, payload={"link": "https://example.com"}), "payload.code: is required"),
    ],
)
def test_an_e_mail_without_a_code_is_an_error_that_names_the_field(
    hook: str, payload: dict[str, Any], text: str
) -> None:
    with pytest.raises(NoCodeError, match=text):
        HOOKS[hook].jobs(payload)


NAMES = ("user", "email_data", "args", "to", "payload", "code", "template_data", "email", "token", "template_type")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda of: st.lists(of, max_size=3) | st.dictionaries(st.sampled_from(NAMES), of, max_size=4),
    max_leaves=8,
)


@given(JSON)
def test_any_json_is_jobs_or_has_no_code(payload: object) -> None:
    for hook in HOOKS.values():
        with suppress(NoCodeError):
            assert hook.jobs(payload)


def test_the_vector_of_standard_webhooks_is_accepted() -> None:
    # from the test suite of https://github.com/standard-webhooks/standard-webhooks
    headers = {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }
    body, keys = b'{"test": 2432232314}', webhook_keys(SUPABASE_SECRET)
    verify_webhook(headers, body, keys, 1614265330)
    verify_webhook(headers, body, [b"x" * 32, *keys], 1614265330 + 300)
    verify_webhook(
        headers | {"webhook-signature": f"v1a,x v1,bad {headers['webhook-signature']}"}, body, keys, 1614265330
    )
    for at_s in (1614265330 + 301, 1614265330 - 301):
        with pytest.raises(SignatureError, match="signed more than 300 seconds ago"):
            verify_webhook(headers, body, keys, at_s)


def test_each_signature_of_supabase_with_several_secrets_is_read() -> None:
    # internal/hooks/hookshttp/hookshttp.go of https://github.com/supabase/auth joins them with a comma and a space
    body, keys = encoded(SUPABASE), webhook_keys(SUPABASE_SECRET)
    headers = supabase_headers(body, NOW)
    ours, other = headers["webhook-signature"], "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    for both in (f"{ours}, {other}", f"{other}, {ours}", f"{other},  {ours},", f" {ours} "):
        verify_webhook(headers | {"webhook-signature": both}, body, keys, NOW)
    with pytest.raises(SignatureError):
        verify_webhook(headers | {"webhook-signature": f"{other}, {other}"}, body, keys, NOW)


@pytest.mark.parametrize(
    "changes",
    [
        {"webhook-id": "msg_2"},
        {"webhook-timestamp": str(NOW + 1)},
        {"webhook-signature": "v1,"},
        {"webhook-signature": "v1,ä"},
        {"webhook-signature": "v2,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="},
        {"webhook-id": ""},
        {"webhook-timestamp": ""},
        {"webhook-signature": ""},
    ],
)
def test_a_changed_request_is_not_signed(changes: dict[str, str]) -> None:
    body, keys = encoded(SUPABASE), webhook_keys(SUPABASE_SECRET)
    headers = supabase_headers(body, NOW)
    verify_webhook(headers, body, keys, NOW)
    with pytest.raises(SignatureError):
        verify_webhook(headers | changes, body, keys, NOW)
    with pytest.raises(SignatureError, match="the body was changed"):
        verify_webhook(headers, body + b" ", keys, NOW)


def test_zitadels_signature_is_verified_as_its_library_does() -> None:
    body, keys = encoded(ZITADEL), [ZITADEL_KEY.encode(), b"another key of the rotation"]
    headers = zitadel_headers(body, NOW)
    verify_zitadel(headers, body, keys, NOW + 300)
    rotated = {"zitadel-signature": headers["zitadel-signature"].replace("v1=", "v1=00,v1=zz,v1=")}
    verify_zitadel(rotated, body, keys, NOW)
    wrong = (
        {}, {"zitadel-signature": "v1=00"}, {"zitadel-signature": f"t={NOW}"}, zitadel_headers(body, NOW, key="other"),
        zitadel_headers(body, NOW - 301), zitadel_headers(body, NOW + 301), zitadel_headers(body + b" ", NOW),
    )  # fmt: skip
    for it in wrong:
        with pytest.raises(SignatureError):
            verify_zitadel(it, body, keys, NOW)


def test_a_header_has_at_most_16_signatures() -> None:
    body = encoded(SUPABASE)
    headers, keys = supabase_headers(body, NOW), webhook_keys(SUPABASE_SECRET)
    ours = headers["webhook-signature"]
    verify_webhook(headers | {"webhook-signature": "v1,YQ== " * 15 + ours}, body, keys, NOW)
    with pytest.raises(SignatureError, match="webhook-signature: has more than 16 signatures"):
        read_webhook(headers | {"webhook-signature": f"{ours} " * 17})
    body, headers = encoded(ZITADEL), zitadel_headers(encoded(ZITADEL), NOW)
    ours = headers["zitadel-signature"]
    verify_zitadel({"zitadel-signature": ours + ",v1=00" * 15}, body, [ZITADEL_KEY.encode()], NOW)
    with pytest.raises(SignatureError, match="zitadel-signature: has more than 16 signatures"):
        read_zitadel({"zitadel-signature": ours + ",v1=00" * 16})


@pytest.mark.parametrize(
    "text", ["whsec_", "v1,whsec_c2hvcnQ=", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "v1,whsec_ü", "v1", ""]
)
def test_a_secret_that_cannot_be_one_is_refused_and_not_quoted(text: str) -> None:
    with pytest.raises(ValueError, match="must be a secret such as v1,whsec_…"):
        webhook_keys(text)


def test_several_secrets_are_read_as_supabase_writes_them() -> None:
    assert len(webhook_keys(f"{SUPABASE_SECRET}|{SUPABASE_SECRET}")) == 2
    assert webhook_keys(f" {SUPABASE_SECRET.removeprefix('v1,')} ") == webhook_keys(SUPABASE_SECRET)
