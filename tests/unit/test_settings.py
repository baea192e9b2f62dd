"""What an operator may set, what is refused, and what is never shown."""

from pathlib import Path

import pytest

from otp_stream.settings import FallbackRelay, Settings, is_loopback, load

LOGIN = {"smtp_host": "smtp.example.com", "smtp_user": "u", "smtp_pass": "hunter2", "sender_email": "A <a@b.c>"}


@pytest.fixture(autouse=True)
def _empty(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.delenv("NODE_ENV", raising=False)


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
    ("values", "told"),
    [
        ({"app_env": "production"}, "RABBITMQ_URL: the user guest is refused in production"),
        ({"app_env": "production", "rabbitmq_url": "memory://"}, "RABBITMQ_URL: memory:// keeps nothing"),
        (
            {"app_env": "production", "rabbitmq_url": "amqp://u:p@h/", "smtp_host": "relay", "smtp_tls": "none"},
            "SMTP_TLS: none is refused in production",
        ),
        ({"rabbitmq_url": "http://x"}, "RABBITMQ_URL: must start with amqp://"),
        ({"rabbitmq_url": "amqp://h:port/"}, "RABBITMQ_URL: "),
        ({"rabbitmq_url": "amqp://"}, "RABBITMQ_URL: must name a host"),
        ({"redis_url": "http://x"}, "REDIS_URL: must start with redis://"),
        ({"redis_url": "redis://"}, "REDIS_URL: must name a host"),
        ({"redis_url": "redis://h:port/0"}, "REDIS_URL: has a port that is no number"),
        ({"redis_url": "redis://h/queue"}, "REDIS_URL: must end with a database's number"),
        ({"redis_url": "redis://u:12/hunter2@h/0"}, "REDIS_URL: must end with a database's number"),
        ({"redis_url": "redis://u:12#hunter2@h/0"}, "REDIS_URL: must end with a database's number"),
        ({"redis_url": "redis://h/0?max_connections=5"}, "REDIS_URL: has an option other than client_name, db, pass"),
        ({"redis_url": "redis://h/0?ssl_ca_certs=/ca.pem"}, "REDIS_URL: has an option other than"),
        ({"base_delay_ms": 5000, "max_delay_ms": 100}, "BASE_DELAY_MS must not exceed MAX_DELAY_MS"),
        ({"prefetch_count": 0}, "PREFETCH_COUNT: "),
        ({"sender_email": "nobody"}, "SENDER_EMAIL: must be an address"),
        ({"sender_email": "A <a@b.c>\nBcc: x@y.z"}, "SENDER_EMAIL: must be an address"),
        ({"smtp_ca_file": "/nowhere.pem"}, "SMTP_CA_FILE: /nowhere.pem does not exist"),
        ({"templates_dir": "/nowhere"}, "TEMPLATES_DIR: /nowhere does not exist"),
        ({"rabbitmq_prefix": "a b"}, "RABBITMQ_PREFIX: "),
    ],
)
def test_each_problem_is_named(values: dict[str, object], told: str) -> None:
    _, problems = load(**values)
    assert [problem for problem in problems if problem.startswith(told)], problems


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
    safe = {"app_env": "production", "rabbitmq_url": "amqp://u:p@h/", "smtp_tls": "none"}
    assert load(**safe, smtp_host="127.0.0.1")[1] == []
    assert [is_loopback(host) for host in ("localhost", "::1", "[::1]", "127.9.9.9", "10.0.0.1", "relay")] == [
        True, True, True, True, False, False,
    ]  # fmt: skip


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
    assert load(smtp_port=465)[0].smtp_tls == "implicit"
    assert load(smtp_port="465", smtp_tls="starttls")[0].smtp_tls == "starttls"
    assert load(smtp_port=2525)[0].smtp_tls == "starttls"


@pytest.mark.parametrize(
    ("said", "meant"), [("WARN", "warning"), ("verbose", "debug"), ("Info", "info"), ("http", "info")]
)
def test_the_old_workers_log_levels_are_understood(said: str, meant: str) -> None:
    assert load(log_level=said)[0].effective_log_level == meant


def test_the_embedded_broker_is_on_loopback() -> None:
    assert load(rabbitmq_url="memory://")[0].amqp_url == "amqp://guest:guest@127.0.0.1:5673/"
    assert load(rabbitmq_url="memory://127.0.0.1:7777")[0].amqp_url == "amqp://guest:guest@127.0.0.1:7777/"


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
    ("url", "cure"),
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
def test_a_bad_fallback_relay_is_named_by_its_place_and_not_quoted(url: str, cure: str) -> None:
    _, [problem] = load(smtp_fallback_urls=f"smtp://good.example.com,{url}")
    assert problem.startswith("SMTP_FALLBACK_URLS: entry 2 ")
    assert cure in problem
    assert "hunter2" not in problem


def test_production_refuses_a_fallback_in_the_clear() -> None:
    production = {"app_env": "production", "rabbitmq_url": "amqp://u:p@h", **LOGIN}
    _, [problem] = load(smtp_fallback_urls="smtp://relay.example.com?tls=none", **production)
    assert problem.startswith("SMTP_FALLBACK_URLS: tls=none is refused in production to relay.example.com")
    assert load(smtp_fallback_urls="smtp://localhost?tls=none", **production)[1] == []


def test_a_rate_is_a_number_above_nothing() -> None:
    assert load(smtp_rate_per_second="2.5")[0].smtp_rate_per_second == 2.5
    for bad in ("0", "-1", "inf", "nan", "many"):
        settings, [problem] = load(smtp_rate_per_second=bad)
        assert problem.startswith("SMTP_RATE_PER_SECOND: ")
        assert settings.smtp_rate_per_second is None


@pytest.mark.parametrize(
    ("url", "smtp_pass", "known"),
    [
        ("amqp://localhost", None, True),
        ("amqp://guest:guest@localhost", None, True),
        ("amqp://guest:guest@localhost", "hunter2", False),
        ("amqp://otp:hunter2@localhost", None, False),
    ],
)
def test_hashes_are_nobodys_to_undo_once_a_password_is_somebodys_own(
    url: str, smtp_pass: str | None, *, known: bool
) -> None:
    settings, _ = load(rabbitmq_url=url, smtp_pass=smtp_pass)
    assert settings.hash_key_is_known is known
