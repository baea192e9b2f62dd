"""What is told of a certificate."""

import ssl
import time

import pytest

from otp_stream.core.check_result import Finding, certificate

FOUND = {
    "issuer": ((("countryName", "DE"),), (("commonName", "An Authority"),)),
    "notAfter": "Jun  1 12:00:00 2030 GMT",
}
ENDS_S = ssl.cert_time_to_seconds(FOUND["notAfter"])
DAY_S = 86_400


@pytest.mark.parametrize(("days", "level"), [(30, "ok"), (14, "ok"), (13.9, "warning"), (0.5, "warning")])
def test_a_certificate_that_ends_soon_is_warned_of(days: float, level: str) -> None:
    found = certificate(FOUND, "mail.example:25", ENDS_S - days * DAY_S)
    assert found.level == level
    assert found.text == f"mail.example:25: certificate by An Authority, until 2030-06-01 ({int(days)} days)"
    renew = "renew it: once it has ended, nobody connects to mail.example:25 any more"
    assert found.cure == (renew if level == "warning" else "")


@pytest.mark.parametrize(
    ("issuer", "by"),
    [
        ([("organizationName", "An Organization"), ("commonName", "An Authority")], "An Organization"),
        ([("commonName", "An Authority")], "An Authority"),
        ([("countryName", "DE")], "an issuer without a name"),
    ],
)
def test_the_issuer_of_a_certificate_is_named(issuer: list[tuple[str, str]], by: str) -> None:
    found = certificate(FOUND | {"issuer": tuple((part,) for part in issuer)}, "mail.example:25", ENDS_S - DAY_S)
    assert found.text.startswith(f"mail.example:25: certificate by {by}, until ")


def test_a_certificate_that_has_ended_counts_days_below_zero() -> None:
    text = certificate(FOUND, "mail.example:25", ENDS_S + 1).text
    assert text.endswith("until 2030-06-01 (-1 days)")


@pytest.mark.parametrize("zone", ["Pacific/Kiritimati", "Pacific/Pago_Pago"])
def test_the_end_of_a_certificate_is_a_date_in_utc(monkeypatch: pytest.MonkeyPatch, zone: str) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        found = certificate(FOUND, "mail.example:25", ENDS_S - DAY_S)
    finally:
        monkeypatch.undo()
        time.tzset()
    assert "until 2030-06-01 " in found.text


def test_one_that_was_not_verified_is_warned_of() -> None:
    text = "mail.example:25: its certificate is not verified: anybody could answer in its place"
    assert certificate({}, "mail.example:25", 0) == Finding("warning", text)
    assert certificate(None, "mail.example:25", 0) == Finding("warning", text)
