"""The DNS records of the sender's domain, read from a DNS server."""

import pytest
from dns_server import Zone, dns_server

from otp_stream.checks import sender_domain
from otp_stream.checks.sender_domain import SenderDomain
from otp_stream.core.check_result import CheckResult

DOMAIN, RELAY = "mail.acme.io", "smtp.office365.com"
GOOD: Zone = {
    (DOMAIN, "TXT"): ['"some-verification=1"', '"v=spf1 include:spf.protection.outlook.com -all"'],
    ("spf.protection.outlook.com", "TXT"): ['"v=spf1 ip4:40.92.0.0/15 " "ip6:2a01:111::/32 -all"'],
    (f"s1._domainkey.{DOMAIN}", "TXT"): ['"v=DKIM1; k=rsa; p=MIGf"'],
    (f"_dmarc.{DOMAIN}", "TXT"): ['"v=DMARC1; p=quarantine"'],
    (DOMAIN, "MX"): ["10 mx.acme.io."],
}


async def check(zone: Zone, *relays: str, domain: str = DOMAIN, selector: str | None = "s1") -> list[CheckResult]:
    results: list[CheckResult] = []
    with dns_server(zone) as resolver:
        await SenderDomain(domain, relays or (RELAY,), results.append, resolver).check(selector)
    return results


async def test_complete_records_are_ok() -> None:
    results = await check(GOOD)
    assert [it.level for it in results] == ["ok"] * 4
    assert [it.text for it in results] == [
        f"{DOMAIN}: SPF includes {RELAY}",
        f"{DOMAIN}: DKIM has a key at s1._domainkey.{DOMAIN}",
        f"{DOMAIN}: DMARC has the policy quarantine (_dmarc.{DOMAIN})",
        f"{DOMAIN}: MX takes bounces and replies",
    ]


async def test_without_records_each_one_to_add_is_named() -> None:
    results = await check({}, RELAY, "relay.acme.io")
    assert [(it.level, it.fix) for it in results] == [
        ("warning", f'add {DOMAIN}. TXT "v=spf1 include:spf.protection.outlook.com a:relay.acme.io -all"'),
        ("warning", "add the record that your relay's settings show"),
        ("warning", f'add _dmarc.{DOMAIN}. TXT "v=DMARC1; p=none; rua=mailto:postmaster@{DOMAIN}"'),
        ("warning", "add an MX"),
    ]


@pytest.mark.parametrize(
    ("spf", "relay", "level", "words"),
    [
        ("v=spf1 include:_spf.google.com ~all", "smtp-relay.gmail.com", "ok", "SPF includes"),
        ("V=SPF1 INCLUDE:AmazonSES.com -all", "email-smtp.eu-west-1.amazonaws.com", "ok", "SPF includes"),
        ("v=spf1 redirect=_spf.google.com", "smtp.gmail.com", "ok", "SPF includes"),
        ("v=spf1 include:one.acme.io -all", "smtp.sendgrid.net", "ok", "SPF includes"),
        ("v=spf1 include:_spf.google.com -all", "smtp.sendgrid.net", "warning", "does not include smtp.sendgrid.net"),
        ("v=spf1 -include:sendgrid.net all", "smtp.sendgrid.net", "warning", "lets any server send"),
        ("v=spf1 +all", "smtp.sendgrid.net", "warning", "lets any server send"),
        ("v=spf1 ip4:192.0.2.0/24 -all", "relay.acme.io", "ok", "SPF includes"),
        ("v=spf1 ip4:192.0.2.0/24 -all", "192.0.2.9", "ok", "SPF includes"),
        ("v=spf1 ip6:2001:db8::/32 -all", "relay.acme.io", "ok", "SPF includes"),
        ("v=spf1 a:relay.acme.io -all", "relay.acme.io", "ok", "SPF includes"),
        ("v=spf1 a -all", "same.acme.io", "ok", "SPF includes"),
        ("v=spf1 mx -all", "relay.acme.io", "ok", "SPF includes"),
        ("v=spf1 ip4:198.51.100.1 exists:%{i}.acme.io -all", "relay.acme.io", "note", "does not name the address"),
        ("v=spf1 ip4:300.0.0.0 -all", "relay.acme.io", "warning", "ip4:300.0.0.0 is no network"),
        ("v=spf1 include:none.acme.io -all", "relay.acme.io", "warning", "none.acme.io has no SPF record"),
        ("v=spf1 include:two.acme.io -all", "relay.acme.io", "warning", "two.acme.io has 2 SPF records"),
        ("v=spf1 include:loop.acme.io -all", "relay.acme.io", "warning", "more than 10 lookups"),
        ("v=spf10 all", "relay.acme.io", "warning", "no record"),
    ],
)
async def test_an_spf_record_is_followed(spf: str, relay: str, level: str, words: str) -> None:
    zone = GOOD | {
        (DOMAIN, "TXT"): [f'"{spf}"'],
        (DOMAIN, "A"): ["192.0.2.77"],
        (DOMAIN, "MX"): ["10 relay.acme.io."],
        ("_spf.google.com", "TXT"): ['"v=spf1 ip4:192.0.2.1 ~all"'],
        ("amazonses.com", "TXT"): ['"v=spf1 ip4:192.0.2.1 -all"'],
        ("sendgrid.net", "TXT"): ['"v=spf1 ip4:192.0.2.1 -all"'],
        ("one.acme.io", "TXT"): ['"v=spf1 include:sendgrid.net -all"'],
        ("two.acme.io", "TXT"): ['"v=spf1 -all"', '"v=spf1 ~all"'],
        ("loop.acme.io", "TXT"): ['"v=spf1 include:loop.acme.io -all"'],
        ("relay.acme.io", "A"): ["192.0.2.9"],
        ("relay.acme.io", "AAAA"): ["2001:db8::9"],
        ("same.acme.io", "A"): ["192.0.2.77"],
    }
    first, *_ = await check(zone, relay)
    assert (first.level, words in first.text) == (level, True), first


@pytest.mark.parametrize(
    ("changes", "level", "words"),
    [
        ({(f"_dmarc.{DOMAIN}", "TXT"): [], ("_dmarc.acme.io", "TXT"): ['"v=DMARC1; p=reject; sp=none"']},
         "ok", "policy none"),
        ({(f"_dmarc.{DOMAIN}", "TXT"): ['"v=DMARC1;p=maybe"']}, "warning", "no valid policy"),
        ({(f"_dmarc.{DOMAIN}", "TXT"): ['"v=DMARC1;p=none"', '"v=DMARC1;p=reject"']}, "warning", "2 records"),
        ({(f"s1._domainkey.{DOMAIN}", "TXT"): ['"v=DKIM1; p="']}, "warning", "is revoked"),
        ({(DOMAIN, "MX"): ["0 ."]}, "warning", "null MX"),
        ({(DOMAIN, "MX"): [], (DOMAIN, "A"): ["192.0.2.1"]}, "ok", "takes bounces"),
    ],
)  # fmt: skip
async def test_other_records_are_judged(changes: Zone, level: str, words: str) -> None:
    results = await check(GOOD | changes)
    assert [it.level for it in results if words in it.text] == [level], results


async def test_without_a_selector_dkim_is_not_checked() -> None:
    assert [it.level for it in await check(GOOD, selector=None)] == ["ok", "note", "ok", "ok"]


@pytest.mark.parametrize(
    "domain", ["example.com", "mail.example.org", "worker.local", "localhost", "[192.0.2.1]", "a.test"]
)
async def test_a_domain_that_is_not_public_is_not_looked_up(domain: str) -> None:
    (result,) = await check({}, domain=domain)
    assert (result.level, "no public domain" in result.text) == ("note", True)


async def test_a_server_that_does_not_answer_is_a_note_for_each_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender_domain, "_LOOKUP_S", 0.1)
    results: list[CheckResult] = []
    with dns_server({}, silent=True) as resolver:
        await SenderDomain(DOMAIN, [RELAY], results.append, resolver).check("s1")
    assert [it.level for it in results] == ["note"] * 4
    assert all("DNS gives no answer for" in it.text for it in results)
