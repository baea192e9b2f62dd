"""The result of a check of a certificate."""

import ssl
import time

import pytest

from otp_stream.core.check_result import CheckResult, check_certificate

CERTIFICATE = {
    "issuer": ((("countryName", "DE"),), (("commonName", "An Authority"),)),
    "notAfter": "Jun  1 12:00:00 2030 GMT",
}
EXPIRES_S = ssl.cert_time_to_seconds(CERTIFICATE["notAfter"])
DAY_S = 86_400


@pytest.mark.parametrize(("days", "level"), [(30, "ok"), (14, "ok"), (13.9, "warning"), (0.5, "warning")])
def test_a_certificate_that_expires_soon_gives_a_warning(days: float, level: str) -> None:
    result = check_certificate(CERTIFICATE, "mail.example:25", EXPIRES_S - days * DAY_S)
    assert result.level == level
    assert result.text == f"mail.example:25: certificate by An Authority, valid until 2030-06-01 ({int(days)} days)"
    renew = "renew it: when it has expired, no client connects to mail.example:25 any more"
    assert result.fix == (renew if level == "warning" else "")


@pytest.mark.parametrize(
    ("issuer", "by"),
    [
        ([("organizationName", "An Organization"), ("commonName", "An Authority")], "An Organization"),
        ([("commonName", "An Authority")], "An Authority"),
        ([("countryName", "DE")], "an unnamed issuer"),
    ],
)
def test_the_issuer_of_a_certificate_is_named(issuer: list[tuple[str, str]], by: str) -> None:
    result = check_certificate(
        CERTIFICATE | {"issuer": tuple((part,) for part in issuer)}, "mail.example:25", EXPIRES_S - DAY_S
    )
    assert result.text.startswith(f"mail.example:25: certificate by {by}, valid until ")


def test_an_expired_certificate_has_a_negative_number_of_days() -> None:
    text = check_certificate(CERTIFICATE, "mail.example:25", EXPIRES_S + 1).text
    assert text.endswith("until 2030-06-01 (-1 days)")


@pytest.mark.parametrize("zone", ["Pacific/Kiritimati", "Pacific/Pago_Pago"])
def test_the_expiry_of_a_certificate_is_a_date_in_utc(monkeypatch: pytest.MonkeyPatch, zone: str) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        result = check_certificate(CERTIFICATE, "mail.example:25", EXPIRES_S - DAY_S)
    finally:
        monkeypatch.undo()
        time.tzset()
    assert "until 2030-06-01 " in result.text


def test_a_certificate_that_was_not_verified_gives_a_warning() -> None:
    text = "mail.example:25: the certificate is not verified: any server could answer instead"
    assert check_certificate({}, "mail.example:25", 0) == CheckResult("warning", text)
    assert check_certificate(None, "mail.example:25", 0) == CheckResult("warning", text)
