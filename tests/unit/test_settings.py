"""What an operator may set, what is refused, and what is never shown."""

import json
import os
import secrets
import time
from pathlib import Path

import pytest
from given_settings import clear_settings
from pydantic import SecretStr

from otp_stream.app import build
from otp_stream.configs import relay_configs
from otp_stream.core.sealing_keys import new_jwk
from otp_stream.settings import FallbackRelay, Settings, find_warnings, load
from otp_stream.settings.secret_files import secret_names
from otp_stream.urls import is_loopback

KEY = "c0ffee15900dc0deba5eba11"
LOGIN = {"smtp_host": "smtp.example.com", "smtp_user": "u", "smtp_pass": "hunter2", "sender_email": "A <a@b.c>"}


@pytest.fixture(autouse=True)
def _empty(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clear_settings(tmp_path, monkeypatch)


def test_defaults_are_the_old_workers() -> None:
    settings, problems = load()
    assert problems == []
    assert (settings.worker, settings.rabbitmq_queue_name, settings.max_retries) == (False, "service_send_otp", 3)
    assert (settings.base_delay_ms, settings.max_delay_ms, settings.prefetch_count) == (1000, 30000, 1)
    assert (settings.heartbeat_interval_ms, settings.smtp_port, settings.smtp_tls) == (30000, 587, "starttls")
    assert settings.effective_log_level == "debug"  # development


def test_a_worker_names_everything_that_is_missing_at_once() -> None:
    _, problems = load(worker=True)
    assert [problem.split(":")[0] for problem in problems] == ["SENDER_EMAIL", "SMTP_HOST", "SMTP_USER", "SMTP_PASS"]
    _, problems = load(worker=True, smtp_auth="none")
    assert [problem.split(":")[0] for problem in problems] == ["SENDER_EMAIL", "SMTP_HOST"]
    assert load(worker=True, **LOGIN)[1] == []


def test_a_folder_of_templates_that_cannot_be_read_is_named_once_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    for name, why in (("none", "does not exist"), ("file", "cannot be read (Not a directory)")):
        problems = list(build(*load(templates_dir=tmp_path / name)).problems)
        assert problems == [f"TEMPLATES_DIR: {tmp_path / name} {why}"]


def test_app_env_wins_over_node_env(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NODE_ENV", "staging")
    assert load()[0].app_env == "staging"
    monkeypatch.setenv("APP_ENV", "development")
    assert load()[0].app_env == "development"


def test_a_dotenv_file_is_read_and_the_environment_wins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("MAX_RETRIES=5\nPREFETCH_COUNT=7\nUNKNOWN=1\nSMTP_USER=\n")
    monkeypatch.setenv("PREFETCH_COUNT", "9")
    settings, problems = load()
    assert problems == []
    assert (settings.max_retries, settings.prefetch_count, settings.smtp_user) == (5, 9, None)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"app_env": "production"}, "RABBITMQ_URL: the user guest is refused in production"),
        ({"app_env": "production", "rabbitmq_url": "memory://"}, "RABBITMQ_URL: memory:// loses all jobs"),
        (
            {"app_env": "production", "rabbitmq_url": "amqp://u:p@h/", "smtp_host": "relay", "smtp_tls": "none"},
            "SMTP_TLS: none sends codes unencrypted to another host",
        ),
        ({"rabbitmq_url": "http://x"}, "RABBITMQ_URL: must start with amqp://"),
        ({"rabbitmq_url": "amqp://h:port/"}, "RABBITMQ_URL: "),
        ({"rabbitmq_url": "amqp://"}, "RABBITMQ_URL: must contain a host"),
        ({"redis_url": "http://x"}, "REDIS_URL: must start with redis://"),
        ({"redis_url": "redis://"}, "REDIS_URL: must contain a host"),
        ({"redis_url": "redis://h:port/0"}, "REDIS_URL: has a port that is not a number"),
        ({"redis_url": "redis://h/queue"}, "REDIS_URL: must end with a database number"),
        ({"redis_url": "redis://u:12/hunter2@h/0"}, "REDIS_URL: must end with a database number"),
        ({"redis_url": "redis://u:12#hunter2@h/0"}, "REDIS_URL: must end with a database number"),
        ({"redis_url": "redis://h/0?max_connections=5"}, "REDIS_URL: has an option other than client_name, db, pass"),
        ({"redis_url": "redis://h/0?ssl_ca_certs=/ca.pem"}, "REDIS_URL: has an option other than"),
        ({"base_delay_ms": 5000, "max_delay_ms": 100}, "BASE_DELAY_MS must not exceed MAX_DELAY_MS"),
        ({"prefetch_count": 0}, "PREFETCH_COUNT: "),
        ({"sender_email": "nobody"}, "SENDER_EMAIL: must be one address"),
        ({"sender_email": "A <a@b.c>\nBcc: x@y.z"}, "SENDER_EMAIL: must be one address"),
        ({"smtp_ca_file": "/nowhere.pem"}, "SMTP_CA_FILE: /nowhere.pem does not exist"),
        ({"templates_dir": "/nowhere"}, "TEMPLATES_DIR: /nowhere does not exist"),
        ({"rabbitmq_prefix": "a b"}, "RABBITMQ_PREFIX: "),
    ],
)
def test_each_problem_is_named(values: dict[str, object], message: str) -> None:
    _, problems = load(**values)
    assert [problem for problem in problems if problem.startswith(message)], problems


def test_what_is_bad_and_what_is_missing_is_named_in_one_go(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORKER": "true", "PREFETCH_COUNT": "many", "NODE_ENV": "test", "SMTP_HOST": "h"}.items():
        monkeypatch.setenv(name, value)
    settings, problems = load()
    assert {problem.split(":")[0] for problem in problems} == {
        "PREFETCH_COUNT", "NODE_ENV (or APP_ENV)", "SENDER_EMAIL", "SMTP_USER", "SMTP_PASS",
    }  # fmt: skip
    assert "NODE_ENV (or APP_ENV): must be 'development', 'staging' or 'production'" in problems
    assert (settings.smtp_host, settings.prefetch_count) == ("h", 1)


def test_production_may_send_in_the_clear_to_loopback_only() -> None:
    safe = {"app_env": "production", "rabbitmq_url": "amqp://u:p@h/", "smtp_tls": "none", "secret_key": KEY}
    assert load(**safe, smtp_host="127.0.0.1")[1] == []
    assert all(map(is_loopback, ("localhost", "::1", "[::1]", "127.9.9.9")))
    assert not any(map(is_loopback, ("10.0.0.1", "relay", "relay.localhost")))


def test_a_bad_value_is_never_quoted() -> None:
    _, problems = load(rabbitmq_url="http://user:hunter2@x")
    assert "hunter2" not in " ".join(problems)


def test_secrets_are_masked_wherever_settings_are_shown() -> None:
    settings, _ = load(worker=True, rabbitmq_url="amqps://otp:hunter2@h:5671/v?cert=hunter2", **LOGIN)
    for shown in (str(settings.shown()), repr(settings), str(settings)):
        assert "hunter2" not in shown
    assert settings.masked_rabbitmq_url == "amqps://otp:***@h:5671/v"
    odd, _ = load(rabbitmq_url="amqp://otp:12/hunter2@h:5672/v")
    assert "hunter2" not in str(odd.masked_rabbitmq_url)


@pytest.mark.parametrize(
    "url",
    [
        "redis://h", "redis://h/", "redis://u:p@h:1/15", "unix:///run/a@b.sock?db=1", "redis://h?client_name=otp",
        "rediss://h/0?ssl_ca_certs=/ca.pem&ssl_check_hostname=no",
    ],
)  # fmt: skip
def test_the_usual_urls_of_redis_are_taken(url: str) -> None:
    assert load(redis_url=url)[1] == []


def test_the_usual_port_of_implicit_tls_means_it() -> None:
    for port in (465, "465", "0465", "465.0", " '465' "):
        assert load(smtp_port=port)[0].smtp_tls == "implicit"
    assert load(smtp_port="465", smtp_tls="starttls")[0].smtp_tls == "starttls"
    assert load(smtp_port=2525)[0].smtp_tls == "starttls"


@pytest.mark.parametrize(
    ("written", "meant"), [("WARN", "warning"), ("verbose", "debug"), ("Info", "info"), ("http", "info")]
)
def test_the_old_workers_log_levels_are_understood(written: str, meant: str) -> None:
    assert load(log_level=written)[0].effective_log_level == meant


def test_the_embedded_broker_is_on_loopback() -> None:
    assert load(rabbitmq_url="memory://")[0].amqp_url == "amqp://guest:guest@127.0.0.1:5673/"
    assert load(rabbitmq_url="memory://127.0.0.1:7777")[0].amqp_url == "amqp://guest:guest@127.0.0.1:7777/"


@pytest.mark.parametrize(
    ("written", "wire"), [("Größe <s@faß.de>", "s@xn--fa-hia.de"), ("s@Example.com.", "s@example.com")]
)
def test_the_senders_domain_is_read_as_idna_2008(written: str, wire: str) -> None:
    assert load(sender_email=written)[0].sender[1] == wire


@pytest.mark.parametrize(
    ("written", "sender"),
    [
        ("Bob, X <a@b.c>", ("Bob, X", "a@b.c")),
        ('"Bob \\"X\\"" <a@b.c>', ('Bob "X"', "a@b.c")),
        ("a@b.c <d@e.f>", ("a@b.c", "d@e.f")),
        ("a@b.c via <d@e.f>", ("a@b.c via", "d@e.f")),
        ("<a@b.c>", ("", "a@b.c")),
    ],
)
def test_the_sender_is_the_address_in_angle_brackets(written: str, sender: tuple[str, str]) -> None:
    settings, problems = load(sender_email=written)
    assert (settings.sender, problems) == (sender, [])


@pytest.mark.parametrize(
    "written",
    [
        "a@b.c, d@e.f", "a@b.c;d@e.f", "Bob <a@b.c> x", "Bob <a@b.c", "Team: a@b.c;", "a:b@c.d", "mailto:a@b.c",
        "a(b)@c.d", "a@b@c", "a\u200bb@c.d", "a\\b@c.d", "<a@b.c> <d@e.f>", "a" * 65 + "@b.c", "\u202e<a@b.c>@d.e",
    ],
)  # fmt: skip
def test_a_sender_that_is_not_one_address_is_refused(written: str) -> None:
    (problem,) = load(sender_email=written)[1]
    assert problem.startswith("SENDER_EMAIL: must be one address such as")


@pytest.mark.parametrize("host", ["a..b", "a" * 64 + ".example", "mx..", "a." + "b" * 64])
def test_a_host_that_no_resolver_takes_is_refused(host: str) -> None:
    assert load(smtp_host=host)[1][0].startswith("SMTP_HOST: must be a host without")
    for name, scheme in (("rabbitmq_url", "amqp"), ("redis_url", "redis"), ("smtp_fallback_urls", "smtp")):
        (problem,) = load(**{name: f"{scheme}://u:hunter2@{host}"})[1]
        assert "an invalid host" in problem
        assert "hunter2" not in problem


@pytest.mark.parametrize(("name", "scheme"), [("rabbitmq_url", "amqp"), ("redis_url", "rediss")])
def test_a_host_that_libraries_would_look_up_under_another_name_is_refused(name: str, scheme: str) -> None:
    (problem,) = load(**{name: f"{scheme}://u:hunter2@straße.example"})[1]
    assert problem.endswith("has a host with non-ASCII characters; write it in the form xn--…, as at the registrar")
    assert load(**{name: f"{scheme}://u:hunter2@xn--strae-oqa.example."})[1] == []


@pytest.mark.parametrize("query", ["db=x", "db=-1", "db=", "ssl_cert_reqs=hunter2"])
def test_an_option_of_redis_that_cannot_be_meant_is_refused(query: str) -> None:
    (problem,) = load(redis_url=f"rediss://h/0?{query}")[1]
    assert problem.startswith(f"REDIS_URL: has a{'n' if query[0] == 's' else ''} {query.partition('=')[0]}")
    assert "hunter2" not in problem


def test_a_queue_name_that_amqp_cannot_hold_is_refused() -> None:
    assert load(rabbitmq_queue_name="ü" * 100)[1] == []
    assert load(rabbitmq_queue_name="ü" * 101)[1] == ["RABBITMQ_QUEUE_NAME: must have 200 bytes or fewer in UTF-8"]


def test_a_relays_name_is_read_as_idna_2008() -> None:
    found, _ = load(smtp_host="smtp.straße.example", smtp_fallback_urls="smtp://mx.faß.de")
    assert (found.smtp_host, found.fallbacks[0].host) == ("smtp.xn--strae-oqa.example", "mx.xn--fa-hia.de")


def test_a_long_sender_is_read_in_linear_time() -> None:
    began = time.process_time()
    assert load(sender_email=f"A{' ' * 40_000}b")[1]
    assert time.process_time() - began < 1


@pytest.mark.parametrize("wrong", [{"sender_email": "s@💩.la"}, {"smtp_host": "💩.la"}])
def test_a_name_that_idna_2008_does_not_allow_is_refused(wrong: dict[str, str]) -> None:
    (problem,) = load(**wrong)[1]
    assert problem.endswith(": must have a domain that IDNA 2008 allows")


def test_workers_of_one_deployment_share_a_hash_key_and_others_do_not_know_it() -> None:
    keys = [
        load(worker=True, rabbitmq_url=url, **LOGIN)[0].hash_key
        for url in ("amqp://a:b@h1/", "amqp://a:b@h2/", "amqp://a:c@h1/")
    ]
    assert keys[0] == keys[1] != keys[2]


def test_fallback_relays_are_read_in_order() -> None:
    urls = "smtp://u:p%40ss@one.example.com, smtps://two.example.com:2465,smtp://127.0.0.1:2525?tls=none"
    settings, problems = load(smtp_fallback_urls=urls, **LOGIN)
    assert problems == []
    assert settings.fallbacks == [
        FallbackRelay("one.example.com", 587, "starttls", "u", "p@ss"),
        FallbackRelay("two.example.com", 2465, "implicit", None, None),
        FallbackRelay("127.0.0.1", 2525, "none", None, None),
    ]
    shown = settings.shown()["smtp_fallback_urls"]
    assert shown == ["one.example.com:587", "two.example.com:2465", "127.0.0.1:2525"]
    assert "p@ss" not in repr(settings.fallbacks)


@pytest.mark.parametrize(
    ("url", "fix"),
    [
        ("relay.example.com:587", "must look like smtp://user:password@host:587"),
        ("smtp://", "must look like"),
        ("smtp://hunter2@h", "both a user and a password"),
        ("smtp://u:hunter2@h/x", "nothing else"),
        ("smtp://u:hunter2#@h", "in a password write"),
        ("smtp://u:hunter2@h?tls=maybe", "nothing else"),
        ("smtps://u:hunter2@h?tls=none", "leave ?tls= out"),
        ("smtp://u:hunter2@h:99999", "port"),
    ],
)
def test_a_bad_fallback_relay_is_named_by_its_place_and_not_quoted(url: str, fix: str) -> None:
    _, [problem] = load(smtp_fallback_urls=f"smtp://good.example.com,{url}")
    assert problem.startswith("SMTP_FALLBACK_URLS: entry 2 ")
    assert fix in problem
    assert "hunter2" not in problem


def test_production_refuses_a_fallback_in_the_clear() -> None:
    production = {"app_env": "production", "rabbitmq_url": "amqp://u:p@h", "secret_key": KEY, **LOGIN}
    _, [problem] = load(smtp_fallback_urls="smtp://relay.example.com?tls=none", **production)
    assert problem.startswith("SMTP_FALLBACK_URLS: tls=none sends codes unencrypted to relay.example.com")
    assert load(smtp_fallback_urls="smtp://localhost?tls=none", **production)[1] == []


def test_a_rate_is_a_number_above_nothing() -> None:
    assert load(smtp_rate_per_second="2.5")[0].smtp_rate_per_second == 2.5
    for bad in ("0", "-1", "inf", "nan", "many"):
        settings, [problem] = load(smtp_rate_per_second=bad)
        assert problem.startswith("SMTP_RATE_PER_SECOND: ")
        assert settings.smtp_rate_per_second is None


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "latin-1", "utf-32"])
def test_a_dotenv_file_in_another_encoding_is_named_and_not_misread(encoding: str, tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes("WORKER=true\nSMTP_PASS=hünter2\n".encode(encoding))
    settings, problems = load()
    assert not settings.worker
    assert [problem for problem in problems if problem.startswith(".env: ") and "UTF-8" in problem]
    assert "nter2" not in " ".join(problems)


@pytest.mark.parametrize("others", ["own it", "may change it", "may replace it"])
def test_a_dotenv_file_of_which_others_can_decide_is_not_read(
    others: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / ".env"
    file.write_text("MAX_RETRIES=5\n")
    assert load()[0].max_retries == 5
    match others:
        case "own it":
            monkeypatch.setattr("os.geteuid", lambda: 4711)
            owned_by_another(file)
        case "may change it":
            file.chmod(0o666)
        case _:
            tmp_path.chmod(0o777)
    settings, problems = load()
    assert settings.max_retries != 5
    assert [it for it in problems if it.startswith(".env: ") and "it is not read" in it]


def owned_by_another(file: Path) -> None:
    if os.getuid() == 0:
        os.chown(file, 4712, -1)
    else:  # it is ours, and the process pretends to be another user
        assert file.stat().st_uid not in {0, 4711}


def test_a_dotenv_file_in_a_shared_folder_with_the_sticky_bit_is_read(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("MAX_RETRIES=5\n")
    tmp_path.chmod(0o1777)
    assert load()[0].max_retries == 5


def test_a_dotenv_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes("MAX_RETRIES=5\n".encode("utf-8-sig"))
    assert load()[0].max_retries == 5


def test_env_example_works_for_a_reader_that_takes_every_value_literally(monkeypatch: pytest.MonkeyPatch) -> None:
    example = Path(__file__).parents[2] / ".env.example"
    for line in example.read_text().splitlines():
        if line and not line.startswith("#"):
            name, _, value = line.partition("=")
            assert value == value.strip("\"' ")
            monkeypatch.setenv(name, value)
    settings, problems = load()
    assert problems == []
    assert settings.sender == ("Example", "no-reply@example.com")


@pytest.mark.parametrize("around", ["{}\n", " {} ", '"{}"', "'{}'", '"{}"\r\n', "\ufeff{}"])
def test_quotes_and_blanks_around_a_value_are_taken_off(around: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written = {
        "SMTP_PASS": "hunter2", "SMTP_HOST": "relay.example.com", "SMTP_PORT": "465", "NODE_ENV": "production",
        "RABBITMQ_URL": "amqps://u:p@h/", "SENDER_EMAIL": "Example <a@b.c>", "WORKER": "true", "SMTP_USER": "u",
        "HTTP_TOKEN": "f1d5a8c0327b46e9", "PREFETCH_COUNT": "9", "SECRET_KEY": KEY,
    }  # fmt: skip
    for name, value in written.items():
        monkeypatch.setenv(name, around.format(value))
    settings, problems = load()
    assert problems == []
    assert settings.smtp_pass
    assert settings.http_token
    assert settings.smtp_pass.get_secret_value() == "hunter2"
    assert settings.http_token.get_secret_value() == written["HTTP_TOKEN"]
    assert (settings.smtp_host, settings.smtp_port, settings.smtp_tls) == ("relay.example.com", 465, "implicit")
    assert (settings.app_env, settings.worker, settings.prefetch_count) == ("production", True, 9)
    assert (settings.amqp_url, settings.sender_email) == (written["RABBITMQ_URL"], "Example <a@b.c>")


def test_a_blank_environment_is_not_development(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NODE_ENV", "production")
    monkeypatch.setenv("APP_ENV", " ")
    assert load()[1][0].startswith("NODE_ENV (or APP_ENV): must be")


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"smtp_host": "relay:25"}, "SMTP_HOST: must be a host without a port: set SMTP_PORT=25"),
        ({"smtp_host": "[::1]:25"}, "SMTP_HOST: must be a host without"),
        ({"smtp_host": "smtp://u:hunter2@relay"}, "SMTP_HOST: must be a host without"),
        ({"smtp_host": "relay/hunter2"}, "SMTP_HOST: must be a host without"),
        ({"smtp_port": "tcp://10.0.0.1:25"}, "SMTP_PORT: is an address, as Kubernetes sets it"),
        ({"smtp_port": "many"}, "SMTP_PORT: must be a whole number"),
        ({"smtp_port": "0"}, "SMTP_PORT: must be 1 or more"),
        ({"worker": "perhaps"}, "WORKER: must be true or false"),
        ({"http_token": "short"}, "HTTP_TOKEN: must have 16 characters or more"),
        ({"http_token": "correct-hörse-hunter2"}, "HTTP_TOKEN: must have ASCII characters only; make a random one"),
        ({"intake_supabase_secret": "v1,whsec_hunter2"}, "INTAKE_SUPABASE_SECRET: must be a secret such as v1,whsec_…"),
        ({"intake_zitadel_key": "7a0e95d3c1b8f264,hunter2"}, "INTAKE_ZITADEL_KEY: must have 16 characters or more"),
        ({"intake_token": "c9d41f7e0b8265a3,short"}, "INTAKE_TOKEN: must have 16 ASCII characters or more, no spaces"),
        ({"smtp_pass": "hunter2\nnext"}, "SMTP_PASS: contains a line break"),
        ({"smtp_user": "hunter2\x00"}, "SMTP_USER: contains a line break"),
        ({"sent_ttl_hours": "long"}, "SENT_TTL_HOURS: must be a number"),
    ],
)
def test_a_bad_value_is_explained_in_plain_words(values: dict[str, object], problem: str) -> None:
    _, [message] = load(**values)
    assert message.startswith(problem)
    assert "hunter2" not in message
    assert "validation" not in message


@pytest.mark.parametrize("host", ["::1", "[::1]", "127.0.0.1", "relay", "smtp.example.com.", "a_b"])
def test_the_usual_hosts_are_taken(host: str) -> None:
    settings, problems = load(smtp_host=host)
    assert problems == []
    assert settings.smtp_host == host.strip("[]")


SAFE = {"rabbitmq_url": "amqps://u:n8Vq2x@h/", "secret_key": KEY, **LOGIN}


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"rabbitmq_url": "amqps://u:n8Vq2x@h/?no_verify_ssl=1"}, "RABBITMQ_URL: no_verify_ssl"),
        ({"redis_url": "rediss://u:n8Vq2x@h/0?ssl_cert_reqs=none"}, "REDIS_URL: ssl_cert_reqs"),
        ({"redis_url": "rediss://u:n8Vq2x@h/0?ssl_check_hostname=False"}, "REDIS_URL: ssl_cert_reqs"),
        ({"rabbitmq_url": "amqps://u:change-me@h/"}, "RABBITMQ_URL: its password"),
        ({"redis_url": "rediss://u:password@h/0"}, "REDIS_URL: its password"),
        ({"rabbitmq_url": "amqps://otp:otp@h/"}, "RABBITMQ_URL: its password"),
        ({"rabbitmq_url": "amqps://u:qwertyuiop@h/"}, "RABBITMQ_URL: its password"),
        ({"redis_url": "rediss://:redis@h/0"}, "REDIS_URL: its password"),
        ({"redis_url": "rediss://h/0?username=u&password=change_me"}, "REDIS_URL: its password"),
        ({"redis_url": "rediss://u:%63hangeme@h/0"}, "REDIS_URL: its password"),
        ({"smtp_pass": "change-me"}, "SMTP_PASS: is a placeholder"),
        ({"smtp_pass": "Change Me!"}, "SMTP_PASS: is a placeholder"),
        ({"smtp_user": "mailer", "smtp_pass": "mailer"}, "SMTP_PASS: is a placeholder"),
        ({"smtp_pass": "password123"}, "SMTP_PASS: is a placeholder"),
        ({"smtp_pass": "123456"}, "SMTP_PASS: is a placeholder"),
        ({"smtp_fallback_urls": "smtp://u:changeme@h.example:587"}, "SMTP_FALLBACK_URLS: the password of entry 1"),
        ({"smtp_fallback_urls": "smtp://u:n8Vq2x@h, smtps://m:m@i"}, "SMTP_FALLBACK_URLS: the password of entry 2"),
        ({"intake_token": "c9d41f7e0b8265a3,0123456789abcdef"}, "INTAKE_TOKEN: is guessable"),
        ({"http_token": "0123456789abcdef"}, "HTTP_TOKEN: is guessable"),
        ({"http_token": "aaaaaaaaaaaaaaaa"}, "HTTP_TOKEN: is guessable"),
        ({"http_token": "changeme-changeme"}, "HTTP_TOKEN: is guessable"),
        ({"http_token": "otp-stream-token"}, "HTTP_TOKEN: is guessable"),
        ({"http_token": "q1w2e3r4t5y6u7i8"}, "HTTP_TOKEN: is guessable"),
        ({"http_token": "qazwsxedcrfvtgby"}, "HTTP_TOKEN: is guessable"),
        ({"http_token": "2wsx1qaz4rfv3edc"}, "HTTP_TOKEN: is guessable"),
        ({"http_token": "mnbvcxzlkjhgfdsa"}, "HTTP_TOKEN: is guessable"),
        ({"http_token": "otpstreamotpstream"}, "HTTP_TOKEN: is guessable"),
        ({"http_token": "Hjk4vR1xHjk4vR1xHj"}, "HTTP_TOKEN: is guessable"),
        ({"secret_key": "q1w2e3r4t5y6u7i8"}, "SECRET_KEY: is guessable"),
        ({"secret_key": f"{KEY}, our-secret-of-today"}, "SECRET_KEY: is guessable"),
    ],
)
def test_what_is_never_right_is_refused_in_production_and_warned_of_elsewhere(
    values: dict[str, object], problem: str
) -> None:
    _, [message] = load(app_env="production", **(SAFE | values))
    assert message.startswith(problem)
    settings, problems = load(app_env="staging", **(SAFE | values))
    assert problems == []
    [warning] = find_warnings(settings)
    assert warning.startswith(problem)
    for secret in (value for value in map(str, values.values()) if "://" not in value):
        assert secret not in f"{message} {warning}"


def test_a_password_is_no_placeholder_because_it_is_short_or_like_a_word() -> None:
    for password in ("n8Vq2x", "hunter2", "p", "correct-horse", "u2", secrets.token_hex(8)):
        urls = {
            "rabbitmq_url": f"amqps://u:{password}@h/",
            "redis_url": f"rediss://u:{password}@h/0",
            "smtp_fallback_urls": f"smtp://u:{password}@h",
        }
        assert load(app_env="production", **(SAFE | urls | {"smtp_pass": password}))[1] == []


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"smtp_pass": "a\nb"}, ["SMTP_PASS"]),
        ({"smtp_host": "smtp://relay"}, ["SMTP_HOST"]),
        ({"sender_email": "nobody"}, ["SENDER_EMAIL"]),
        ({"smtp_auth": "non", "smtp_user": None, "smtp_pass": None}, ["SMTP_AUTH"]),
        ({"rabbitmq_url": "amqp//u@h"}, ["RABBITMQ_URL"]),
        ({"secret_key": "short"}, ["SECRET_KEY"]),
        ({"smtp_user": "a\nb", "smtp_pass": None}, ["SMTP_PASS", "SMTP_USER"]),
        ({"base_delay_ms": "5s", "max_delay_ms": 500}, ["BASE_DELAY_MS"]),
        ({"smtp_port": "many", "base_delay_ms": 500, "max_delay_ms": 50}, ["", "SMTP_PORT"]),
        ({"templates_dir": "/nowhere"}, ["TEMPLATES_DIR"]),
    ],
)
def test_each_bad_setting_is_named_once(values: dict[str, object], named: list[str]) -> None:
    _, problems = load(worker=True, app_env="production", **(SAFE | values))
    assert sorted(it.partition(":")[0] if ":" in it else "" for it in problems) == named


CLIENT = {"smtp_oauth_token_url": "https://login.example/token", "smtp_oauth_client_id": "id"}


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({**CLIENT, "smtp_oauth_client_secret": "s"}, None),
        ({**CLIENT, "smtp_oauth_refresh_token": "r"}, None),
        ({"smtp_oauth_token_command": "/bin/token --for 'otp@example.com'"}, None),
        ({"smtp_oauth_token_file": "/run/token"}, None),
        ({"smtp_oauth_key_file": __file__, "smtp_oauth_scope": "https://mail.google.com/"}, None),
        ({"smtp_oauth_key_file": __file__, "smtp_oauth_scope": "s", "smtp_oauth_token_url": "https://h/t"}, None),
        ({}, ("SMTP_AUTH: oauth2 needs one of SMTP_OAUTH_TOKEN_URL, SMTP_OAUTH_KEY_FILE, SMTP_OAUTH_TOKEN_COMMAND, "
             "SMTP_OAUTH_TOKEN_FILE")),
        ({**CLIENT, "smtp_oauth_token_file": "/run/token"},
         "SMTP_AUTH: oauth2 needs one of them, not SMTP_OAUTH_TOKEN_URL and SMTP_OAUTH_TOKEN_FILE"),
        (CLIENT, "SMTP_OAUTH_CLIENT_SECRET: is required with SMTP_OAUTH_TOKEN_URL unless a refresh token is set"),
        ({"smtp_oauth_token_url": "https://h/t", "smtp_oauth_client_secret": "s"},
         "SMTP_OAUTH_CLIENT_ID: is required with SMTP_OAUTH_TOKEN_URL"),
        ({"smtp_oauth_key_file": __file__},
         "SMTP_OAUTH_SCOPE: is required with SMTP_OAUTH_KEY_FILE; Gmail's is https://mail.google.com/"),
        ({"smtp_oauth_key_file": "/nowhere", "smtp_oauth_scope": "s"}, "SMTP_OAUTH_KEY_FILE: /nowhere does not exist"),
        ({"smtp_oauth_token_command": "token 'for"}, "SMTP_OAUTH_TOKEN_COMMAND: has a quote that is not closed"),
        ({"smtp_oauth_token_command": "'' '' x"}, "SMTP_OAUTH_TOKEN_COMMAND: names no command"),
        ({**CLIENT, "smtp_oauth_client_secret": "s", "smtp_oauth_token_url": "http://login.example/t"},
         "SMTP_OAUTH_TOKEN_URL: must start with https://: the request carries the client's secret"),
        ({**CLIENT, "smtp_oauth_client_secret": "s", "smtp_oauth_token_url": "https://u:p@login.example/t"},
         "SMTP_OAUTH_TOKEN_URL: must not contain a user: set SMTP_OAUTH_CLIENT_ID and SMTP_OAUTH_CLIENT_SECRET"),
        ({**CLIENT, "smtp_oauth_client_secret": "s", "smtp_oauth_token_url": "login.example"},
         "SMTP_OAUTH_TOKEN_URL: must start with http:// or https://"),
    ],
)  # fmt: skip
def test_the_source_of_access_tokens_must_be_complete_and_one(values: dict[str, object], problem: str | None) -> None:
    without_password = SAFE | {"smtp_auth": "oauth2", "smtp_pass": None}
    assert load(worker=True, app_env="production", **(without_password | values))[1] == ([problem] if problem else [])


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("token", ("token",)),
        ("'token --for x'", ("token", "--for", "x")),
        ("'/my token' 'for x'", ("/my token", "for x")),
        ('"/my token" x', ("/my token", "x")),
    ],
)
def test_the_quotes_of_a_token_command_belong_to_its_words(command: str, words: tuple[str, ...]) -> None:
    settings, problems = load(**(SAFE | {"smtp_auth": "oauth2", "smtp_oauth_token_command": command}))
    assert problems == []
    oauth = relay_configs(settings)[0].oauth
    assert oauth is not None
    assert oauth.token_command == words


@pytest.mark.parametrize(
    ("values", "problems"),
    [
        ({"smtp_auth": "scram-sha-256", "smtp_pass": None}, ["SMTP_PASS"]),
        ({"smtp_auth": "plain", "smtp_user": None}, ["SMTP_USER"]),
        ({"smtp_auth": "external", "smtp_user": None, "smtp_pass": None}, ["SMTP_CERT_FILE"]),
        ({"smtp_auth": "external", "smtp_cert_file": __file__, "smtp_user": None, "smtp_pass": None}, []),
        ({"smtp_cert_file": "/nowhere.pem"}, ["SMTP_CERT_FILE"]),
        ({"smtp_key_file": __file__}, ["SMTP_CERT_FILE"]),
        ({"smtp_cert_file": __file__, "smtp_tls": "none", "smtp_host": "127.0.0.1"}, ["SMTP_CERT_FILE"]),
    ],
)
def test_each_login_requires_what_it_uses(values: dict[str, object], problems: list[str]) -> None:
    found = load(worker=True, app_env="production", **(SAFE | values))[1]
    assert [it.partition(":")[0] for it in found] == problems


def test_a_fallback_relay_logs_in_by_its_own_password() -> None:
    for auth in ("oauth2", "external", "cram-md5"):
        settings, _ = load(**(SAFE | {"smtp_auth": auth, "smtp_fallback_urls": "smtp://u:p@two.example.com"}))
        first, other = relay_configs(settings)
        assert (other.user, other.password, other.oauth, other.mechanism) == ("u", "p", None, None)
        assert first.mechanism == (None if auth == "oauth2" else auth.upper())


def test_secrets_of_oauth_are_masked() -> None:
    values = {"smtp_oauth_client_secret": "hunter2", "smtp_oauth_refresh_token": "hunter2"}
    settings, _ = load(**values, smtp_oauth_token_command="token hunter2")
    assert "hunter2" not in str(settings.shown()) + repr(settings)


def test_unencrypted_ways_to_other_hosts_are_warned_of() -> None:
    clear = {"rabbitmq_url": "amqp://u:n8Vq2x@h/", "redis_url": "redis://h/0"}
    settings, problems = load(app_env="production", **(SAFE | clear))
    assert problems == []
    assert [warning.split(":")[0] for warning in find_warnings(settings)] == ["RABBITMQ_URL", "REDIS_URL"]
    assert len(find_warnings(load(**(SAFE | clear))[0])) == 2  # development
    local = {"rabbitmq_url": "amqp://u:n8Vq2x@127.0.0.1/", "redis_url": "redis://localhost/0"}
    assert find_warnings(load(app_env="production", **(SAFE | local))[0]) == []


def test_a_random_token_is_taken() -> None:
    for token in ("f1d5a8c0327b46e9", "correct-horse-battery", secrets.token_hex(16), secrets.token_urlsafe(24)):
        assert load(app_env="production", http_token=token, **SAFE)[1] == []


@pytest.mark.parametrize(
    ("url", "smtp_pass", "known"),
    [
        ("amqp://localhost", None, True),
        ("amqp://guest:guest@localhost", None, True),
        ("amqp://guest:guest@localhost", "hunter2", False),
        ("amqp://otp:hunter2@localhost", None, False),
    ],
)
def test_no_one_can_reverse_hashes_once_a_password_is_set(url: str, smtp_pass: str | None, *, known: bool) -> None:
    settings, _ = load(rabbitmq_url=url, smtp_pass=smtp_pass)
    assert settings.hash_key_is_known is known
    assert load(rabbitmq_url=url, smtp_pass=smtp_pass, secret_key=KEY)[0].hash_key_is_known is False


def test_production_needs_a_secret_key_and_no_other_environment_does() -> None:
    production = {"app_env": "production", "rabbitmq_url": "amqp://u:p@h"}
    (problem,) = load(**production)[1]
    assert problem.startswith("SECRET_KEY: is required in production; make one with: openssl rand")
    assert load(**production, secret_key=KEY)[1] == []
    assert load(**production, secret_key=" " * 20)[1] == [problem]
    for env in ("development", "staging"):
        assert load(app_env=env)[1] == []


@pytest.mark.parametrize("key", ["short", ",", f"{KEY},short", "0000000000000000", "changemechangeme"[:7]])
def test_a_secret_key_that_can_be_guessed_is_refused_and_not_quoted(key: str) -> None:
    settings, [problem] = load(secret_key=key)
    assert problem.startswith("SECRET_KEY: ")
    assert "openssl rand -hex 32" in problem
    assert key not in problem.split()
    assert settings.secret_key is None


def test_the_first_secret_key_hashes_and_signs_and_the_others_only_verify() -> None:
    old, new = (load(secret_key=key)[0] for key in (KEY, f"{KEY[::-1]}, {KEY}"))
    assert old.old_hash_keys == ()
    assert new.hash_key != old.hash_key
    assert new.old_hash_keys == (old.hash_key,)
    # neither passwords nor the broker matter once there is one
    assert load(secret_key=KEY, rabbitmq_url="amqp://u:other@h", smtp_pass="x")[0].hash_key == old.hash_key
    assert KEY not in f"{old} {old.shown()}"


@pytest.mark.parametrize(
    ("one", "other", "shared"),
    [
        ("amqp://u:p@rabbit/", "amqp://rabbit", True),
        ("amqp://rabbit:5672/%2F", "amqps://rabbit:5671", True),
        ("amqp://RABBIT.example.com./shop", "amqp://rabbit.example.com/shop?heartbeat=5", True),
        ("amqp://localhost", "amqp://127.0.0.1", True),
        ("amqp://rabbit/a", "amqp://rabbit/b", False),
        ("amqp://rabbit/a", "amqp://rabbit", False),
        ("amqp://one/", "amqp://two/", False),
        ("amqp://localhost:5673", "amqp://localhost:5674", False),
    ],
)
def test_workers_share_their_state_where_broker_and_virtual_host_are_the_same(
    one: str, other: str, *, shared: bool
) -> None:
    prefixes = {load(rabbitmq_url=url, _env_file=None)[0].tables_prefix for url in (one, other)}
    assert (len(prefixes) == 1) is shared
    named = {load(rabbitmq_url=url, redis_namespace="shop", _env_file=None)[0].tables_prefix for url in (one, other)}
    assert len(named) == 1
    assert not named & prefixes


def test_every_secret_can_come_from_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    values = {
        "rabbitmq_url": "amqps://u:n8Vq2x@h/", "smtp_user": "n8Vq2x", "smtp_pass": " n8Vq2x", "smtp_fallback_urls": "smtp://u:n8Vq2x@h",
        "redis_url": "rediss://u:n8Vq2x@h/0", "http_token": "n8Vq2x" * 4 + "kR3", "secret_key": KEY,
        "intake_token": "c9d41f7e0b8265a3, 7a0e95d3c1b8f264",
        "intake_supabase_secret": "v1,whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "intake_zitadel_key": "7a0e95d3c1b8f264",
        "smtp_oauth_client_secret": "n8Vq2x", "smtp_oauth_refresh_token": "n8Vq2x",
        "sealing_keys": json.dumps(new_jwk("oct")),
    }  # fmt: skip
    assert secret_names() == [name for name in Settings.model_fields if name in values]
    for name, value in values.items():
        (tmp_path / name).write_text(f"\ufeff{value}\n")
        monkeypatch.setenv(f"{name}_file".upper(), str(tmp_path / name))
    settings, problems = load()
    assert problems == []
    read = {name: getattr(settings, name) for name in values}
    assert read.pop("smtp_user") == values.pop("smtp_user")
    assert {name: it.get_secret_value() for name, it in read.items()} == {
        name: value.strip() for name, value in values.items()
    }


def test_a_dotenv_file_may_name_the_file_of_a_secret_and_the_environment_wins(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        (tmp_path / name).write_text(name)
    (tmp_path / ".env").write_text(f"SMTP_PASS_FILE={tmp_path}/one\n")
    assert load()[0].smtp_pass == SecretStr("one")
    assert load(_env_file=None)[0].smtp_pass is None
    monkeypatch.setenv("smtp_pass_file", f"{tmp_path}/two")
    assert load()[0].smtp_pass == SecretStr("two")
    assert load(smtp_pass="three")[0].smtp_pass == SecretStr("three")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "does not exist"),
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"\xff\xfe", "is not encoded as UTF-8"),
        (b"x" * 70_000, "has more than 65536 bytes"),
    ],
)
def test_a_secret_file_that_cannot_be_used_is_named_once_and_not_quoted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes | None, why: str
) -> None:
    if content is not None:
        (tmp_path / "secret").write_bytes(content)
    monkeypatch.setenv("SMTP_PASS_FILE", f"{tmp_path}/secret")
    without = {name: value for name, value in SAFE.items() if name != "smtp_pass"}
    assert load(worker=True, **without)[1] == [f"SMTP_PASS_FILE: {why}: {tmp_path}/secret"]


def test_a_pipe_or_folder_is_no_secret_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setenv("SECRET_KEY_FILE", str(tmp_path / "pipe"))
    monkeypatch.setenv("HTTP_TOKEN_FILE", str(tmp_path))
    assert load()[1] == [
        f"HTTP_TOKEN_FILE: is not a file: {tmp_path}", f"SECRET_KEY_FILE: is not a file: {tmp_path / 'pipe'}",
    ]  # fmt: skip


def test_a_secret_that_is_set_twice_is_a_problem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("b")
    monkeypatch.setenv("SMTP_PASS", "a")
    monkeypatch.setenv("SMTP_PASS_FILE", f"{tmp_path}/secret")
    settings, problems = load()
    assert (settings.smtp_pass, problems) == (
        SecretStr("a"),
        ["SMTP_PASS_FILE: SMTP_PASS is set, too; set one of them"],
    )


def test_two_lines_in_a_secret_file_are_a_problem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("one\ntwo\n")
    monkeypatch.setenv("SMTP_PASS_FILE", f"{tmp_path}/secret")
    assert load()[1] == ["SMTP_PASS: contains a line break or another control character; set one value only"]


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("amqps://h/?auth=external", "must name the client certificate: certfile=/path/client.pem"),
        ("amqps://h/?keyfile={file}", "must name the client certificate: certfile=/path/client.pem"),
        ("amqp://h/?certfile={file}&auth=external", "has no TLS, but an option of TLS"),
        ("amqp://h/?auth=EXTERNAL", "has no TLS, but an option of TLS"),
        ("amqp://h/?cafile={file}", "has no TLS, but an option of TLS"),
        ("amqps://h/?auth=n8Vq2x", "has an auth other than plain, external"),
        ("amqps://h/?cafile=/nowhere.pem", "cafile /nowhere.pem does not exist"),
        ("amqps://h/?certfile={file}&keyfile={file}&auth=external", None),
        ("amqps://h/?certfile={file}&auth=EXTERNAL", None),
        ("amqps://u:p@h/?cafile={file}&auth=plain", None),
    ],
)
def test_the_options_of_a_client_certificate_are_checked(url: str, problem: str | None) -> None:
    found = load(rabbitmq_url=url.format(file=__file__), _env_file=None)[1]
    assert [it.partition("(")[0].strip() for it in found] == ([f"RABBITMQ_URL: {problem}"] if problem else [])
    assert "n8Vq2x" not in str(found)


def test_the_files_of_a_client_certificate_for_redis_must_exist() -> None:
    url = f"rediss://h/0?ssl_certfile={__file__}&ssl_keyfile=/nowhere.key"
    assert load(redis_url=url, _env_file=None)[1] == ["REDIS_URL: ssl_keyfile /nowhere.key does not exist"]


def test_in_production_a_certificate_may_be_the_login_at_rabbitmq() -> None:
    safe = {"app_env": "production", "secret_key": KEY, "_env_file": None}
    url = f"amqps://h/?certfile={__file__}&auth=external"
    assert load(rabbitmq_url=url, **safe)[1] == []
    assert load(rabbitmq_url=url.removesuffix("&auth=external"), **safe)[1] != []
