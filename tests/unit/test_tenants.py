"""TENANTS_FILE: what a tenant may set, what it inherits, and how problems are reported."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import structlog
from pydantic import SecretStr

from otp_stream.configs import relay_configs, tenant_limits
from otp_stream.core.admission import Limit
from otp_stream.core.job import Job
from otp_stream.core.otp_job import MalformedError, OtpJob
from otp_stream.settings import Settings, Tenants, WatchedTenants, load, read_tenants, watched_tenants
from otp_stream.settings.tenants import KEYS
from otp_stream.settings.tenants_schema import schema
from otp_stream.tables import KeyBuilder

DEFAULT: dict[str, Any] = {
    "worker": True,
    "sender_email": "Acme <no-reply@acme.example>",
    "envelope_sender": "bounces@acme.example",
    "smtp_host": "smtp.acme.example",
    "smtp_user": "acme",
    "smtp_pass": "hunter2",
    "smtp_fallback_urls": "smtps://u:fallback-9@other.example",
    "smtp_pool_size": 7,
    "recipient_limit": "5/10m",
}
Read = Callable[..., tuple[Tenants, list[str]]]


@pytest.fixture(autouse=True)
def _empty(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (*Settings.model_fields, "node_env"):
        monkeypatch.delenv(name.upper(), raising=False)


def settings(tmp_path: Path, toml: str | bytes, **more: Any) -> Settings:
    file = tmp_path / "tenants.toml"
    file.write_bytes(toml if isinstance(toml, bytes) else toml.encode())
    found, problems = load(**{**DEFAULT, **more}, tenants_file=file)
    assert problems == []
    return found


@pytest.fixture
def read(tmp_path: Path) -> Read:
    return lambda toml, **more: read_tenants(settings(tmp_path, toml, **more))


def test_a_tenant_inherits_what_it_does_not_set(read: Read) -> None:
    tenants, problems = read('[tenants.shop]\nreply_to = "Help <help@shop.example>"\nrecipient_limit = "1/1m"')
    assert problems == []
    its = tenants.listed["shop"].settings
    assert its.reply_address == ("Help", "help@shop.example")
    assert its.sender == ("Acme", "no-reply@acme.example")
    assert its.envelope_sender == "bounces@acme.example"
    assert its.smtp_host == "smtp.acme.example"
    assert its.limits == [Limit("recipient", 1, 60_000)]
    assert tenants.listed["shop"].group == ""
    assert tenants.groups == {}


def test_a_relay_of_its_own_gets_neither_the_login_nor_the_fallbacks_of_the_default(read: Read) -> None:
    tenants, problems = read(
        '[tenants.shop]\nsmtp_host = "smtp.shop.example"\nsmtp_user = "shop"\nsmtp_pass = "s3cre7-x"'
    )
    assert problems == []
    (relay,) = relay_configs(tenants.listed["shop"].settings)
    assert (relay.host, relay.user, relay.password, relay.pool_size) == ("smtp.shop.example", "shop", "s3cre7-x", 7)
    _, problems = read('[tenants.shop]\nsmtp_host = "smtp.shop.example"')
    assert [it.partition(": ")[2].partition(":")[0] for it in problems] == [
        "[tenants.shop] smtp_user",
        "[tenants.shop] smtp_pass",
    ]


def test_port_465_of_a_tenant_means_implicit_tls(read: Read) -> None:
    own = 'smtp_host = "x.example"\nsmtp_user = "u"\nsmtp_pass = "pass-9-word"\n'
    tenants, _ = read(f"[tenants.a]\n{own}smtp_port = 465\n[tenants.b]\n{own}")
    assert [it.settings.smtp_tls for it in tenants.listed.values()] == ["implicit", "starttls"]


def test_a_sender_of_its_own_does_not_inherit_where_bounces_and_answers_go(read: Read) -> None:
    tenants, _ = read('[tenants.shop]\nsender_email = "no-reply@shop.example"', reply_to="help@acme.example")
    its = tenants.listed["shop"].settings
    assert (its.envelope_sender, its.reply_to) == (None, None)
    (first, *_) = relay_configs(its)
    assert first.sender == "no-reply@shop.example"


def test_tenants_with_the_same_relay_share_a_group(read: Read) -> None:
    own = 'smtp_host = "x.example"\nsmtp_user = "u"\nsmtp_pass = "pass-9-word"\n'
    tenants, _ = read(f"[tenants.a]\n{own}[tenants.b]\n{own}[tenants.c]\nsmtp_rate_per_second = 5\n[tenants.d]\n")
    assert {name: it.group for name, it in tenants.listed.items()} == {"a": "a", "b": "a", "c": "c", "d": ""}
    assert list(tenants.groups) == ["a", "c"]
    (rated, _) = relay_configs(tenants.groups["c"])
    assert (rated.host, rated.user, rated.rate) == ("smtp.acme.example", "acme", 5)


def test_secrets_come_from_files_beside_the_tenants_file(read: Read, tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "shop").write_text("from-a-file-9\n")
    (tmp_path / "mails").mkdir()
    own = 'smtp_host = "x.example"\nsmtp_user = "u"\nsmtp_pass_file = "secrets/shop"\ntemplates_dir = "mails"'
    tenants, problems = read(f"[tenants.shop]\n{own}")
    assert problems == []
    its = tenants.listed["shop"].settings
    assert its.smtp_pass == SecretStr("from-a-file-9")
    assert its.templates_dir == tmp_path / "mails"
    assert tenants.files == (tmp_path / "secrets" / "shop",)


@pytest.mark.parametrize(
    ("toml", "problem"),
    [
        (
            "[tenants.a]\nsmtp_hosts = 'x'",
            "[tenants.a] smtp_hosts: cannot be set for a tenant; did you mean smtp_host",
        ),
        ("[tenants.a]\nredis_url = 'x'", "[tenants.a] redis_url: cannot be set for a tenant; see docs/tenants.md"),
        ("[tenants.a]\nsmtp_port = 'abc'", "[tenants.a] smtp_port: must be a whole number"),
        ("[tenants.a]\nsmtp_port = 70000", "[tenants.a] smtp_port: must be 65535 or less"),
        ("[tenants.a]\nsmtp_host = ['x']", "[tenants.a] smtp_host: must be one value"),
        ("[tenants.a]\nsender_email = ''", "[tenants.a] sender_email: must be one value"),
        ("[tenants.a]\nsender_email = 'nobody'", "[tenants.a] sender_email: must be one address"),
        (
            "[tenants.a]\nenvelope_sender = 'A <a@b.c>'",
            "[tenants.a] envelope_sender: must be an address without a name",
        ),
        ("[tenants.a]\nrecipient_limit = 5", "[tenants.a] recipient_limit: must be a valid string"),
        ("[tenants.a]\nrecipient_limit = '5'", "[tenants.a] recipient_limit: must look like 5/10m"),
        ("[tenants.a]\nsmtp_pass_file = 'gone'", "[tenants.a] smtp_pass_file: does not exist"),
        ("[tenants.a]\nsmtp_pass_file = 7", "[tenants.a] smtp_pass_file: must be the path of a file"),
        ("[tenants.a]\nsmtp_pass = 'x'\nsmtp_pass_file = 'y'", "[tenants.a] smtp_pass_file: smtp_pass is set, too"),
        ("[tenants.a]\ntemplates_dir = 'gone'", "[tenants.a] templates_dir: "),
        ("tenants = 5", "tenants: must be one or more tables such as [tenants.shop-17]"),
        ("", "tenants: must be one or more tables such as [tenants.shop-17]"),
        ("[tenants]\na = 5", "[tenants.a] must be a table of settings"),
        ("[tenants.default]", "tenants: default is the name for jobs without a tenant"),
        ('[tenants." a"]', "tenants: a name must have 1 to 64 printable characters"),
        ('[tenants.""]', "tenants: a name must have 1 to 64 printable characters"),
        (f"[tenants.{'a' * 65}]", "tenants: a name must have 1 to 64 printable characters"),
        (f'[tenants."{"語" * 43}"]', "tenants: a name must have at most 128 bytes"),
        ("unknown = 'drop'", 'unknown: must be "default" or "malformed"'),
        ("unknown = ['drop']", 'unknown: must be "default" or "malformed"'),
        ("tenant = 5", "tenant: is not known here"),
        (None, "tenants.toml: cannot be read (No such file or directory)"),
        ("[tenants.a", "tenants.toml: is not valid TOML: "),
        ("[tenants.a]\n[tenants.a]", "tenants.toml: is not valid TOML: "),
        (b"\xff\xfe[\x00", "tenants.toml: is not encoded as UTF-8"),
        ("x = " + "[" * 5000, "tenants.toml: is "),
        ("#" * (2 << 20), "tenants.toml: has more than 1048576 bytes"),
    ],
)
def test_a_problem_names_tenant_key_and_fix(tmp_path: Path, toml: str | bytes | None, problem: str) -> None:
    its = settings(tmp_path, toml or "")
    if toml is None:
        (tmp_path / "tenants.toml").unlink()
    tenants, problems = read_tenants(its)
    assert problems, toml
    assert all(it.startswith("TENANTS_FILE: ") for it in problems)
    assert any(problem in it for it in problems), problems
    assert tenants.listed == {}


def test_all_problems_are_reported_at_once_and_quote_no_secret(read: Read) -> None:
    _, problems = read(
        "[tenants.a]\nsmtp_pass = 5\nsmtp_port = 0\n[tenants.b]\nsmtp_fallback_urls = 'smtp://u:hidden-9@h/path'"
    )
    assert len(problems) == 3
    assert "hidden-9" not in " ".join(problems)


def test_an_unsafe_relay_of_a_tenant_is_refused_in_production(read: Read) -> None:
    safe = {"app_env": "production", "secret_key": "c0ffee15900dc0deba5eba11", "rabbitmq_url": "amqp://o:a9-b8-c7@h/"}
    own = 'smtp_host = "x.example"\nsmtp_tls = "none"\nsmtp_user = "u"\nsmtp_pass = "password"'
    _, problems = read(f"[tenants.a]\n{own}", **safe, smtp_pass="a9-b8-c7-d6")
    assert len(problems) == 2
    assert all("[tenants.a] smtp_" in it and "refused in production" in it for it in problems)


@pytest.mark.parametrize(
    ("value", "tenant"),
    [("shop", "shop"), (" shop ", "shop"), (17, "17"), (17.0, "17"), ("17", "17"), (None, ""), ("", ""), (True, ""),
     (["shop"], ""), ({"a": 1}, ""), ("Shop", ""), ("other", ""), ("default", ""), (float("nan"), ""),
     ("x" * 10_000, "")],
)  # fmt: skip
def test_metadata_names_a_tenant(read: Read, value: object, tenant: str) -> None:
    tenants, _ = read('[tenants.shop]\n[tenants."17"]')
    assert tenants.find(value) == tenant


def test_jobs_of_unknown_tenants_are_malformed_if_that_is_set(read: Read) -> None:
    tenants, _ = read('unknown = "malformed"\n[tenants.shop]')
    assert tenants.find("shop") == "shop"
    for value in (None, "", " ", "default"):
        assert tenants.find(value) == ""
    for value in (["shop"], {"name": "shop"}, True, float("nan")):
        with pytest.raises(MalformedError):
            tenants.find(value)
    with pytest.raises(MalformedError) as error:
        tenants.find("739154")
    assert str(error.value).startswith("metadata.tenant: ")
    assert "739154" not in str(error.value)


def test_limits_of_recipients_count_the_tenants_jobs_only(read: Read, tmp_path: Path) -> None:
    toml = '[tenants.a]\nrecipient_limit = "1/1m"\n[tenants.b]\n'
    tenants, _ = read(toml)
    limits = tenant_limits(settings(tmp_path, toml), tenants)
    union = [Limit("recipient", 5, 600_000), Limit("recipient", 1, 60_000)]
    keys = KeyBuilder(b"k" * 32, limits=union, tenants=limits, supersede=True)

    def of(tenant: str, **metadata: str) -> Any:
        request = OtpJob.from_bytes(json.dumps({"email": "a@b.c", "otp": "123456", "metadata": metadata}).encode())
        made = Job.from_request(
            request, job_id="1", lane="jobs", first_seen_ms=1, attempts_made=0, default_expiry_minutes=1, tenant=tenant
        )
        return keys.keys_of(made)

    default, own, inherited = of("").limits, of("a").limits, of("b").limits
    assert default[0]
    assert default[1] == ""
    assert own[0] == ""
    assert own[1].endswith(f":{default[0]}")
    assert inherited[0].endswith(f":{default[0]}")
    assert inherited[0] not in {default[0], own[1]}
    assert len({of(it).purpose for it in ("", "a", "b")}) == 3
    # no purpose of a producer names another tenant
    assert of("", purpose="login\0a").purpose != of("a", purpose="login").purpose
    assert of("", purpose="\0otp\0a").purpose != of("a").purpose


def test_two_hundred_tenants_are_read_in_a_moment(read: Read) -> None:
    toml = "".join(
        f'[tenants.shop-{n}]\nsender_email = "no-reply@s{n}.example"\nsmtp_host = "smtp{n}.example"\n'
        f'smtp_user = "u"\nsmtp_pass = "pass-{n}-word"\n'
        for n in range(200)
    )
    tenants, problems = read(toml)
    assert problems == []
    assert len(tenants.groups) == 200


def test_more_than_a_thousand_tenants_are_refused(read: Read) -> None:
    _, problems = read("".join(f"[tenants.t{n}]\n" for n in range(1001)))
    assert problems == ["TENANTS_FILE: tenants: has more than 1000 entries"]


def test_the_schema_describes_every_key() -> None:
    table = schema()["properties"]["tenants"]["additionalProperties"]["properties"]
    assert {*KEYS} <= table.keys()
    assert all(it["description"] for it in table.values())


async def test_a_changed_file_is_used_and_a_broken_one_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watched_tenants, "SETTLE_S", 0.0)
    its = settings(tmp_path, "[tenants.a]")
    watched = WatchedTenants(lambda: its, read_tenants(its)[0])
    used: list[Tenants] = []

    async def use(tenants: Tenants) -> str | None:
        used.append(tenants)
        return None

    file = tmp_path / "tenants.toml"
    await watched.refresh(use)
    assert used == []
    for broken in ("[tenants.b", "[tenants.b]\nsmtp_port = 0", "", None):
        file.unlink() if broken is None else file.write_text(broken)
        await watched.refresh(use)
        assert list(watched.current.listed) == ["a"]
    file.write_text('[tenants.b]\nsmtp_pass_file = "secret"')
    await watched.refresh(use)
    assert list(watched.current.listed) == ["a"]
    (tmp_path / "secret").write_text("one-9-word")
    await watched.refresh(use)
    assert list(watched.current.listed) == ["b"]
    (tmp_path / "secret").write_text("two-9-word")
    await watched.refresh(use)
    assert watched.current.listed["b"].settings.smtp_pass == SecretStr("two-9-word")
    assert len(used) == 2


async def test_tenants_that_cannot_be_used_are_not_current(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watched_tenants, "SETTLE_S", 0.0)
    its = settings(tmp_path, "[tenants.a]")
    watched = WatchedTenants(lambda: its, read_tenants(its)[0])

    async def refuse(_: Tenants) -> str | None:
        return "a template is broken"

    (tmp_path / "tenants.toml").write_text("[tenants.b]")
    await watched.refresh(refuse)
    assert list(watched.current.listed) == ["a"]


async def test_tenants_that_cannot_be_used_are_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watched_tenants, "SETTLE_S", 0.0)
    its = settings(tmp_path, "[tenants.a]")
    watched = WatchedTenants(lambda: its, read_tenants(its)[0])
    answers: list[str | None] = ["a template is broken", "a template is broken", None]

    async def use(_: Tenants) -> str | None:
        return answers.pop(0)

    (tmp_path / "tenants.toml").write_text("[tenants.b]")
    with structlog.testing.capture_logs() as logs:
        await watched.refresh(use)
        await watched.refresh(use)
        assert len(answers) == 2  # not at each poll
        watched.request()  # SIGHUP
        await watched.refresh(use)
        assert [it["log_level"] for it in logs] == ["warning"]
        monkeypatch.setattr(watched_tenants, "monotonic", lambda: 1e12)
        await watched.refresh(use)
    assert list(watched.current.listed) == ["b"]
    await watched.refresh(use)
    assert not answers


async def test_no_change_is_missed_while_a_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watched_tenants, "SETTLE_S", 0.0)
    its = settings(tmp_path, "[tenants.a]")
    watched = WatchedTenants(lambda: its, read_tenants(its)[0])
    file = tmp_path / "tenants.toml"

    def read(its: Settings) -> tuple[Tenants, list[str]]:
        found = read_tenants(its)
        file.write_text("[tenants.c]")
        return found

    async def use(_: Tenants) -> str | None:
        return None

    file.write_text("[tenants.b]")
    with monkeypatch.context() as patch:
        patch.setattr(watched_tenants, "read_tenants", read)
        await watched.refresh(use)
    await watched.refresh(use)
    assert list(watched.current.listed) == ["c"]


async def test_a_huge_file_is_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watched_tenants, "SETTLE_S", 0.0)
    its = settings(tmp_path, "[tenants.a]")
    watched = WatchedTenants(lambda: its, read_tenants(its)[0])

    async def use(_: Tenants) -> str | None:
        return None

    with (tmp_path / "tenants.toml").open("wb") as file:
        file.truncate(1 << 33)
    with structlog.testing.capture_logs() as logs:
        await watched.refresh(use)
    assert "has more than" in str(logs)


def test_a_pipe_is_not_read(tmp_path: Path) -> None:
    its = settings(tmp_path, "[tenants.a]")
    file = tmp_path / "tenants.toml"
    file.unlink()
    os.mkfifo(file)
    assert read_tenants(its)[1] == [f"TENANTS_FILE: {file}: is not a file"]


def test_a_worker_does_not_start_with_a_broken_file(tmp_path: Path) -> None:
    from otp_stream.app import assemble  # noqa: PLC0415 - it imports the whole worker

    its = settings(tmp_path, "[tenants.a]\nsmtp_port = 0")
    assert assemble(its).problems == ["TENANTS_FILE: [tenants.a] smtp_port: must be 1 or more"]


def test_os_environ_is_not_read_for_a_tenant(read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "SMTP_TLS", "none")
    own = 'smtp_host = "x.example"\nsmtp_user = "u"\nsmtp_pass = "pass-9-word"'
    tenants, _ = read(f"[tenants.a]\n{own}")
    assert tenants.listed["a"].settings.smtp_tls == "starttls"
