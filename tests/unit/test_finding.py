"""What is told of a certificate."""

import ssl

import pytest

from otp_stream.core.finding import certificate

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
    assert bool(found.cure) == (level == "warning")


def test_one_that_was_not_verified_is_warned_of() -> None:
    assert certificate({}, "mail.example:25", 0).level == "warning"
