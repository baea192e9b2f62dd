"""What a template is given: the job's values in the language, time zone and brand of its tenant."""

import json
from dataclasses import replace
from typing import Any

import pytest
from mails import NOW_MS, identity, job

from otp_stream.core.otp_job import OtpJob
from otp_stream.mail import Brand
from otp_stream.mail.language import Language
from otp_stream.mail.template_data import ACTIONS, template_data

ENGLISH = Language("en")
BRAND = Brand(name="Acme")


def data(language: Language = ENGLISH, **metadata: Any) -> dict[str, Any]:
    return template_data(job(**metadata), language, identity())


def test_a_template_is_given_the_job_and_every_key_of_its_metadata() -> None:
    metadata = {
        "userName": "John", "purpose": "login", "tenant": "shop-17", "locale": "de-AT", "expiryMinutes": 2,
        "template": "welcome", "orderNumber": 7, "nested": {"a": [1]}, "timeZone": "Europe/Vienna",
        "request": {"place": "Wien, Österreich", "device": "Chrome on Windows"},
    }  # fmt: skip
    found = template_data(job(**metadata), Language("de"), identity(brand=BRAND, subject_time=True))
    assert found == {
        "userName": "John", "purpose": "login", "tenant": "shop-17", "locale": "de-AT", "expiryMinutes": 2,
        "orderNumber": 7, "nested": {"a": [1]}, "email": "user@example.com", "otp": "123456",
        "validUntil": "23:15 MEZ", "validCount": 2, "validUnit": "minute", "requestedAt": "14. Nov. 2023, 23:13 MEZ",
        "requestPlace": "Wien, Österreich", "requestDevice": "Chrome on Windows", "subjectTime": "23:13:20",
        "action": "login", "brand": BRAND, "lang": "de", "dir": "ltr", "timeZone": "Europe/Vienna",
        "time_zone": "Europe/Vienna", "request": {"place": "Wien, Österreich", "device": "Chrome on Windows"},
    }  # fmt: skip


def test_what_a_job_omits_is_none_or_empty_and_no_key_of_metadata_replaces_a_value_of_ours() -> None:
    found = data()
    assert {found[it] for it in ("userName", "purpose", "tenant", "locale")} == {None}
    assert {found[it] for it in ("requestPlace", "requestDevice", "subjectTime", "action")} == {""}
    theirs = dict.fromkeys(found.keys() - {"userName", "purpose", "tenant", "locale"}, "theirs")
    body = {"email": "user@example.com", "otp": "123456", "timestamp": NOW_MS - 500, "metadata": theirs}
    hostile = replace(job(), request=OtpJob.from_bytes(json.dumps(body).encode()))
    assert template_data(hostile, ENGLISH, identity()) == found


@pytest.mark.parametrize(
    ("minutes", "shown", "count", "unit"),
    [
        (15, "15", 15, "minute"),
        (15.0, "15", 15, "minute"),
        ("15", "15", 15, "minute"),
        (0.5, "0.5", 0, ""),
        (7.25, "7.2", 7, "minute"),
        (1.99, "2.0", 1, "minute"),
        (59, "59", 59, "minute"),
        (60, "60", 1, "hour"),
        (90, "90", 90, "minute"),
        (24 * 60, "1440", 24, "hour"),
        (48 * 60, "2880", 2, "day"),
        (49 * 60, "2940", 49, "hour"),
    ],
)
def test_a_lifetime_is_given_in_minutes_and_in_its_largest_whole_unit(
    minutes: object, shown: str, count: int, unit: str
) -> None:
    found = data(expiryMinutes=minutes)
    assert (str(found["expiryMinutes"]), found["validCount"], found["validUnit"]) == (shown, count, unit)


@pytest.mark.parametrize(
    ("locale", "zone", "minutes", "shown"),
    [
        (None, None, 15, "10:28 PM UTC"),
        (None, "America/New_York", 15, "5:28 PM EST"),
        (None, "Asia/Kolkata", 15, "3:58 AM UTC+5:30"),
        (None, "Europe/Nowhere", 15, "10:28 PM UTC"),
        ("en-GB", "Europe/London", 15, "22:28 GMT"),
        ("de", "Europe/Berlin", 15, "11:28 PM UTC+1"),  # the template is in English
        (None, None, 24 * 60, "Nov 15, 2023, 10:13 PM UTC"),
        (None, None, 0.5, "10:13 PM UTC"),
    ],
)
def test_the_expiry_is_given_as_clock_time_in_the_zone_of_the_job(
    locale: str | None, zone: str | None, minutes: float, shown: str
) -> None:
    assert data(locale=locale, timeZone=zone, expiryMinutes=minutes)["validUntil"] == shown


def test_the_tenants_time_zone_is_used_for_a_job_without_one() -> None:
    tenant = identity(time_zone="Europe/Berlin")
    assert template_data(job(), ENGLISH, tenant)["validUntil"] == "11:28 PM UTC+1"
    assert template_data(job(timeZone="UTC"), ENGLISH, tenant)["validUntil"] == "10:28 PM UTC"


@pytest.mark.parametrize(
    ("purpose", "action"),
    [
        *((action, action) for action in ACTIONS),
        ("Login", "login"),
        ("sign-in", "login"),
        ("2FA", "login"),
        ("signUp", "sign_up"),
        ("Change e-mail", "change_email"),
        ("CONFIRM PAYMENT", "confirm_payment"),
        ("account deletion", "delete_account"),
        ("win a prize at paypal.com", ""),
        ("", ""),
        (None, ""),
        (7, ""),
    ],
)
def test_a_purpose_is_one_of_a_closed_list_however_it_is_written(purpose: object, action: str) -> None:
    assert data(purpose=purpose)["action"] == action


@pytest.mark.parametrize(
    ("request_", "place", "device"),
    [
        ({"place": "a\r\nBcc: x", "device": "paypal.com"}, "a Bcc: x", "paypal. com"),
        ({"place": "x" * 10_000}, "x" * 100, ""),
        ({"place": "\u202egnp.exe\u2066", "device": "a\0b"}, "gnp. exe", "a b"),
        ({"place": ["a", "b"], "device": {"a": 1}}, "a b", "1"),
        ("Berlin", "", ""),
        (["Berlin"], "", ""),
        (None, "", ""),
    ],
)
def test_place_and_device_are_safe_to_print(request_: object, place: str, device: str) -> None:
    found = data(request=request_)
    assert (found["requestPlace"], found["requestDevice"]) == (place, device)


def test_arabic_is_written_from_right_to_left() -> None:
    found = data(Language("ar"), locale="ar-EG")
    assert (found["lang"], found["dir"]) == ("ar", "rtl")


def test_times_of_all_jobs_of_a_minute_are_equal() -> None:
    assert len({data(timestamp=NOW_MS // 60_000 * 60_000 + at)["validUntil"] for at in range(0, 60_000, 7_000)}) <= 2
