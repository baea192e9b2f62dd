"""Settings that weaken TLS are named at start, and refused in production if they are never right."""

from pathlib import Path

import pytest

from otp_stream.otlp import COLLECTOR_URLS
from otp_stream.settings import Settings, find_warnings, load, read_tenants, tenant_warnings

KEY = "c9f1a67be0d24f8893aa51c7"
SAFE = {
    "rabbitmq_url": "amqps://u:n8Vq2x@h/", "secret_key": KEY, "smtp_host": "relay.example.com", "smtp_user": "u",
    "smtp_pass": "n8Vq2x", "sender_email": "s@example.com",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _empty(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (*Settings.model_fields, "node_env", "sslkeylogfile", "otel_exporter_otlp_endpoint"):
        monkeypatch.delenv(name.upper(), raising=False)


NEVER_RIGHT = [
    ({"rabbitmq_url": "amqps://u:n8Vq2x@h/?no_verify_ssl=1"}, "RABBITMQ_URL: no_verify_ssl"),
    ({"rabbitmq_url": "amqps://u:n8Vq2x@h/?no_verify_ssl=true"}, "RABBITMQ_URL: no_verify_ssl"),
    ({"rabbitmq_url": "amqps://u:n8Vq2x@h/?no_verify_ssl="}, "RABBITMQ_URL: no_verify_ssl"),
    ({"rabbitmq_url": "AMQPS://u:n8Vq2x@h/?%6eo_verify_ssl=1"}, "RABBITMQ_URL: no_verify_ssl"),
    ({"redis_url": "rediss://h/0?ssl_cert_reqs=none"}, "REDIS_URL: ssl_cert_reqs"),
    ({"redis_url": "rediss://h/0?ssl_cert_reqs=optional"}, "REDIS_URL: ssl_cert_reqs"),
    ({"redis_url": "REDISS://h/0?ssl_check_hostname=No"}, "REDIS_URL: ssl_cert_reqs"),
    ({"redis_url": "rediss://h/0?ssl_ciphers=ALL:%40SECLEVEL=0"}, "REDIS_URL: ssl_ciphers"),
    ({"redis_url": "rediss://h/0?ssl_ciphers=DEFAULT%40SECLEVEL=0"}, "REDIS_URL: ssl_ciphers"),
    ({"redis_url": "rediss://h/0?ssl_ciphers=aNULL:%40SECLEVEL=0"}, "REDIS_URL: ssl_ciphers"),
    ({"smtp_tls": "none"}, "SMTP_TLS: none sends codes unencrypted"),
    (
        {"smtp_fallback_urls": "smtp://127.0.0.1?tls=none,smtp://b.example?tls=none"},
        "SMTP_FALLBACK_URLS: tls=none sends",
    ),
]


@pytest.mark.parametrize(("values", "text"), NEVER_RIGHT)
@pytest.mark.parametrize("environment", ["development", "staging"])
def test_what_turns_tls_off_is_named_at_start(values: dict[str, str], text: str, environment: str) -> None:
    settings, problems = load(app_env=environment, **(SAFE | values))
    assert problems == []
    [warning] = find_warnings(settings)
    assert warning.startswith(text)
    assert "; " in warning  # and the fix


@pytest.mark.parametrize(("values", "text"), NEVER_RIGHT)
def test_what_turns_tls_off_is_refused_in_production(values: dict[str, str], text: str) -> None:
    _, [problem] = load(app_env="production", **(SAFE | values))
    assert problem.startswith(text)
    assert problem.endswith("refused in production")


def test_a_file_with_the_keys_of_tls_is_named_and_refused_in_production(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSLKEYLOGFILE", "/tmp/keys")
    [warning] = find_warnings(load(**SAFE)[0])
    assert warning.startswith("SSLKEYLOGFILE: anyone who reads that file")
    assert load(app_env="production", **SAFE)[1] == [f"{warning}; this is refused in production"]


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"rabbitmq_url": "amqp://u:n8Vq2x@h/"}, "RABBITMQ_URL: amqp://"),
        ({"redis_url": "redis://h/0"}, "REDIS_URL: redis://"),
        ({"redis_url": "redis://h/0?ssl_cert_reqs=none"}, None),
        ({"rabbitmq_url": "amqp://u:n8Vq2x@127.0.0.1/", "redis_url": "redis://localhost/0"}, ""),
        ({"redis_url": "unix:///run/redis.sock", "smtp_host": "127.0.0.1", "smtp_tls": "none"}, ""),
        ({"redis_url": "rediss://h/0?ssl_ciphers=ECDHE%2BAESGCM&ssl_min_version=772&ssl_check_hostname=True"}, ""),
    ],
)
@pytest.mark.parametrize("environment", ["development", "staging", "production"])
def test_connections_without_tls_to_other_hosts_are_named_in_every_environment(
    values: dict[str, str], name: str | None, environment: str
) -> None:
    settings, problems = load(app_env=environment, **(SAFE | values))
    assert len(problems) == (name is None)
    warnings = find_warnings(settings) if name is not None else []
    assert [it.partition(" sends")[0] for it in warnings] == ([name] if name else [])


@pytest.mark.parametrize("name", COLLECTOR_URLS)
@pytest.mark.parametrize(
    ("url", "named"), [("http://c:4318", True), ("http://[::1]:4318", False), ("https://c", False)]
)
def test_a_collector_without_tls_on_another_host_is_named(
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    url: str,
    named: bool,  # noqa: FBT001
) -> None:
    monkeypatch.setenv(name, url)
    settings, problems = load(app_env="production", **SAFE)
    assert problems == []
    assert [it.partition(":")[0] for it in find_warnings(settings)] == [name] * named


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"rabbitmq_url": "amqps://h/?no_verify_ssl=1&no_verify_ssl=0"}, "RABBITMQ_URL: names an option twice"),
        ({"redis_url": "rediss://h/0?ssl_cert_reqs=none&ssl_cert_reqs=required"}, "REDIS_URL: names an option twice"),
        ({"redis_url": "rediss://h/0?ssl_min_version=769"}, "REDIS_URL: has an ssl_min_version other than 771"),
        ({"redis_url": "rediss://h/0?ssl_min_version=0"}, "REDIS_URL: has an ssl_min_version other than 771"),
        ({"redis_url": "rediss://h/0?ssl_check_hostname=maybe"}, "REDIS_URL: has an ssl_check_hostname other than"),
        ({"redis_url": "rediss://h/0?ssl_check_hostname="}, "REDIS_URL: has an ssl_check_hostname other than"),
        ({"redis_url": "rediss://h/0?ssl_ciphers=none-such"}, "REDIS_URL: has ssl_ciphers that OpenSSL does not know"),
        ({"smtp_oauth_token_url": "http://login.example/token"}, "SMTP_OAUTH_TOKEN_URL: must start with https://"),
    ],
)
def test_options_that_hide_or_lower_the_protection_are_refused(values: dict[str, str], text: str) -> None:
    _, [problem] = load(**(SAFE | values))
    assert problem.startswith(text)


def test_a_tenant_s_relay_without_tls_is_named_with_the_tenant_and_refused_in_production(tmp_path: Path) -> None:
    path = tmp_path / "tenants.toml"
    path.write_text(
        '[tenants.shop]\nsmtp_host = "relay.shop.example"\nsmtp_tls = "none"\nsmtp_auth = "none"\n[tenants.same]\n'
        'reply_to = "a@example.com"\n'
    )
    settings, problems = load(tenants_file=path, **SAFE)
    assert problems == []
    tenants, problems = read_tenants(settings)
    assert problems == []
    [warning] = tenant_warnings(settings, tenants)
    assert warning.startswith("TENANTS_FILE: [tenants.shop] smtp_tls: none sends codes unencrypted to another host")
    _, [problem] = read_tenants(load(app_env="production", tenants_file=path, **SAFE)[0])
    assert problem == f"{warning}; this is refused in production"
