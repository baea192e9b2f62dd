"""The settings of brand and times: what is taken, what is refused, and what a tenant inherits of them."""

import email.policy
import time
from collections.abc import Callable
from contextlib import suppress
from email import message_from_bytes
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from otp_stream.configs import brand, mail_identity, tenant_identities
from otp_stream.core.job import Job
from otp_stream.core.otp_job import OtpJob
from otp_stream.mail import Brand, Composer
from otp_stream.mail.message import Part, Skeleton
from otp_stream.settings import Settings, Tenants, load, read_tenants
from otp_stream.settings.brand_validators import brand_footer, brand_name, brand_support
from otp_stream.settings.tenants_schema import schema
from otp_stream.time_zones import find_time_zone, time_zone_names

ACME: dict[str, Any] = {
    "sender_email": "no-reply@acme.example",
    "brand_name": "Acme",
    "brand_color": "#2f5fd0",
    "brand_logo_url": "https://acme.example/logo.png",
    "brand_support": "help@acme.example",
    "brand_footer": "Acme GmbH\n12345 Berlin",
    "subject_time": True,
    "default_time_zone": "Europe/Berlin",
}
Read = Callable[..., tuple[Tenants, list[str]]]


@pytest.fixture(autouse=True)
def _empty(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (*Settings.model_fields, "node_env"):
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def of(toml: str, **more: Any) -> tuple[Tenants, list[str]]:
        file = tmp_path / "tenants.toml"
        file.write_text(toml)
        settings, problems = load(**{**ACME, **more}, tenants_file=file)
        assert problems == []
        return read_tenants(settings)

    return of


def test_without_settings_there_is_no_brand_and_times_are_utc() -> None:
    settings, problems = load()
    assert problems == []
    assert brand(settings) == Brand()
    identity = mail_identity(settings)
    assert (identity.time_zone, identity.subject_time) == ("UTC", False)


def test_the_settings_are_those_of_the_mails() -> None:
    identity = mail_identity(load(**ACME)[0])
    assert identity.brand == Brand(
        name="Acme", color="#2f5fd0", logo_url="https://acme.example/logo.png", support="help@acme.example",
        footer=("Acme GmbH", "12345 Berlin"),
    )  # fmt: skip
    assert (identity.time_zone, identity.subject_time) == ("Europe/Berlin", True)


def test_settings_of_the_environment_are_read_with_their_line_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ACME.items():
        monkeypatch.setenv(name.upper(), str(value))
    monkeypatch.setenv("BRAND_FOOTER", r'"Acme GmbH\nSome Street 1\n12345 Berlin"')
    settings, problems = load()
    assert problems == []
    assert brand(settings).footer == ("Acme GmbH", "Some Street 1", "12345 Berlin")
    monkeypatch.setenv("BRAND_FOOTER", "Acme GmbH\r\n\r\n 12345 Berlin \n")
    assert brand(load()[0]).footer == ("Acme GmbH", "12345 Berlin")


@pytest.mark.parametrize("quote", ["", '"', "'"])
def test_a_dotenv_file_may_have_a_colour_and_a_footer(tmp_path: Path, quote: str) -> None:
    (tmp_path / ".env").write_text(
        f"BRAND_NAME={quote}Acme & Co{quote}\nBRAND_COLOR={quote}#25d{quote}\nBRAND_FOOTER={quote}A\\nB{quote}\n"
    )
    settings, problems = load()
    assert problems == []
    assert (settings.brand_name, settings.brand_color, brand(settings).footer) == ("Acme & Co", "#25d", ("A", "B"))


@pytest.mark.parametrize(
    ("name", "value", "meant"),
    [
        ("brand_name", "Acme", "Acme"),
        ("brand_name", " Café “Zoë” & Söhne <b> {{ otp }} ", "Café “Zoë” & Söhne <b> {{ otp }}"),
        ("brand_name", "شرکت\u200cما", "شرکت\u200cما"),
        ("brand_name", "👩\u200d💻 Dev", "👩\u200d💻 Dev"),
        ("brand_name", "x" * 60, "x" * 60),
        ("brand_name", "", None),
        ("brand_color", "#ABC", "#abc"),
        ("brand_color", "#2F5FD0", "#2f5fd0"),
        ("brand_logo_url", "https://acme.example/a.png?v=1&w=2#x", "https://acme.example/a.png?v=1&w=2#x"),
        ("brand_logo_url", "HTTPS://cdn.acme.example:8443/%20.png", "HTTPS://cdn.acme.example:8443/%20.png"),
        ("brand_support", "help@acme.example", "help@acme.example"),
        ("brand_support", "mailto:help+otp@acme.example", "help+otp@acme.example"),
        ("brand_support", "hilfe@bücher.example", "hilfe@bücher.example"),
        ("brand_support", "https://acme.example/help", "https://acme.example/help"),
        ("brand_support", "+49 (30) 1234-567", "+49 (30) 1234-567"),
        ("brand_support", "tel:+49301234567", "+49301234567"),
        ("brand_support", "Tel. 0800 123 456 (free of charge)", "Tel. 0800 123 456 (free of charge)"),
        ("brand_support", "Hotline: ٠٨٠٠ ١٢٣", "Hotline: ٠٨٠٠ ١٢٣"),
        ("brand_footer", "<b>Acme</b> {% raw %}", "<b>Acme</b> {% raw %}"),
        ("brand_footer", "a\nb\nc\nd\ne\nf", "a\nb\nc\nd\ne\nf"),
        ("brand_footer", "x" * 500, "x" * 500),
        ("brand_footer", "\\n\\n", None),
        ("default_time_zone", "America/Argentina/Buenos_Aires", "America/Argentina/Buenos_Aires"),
        ("default_time_zone", "Etc/GMT+5", "Etc/GMT+5"),
        ("default_time_zone", "", "UTC"),
        ("subject_time", "yes", True),
    ],
)
def test_a_valid_value_is_accepted_and_normalized(name: str, value: str, meant: object) -> None:
    settings, problems = load(**{"brand_name": "Acme", name: value})
    assert problems == []
    assert getattr(settings, name) == meant


_INVISIBLE = "contains a control character or an invisible one; remove it"
_SUPPORT = "must be an e-mail address, a URL that starts with https://, or a telephone number"
_ZONE = "must be an IANA name such as Europe/Berlin or UTC; "


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("brand_name", "Acme\r\nBcc: x@y.z", "must be one line"),
        ("brand_name", "Acme\u2028Inc", "must be one line"),
        ("brand_name", "Ac\0me", _INVISIBLE),
        ("brand_name", "Ac\x85me", _INVISIBLE),
        ("brand_name", "Ac\tme", _INVISIBLE),
        ("brand_name", "Ac\u202eme", _INVISIBLE),
        ("brand_name", "Ac\u200bme", _INVISIBLE),
        ("brand_name", "Ac\U000e0041me", _INVISIBLE),
        ("brand_name", "Ac\ufffdme", _INVISIBLE),
        ("brand_name", "\u3164\u200d", "contains no visible character"),
        ("brand_name", "x" * 61, "must have 60 characters or fewer"),
        ("brand_name", "x" * 10_000, "must have 60 characters or fewer"),
        ("brand_name", "\udcff", "must be text in UTF-8"),
        ("brand_color", "2f5fd0", "must be a colour such as #2f5fd0"),
        ("brand_color", "#2f5f", "must be a colour such as #2f5fd0"),
        ("brand_color", "red", "must be a colour such as #2f5fd0"),
        ("brand_color", "#fff;background:url(x)", "must be a colour such as #2f5fd0"),
        ("brand_color", "#12345６", "must be a colour such as #2f5fd0"),
        ("brand_logo_url", "http://acme.example/a.png", "must start with https://, as in https://www.example.com/logo"),
        ("brand_logo_url", "/logo.png", "must start with https://"),
        ("brand_logo_url", "data:image/png;base64,AAAA", "must start with https://"),
        ("brand_logo_url", "javascript:alert(1)//https://x.example", "must start with https://"),
        ("brand_logo_url", "https://acme.example/a b.png", "contains a space, a quote or another character"),
        ("brand_logo_url", 'https://acme.example/"onload=x', "contains a space, a quote or another character"),
        ("brand_logo_url", "https://acme.example/'x", "contains a space, a quote or another character"),
        ("brand_logo_url", "https://acme.example/<x>", "contains a space, a quote or another character"),
        ("brand_logo_url", "https://acme.example/{{ otp }}", "contains a space, a quote or another character"),
        ("brand_logo_url", "https://acme.example\\@evil.example/", "contains a space, a quote or another character"),
        ("brand_logo_url", "https://bücher.example/a.png", "contains a space, a quote or another character"),
        ("brand_logo_url", "https://acme.example/a\nb.png", "contains a line break or another control character"),
        ("brand_logo_url", "https://u:hunter2@acme.example/a.png", "must not contain a user or a password"),
        ("brand_logo_url", "https://@acme.example/a.png", "must not contain a user or a password"),
        ("brand_logo_url", "https://", "must contain a public host name"),
        ("brand_logo_url", "https:///a.png", "must contain a public host name"),
        ("brand_logo_url", "https://localhost/a.png", "must contain a public host name"),
        ("brand_logo_url", "https://acme..example/a.png", "must contain a public host name"),
        ("brand_logo_url", "https://acme.example:0/a.png", "must contain a public host name"),
        ("brand_logo_url", "https://acme.example:port/a.png", "has an invalid host or port"),
        ("brand_logo_url", "https://[::1/a.png", "has an invalid host or port"),
        ("brand_logo_url", "https://acme.example/" + "a" * 10_000, "must have 1000 characters or fewer"),
        ("brand_support", "http://acme.example/help", "must start with https://, as in https://example.com/help"),
        ("brand_support", "ftp://acme.example", "must start with https://"),
        ("brand_support", "https://acme.example/a help", "contains a space, a quote or another character"),
        ("brand_support", "Help <help@acme.example>", "must be one e-mail address without a name"),
        ("brand_support", "a@acme.example, b@acme.example", "must be one e-mail address without a name"),
        ("brand_support", "help@", "must be one e-mail address without a name"),
        ("brand_support", "help@localhost", "must be one e-mail address without a name"),
        ("brand_support", "help@acme.example?bcc=x", "must be one e-mail address without a name"),
        ("brand_support", "help?cc=x@acme.example", "must be one e-mail address without a name"),
        ("brand_support", "www.acme.example/4711", _SUPPORT),
        ("brand_support", "javascript:alert(123)", _SUPPORT),
        ("brand_support", "<b>0800 123</b>", _SUPPORT),
        ("brand_support", "{{ otp }} 123", _SUPPORT),
        ("brand_support", "ask us", _SUPPORT),
        ("brand_support", "0800 123\n456", "must be one line"),
        ("brand_support", "0800\u202e 123", _INVISIBLE),
        ("brand_support", "0" * 201, "must have 200 characters or fewer"),
        ("brand_footer", "a\nb\nc\nd\ne\nf\ng", "must have 6 lines or fewer"),
        ("brand_footer", "x" * 501, "must have 500 characters or fewer"),
        ("brand_footer", "x" * 10_000, "must have 500 characters or fewer"),
        ("brand_footer", "a\nb\0", _INVISIBLE),
        ("brand_footer", "a\u2066b", _INVISIBLE),
        ("brand_footer", "a\n\u3164", "contains no visible character"),
        ("default_time_zone", "europe/berlin", _ZONE + "did you mean Europe/B"),
        ("default_time_zone", "Berlin", _ZONE + "did you mean Europe/Berlin?"),
        ("default_time_zone", "America/New York", _ZONE + "did you mean Ameri"),
        ("default_time_zone", "Europe/Berlln", _ZONE + "did you mean Europe/B"),
        ("default_time_zone", "../../etc/passwd", _ZONE + "see https://www"),
        ("default_time_zone", "/usr/share/zoneinfo/UTC", _ZONE),
        ("default_time_zone", "posix/Europe/Berlin", _ZONE + "did you"),
        ("default_time_zone", "Europe", _ZONE),
        ("default_time_zone", "+02:00", _ZONE + "see https://www"),
        ("default_time_zone", "x" * 10_000, _ZONE + "see https://www"),
        ("default_time_zone", "Europe/Ber\0lin", "contains a line break or another control character"),
        ("subject_time", "perhaps", "must be true or false"),
    ],
)  # fmt: skip
def test_an_invalid_value_is_refused_with_its_name_and_the_fix(name: str, value: str, problem: str) -> None:
    _, problems = load(**{"brand_name": "Acme", name: value})
    assert [it[: len(name) + 2 + len(problem)] for it in problems] == [f"{name.upper()}: {problem}"]
    assert "hunter2" not in problems[0]


def test_a_very_long_value_is_refused_quickly() -> None:
    began = time.process_time()
    for name in ("brand_name", "brand_color", "brand_logo_url", "brand_support", "brand_footer", "default_time_zone"):
        for part in ("a", "a.", "0 ", "\\n", "@", "a@", ": "):
            load(**{name: "https://" + part * 50_000, "worker": False})
            load(**{name: part * 50_000, "worker": False})
    assert time.process_time() - began < 5


def test_a_logo_needs_a_name() -> None:
    logo = {"brand_logo_url": "https://acme.example/logo.png"}
    (problem,) = load(**logo)[1]
    assert problem.startswith("BRAND_LOGO_URL: needs BRAND_NAME")
    assert [it.partition(":")[0] for it in load(**logo, brand_name="a\0b")[1]] == ["BRAND_NAME"]


@pytest.mark.parametrize("name", ["Acme", 'A "cme", <Inc>', "Zoë & Söhne", "=?utf-8?q?x?=", "{{ otp }}", "a@b.c"])
def test_a_sender_without_a_name_has_that_of_the_brand(name: str) -> None:
    identity = mail_identity(load(**ACME | {"brand_name": name})[0])
    part = Part.of("x")
    content = Skeleton(identity.sender).build(
        recipient="u@x.example", subject="s", text=part, html=part, at_s=1, token="t"
    )
    message = message_from_bytes(content, policy=email.policy.default)
    (address,) = message["From"].addresses
    assert (address.display_name, address.addr_spec) == (name, "no-reply@acme.example")
    assert mail_identity(load(**ACME | {"sender_email": "Other <a@b.c>"})[0]).sender == ("Other", "a@b.c")
    assert mail_identity(load(brand_name=name)[0]).sender == ("", "")


def test_a_tenant_inherits_what_it_does_not_set(read: Read) -> None:
    tenants, problems = read("[tenants.a]\n[tenants.b]\nbrand_color = '#123456'\nsubject_time = false\n"
                             "default_time_zone = 'Asia/Tokyo'")  # fmt: skip
    assert problems == []
    identities = tenant_identities(tenants)
    assert identities["a"] == mail_identity(load(**ACME)[0])
    its = identities["b"]
    assert (its.brand.name, its.brand.color, its.brand.support) == ("Acme", "#123456", "help@acme.example")
    assert (its.subject_time, its.time_zone) == (False, "Asia/Tokyo")
    assert tenants.listed["b"].origin("brand_name") == "environment"


def test_a_tenant_with_a_brand_of_its_own_shows_nothing_of_the_other_brand(read: Read) -> None:
    tenants, problems = read("[tenants.a]\nbrand_name = 'Shop'\n[tenants.b]\nbrand_name = 'B'\n"
                             "brand_footer = '''\nB Ltd\nLondon\n'''")  # fmt: skip
    assert problems == []
    identities = tenant_identities(tenants)
    assert identities["a"].brand == Brand(name="Shop")
    assert identities["a"].sender == ("Shop", "no-reply@acme.example")
    assert identities["b"].brand == Brand(name="B", footer=("B Ltd", "London"))
    assert (identities["a"].time_zone, identities["a"].subject_time) == ("Europe/Berlin", True)
    assert [tenants.listed["a"].origin(it) for it in ("brand_name", "brand_color", "subject_time")] == [
        "tenant", "default", "environment",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("toml", "problem"),
    [
        ("brand_name = 'a\u202eb'", f"brand_name: {_INVISIBLE}"),
        ("brand_name = 7", "brand_name: must be a valid string"),
        ("brand_colour = '#123'", "brand_colour: cannot be set for a tenant; did you mean brand_color?"),
        ("brand_color = 'blue'", "brand_color: must be a colour such as #2f5fd0"),
        ("brand_support = 'http://x.example'", "brand_support: must start with https://"),
        ("brand_footer = ['a', 'b']", "brand_footer: must be one value"),
        ("default_time_zone = 'europe/paris'", f"default_time_zone: {_ZONE}did you mean Europe/Paris?"),
        ("subject_time = 'perhaps'", "subject_time: must be true or false"),
    ],
)  # fmt: skip
def test_a_bad_value_of_a_tenant_names_file_tenant_key_and_fix(read: Read, toml: str, problem: str) -> None:
    tenants, problems = read(f"[tenants.shop]\n{toml}")
    assert tenants.listed == {}
    assert [it[: len(problem) + 29] for it in problems] == [f"TENANTS_FILE: [tenants.shop] {problem}"]


def test_a_logo_of_a_tenant_needs_a_name_that_may_be_inherited(read: Read) -> None:
    logo = "[tenants.shop]\nbrand_logo_url = 'https://shop.example/logo.png'"
    assert read(logo)[1] == []
    (problem,) = read(logo, brand_name=None, brand_logo_url=None)[1]
    assert problem.startswith("TENANTS_FILE: [tenants.shop] brand_logo_url: needs BRAND_NAME")


def test_another_brand_is_another_identity(read: Read) -> None:
    before = tenant_identities(read("[tenants.a]\nbrand_name = 'A'")[0])
    assert tenant_identities(read("[tenants.a]\nbrand_name = 'A'")[0]) == before
    assert tenant_identities(read("[tenants.a]\nbrand_name = 'B'")[0]) != before


def test_another_brand_is_used_from_the_next_mail_on(read: Read) -> None:
    default = mail_identity(load(**ACME)[0])
    composer = Composer(default, b"k" * 32, tenant_identities(read("[tenants.a]\nbrand_name = 'A'")[0]))
    request = OtpJob.from_bytes(b'{"email": "u@x.example", "otp": "123456"}')
    job = Job.from_request(
        request, job_id="j", lane="jobs", first_seen_ms=1, attempts_made=0, default_expiry_minutes=15, tenant="a"
    )
    assert composer.compose(job).content.startswith(b'From: "A" <no-reply@acme.example>')
    composer.use(composer.prepare(tenant_identities(read("[tenants.a]\nbrand_name = 'B'")[0])))
    assert composer.compose(job).content.startswith(b'From: "B" <no-reply@acme.example>')


def test_editors_know_the_bounds_of_a_tenants_brand() -> None:
    table = schema()["properties"]["tenants"]["additionalProperties"]["properties"]
    assert table["brand_name"]["maxLength"] == 60
    assert table["brand_color"]["pattern"].startswith("^#")
    assert (table["subject_time"]["type"], table["default_time_zone"]["type"]) == ("boolean", "string")


def test_every_time_zone_that_has_a_name_can_be_used() -> None:
    assert len(time_zone_names()) > 400
    assert all(find_time_zone(name) is not None for name in time_zone_names())
    assert find_time_zone("Mars/Phobos") is None


@given(st.text(max_size=80))
@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_is_a_safe_name_contact_and_footer_or_refused(text: str) -> None:
    for check in (brand_name, brand_support, brand_footer):
        with suppress(ValueError):
            taken = check(text)
            lines = (taken or "").split("\n")
            assert len(lines) == 1 or check is brand_footer
            assert not set("".join(lines)) & {*map(chr, range(32)), "\u202e", "\x7f", "\u2028"}
            assert check(taken) == taken  # tenants inherit the value, which is checked again
