"""A worker names in its log, at start, what turns TLS off or leaves it out."""

from pathlib import Path

from conftest import Stage

WITHOUT_TLS = {
    "REDIS_URL": "redis://redis.invalid/0",
    "SMTP_FALLBACK_URLS": "smtp://relay.invalid?tls=none",
    "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector.invalid:4318",
    "SSLKEYLOGFILE": "/dev/null",
}
SHOP = '[tenants.{}]\nsmtp_host = "relay.shop.invalid"\nsmtp_tls = "none"\nsmtp_auth = "none"\n'


async def test_each_connection_without_tls_is_named_at_start_and_a_tenant_s_also_later(
    stage: Stage, tmp_path: Path
) -> None:
    tenants = tmp_path / "tenants.toml"
    tenants.write_text(SHOP.format("first"))
    worker = stage.worker(**WITHOUT_TLS, TENANTS_FILE=str(tenants))
    await worker.start(ready=False)
    for text in (
        "REDIS_URL: redis:// sends passwords and codes unencrypted to another host; use rediss://",
        "SMTP_FALLBACK_URLS: tls=none sends codes unencrypted to relay.invalid; leave it out",
        "OTEL_EXPORTER_OTLP_ENDPOINT: http:// sends telemetry and OTEL_EXPORTER_OTLP_HEADERS unencrypted",
        "SSLKEYLOGFILE: anyone who reads that file can decrypt passwords and codes; unset it",
        "TENANTS_FILE: [tenants.first] smtp_tls: none sends codes unencrypted to another host; use starttls",
    ):
        await worker.wait_log(text)
    await worker.wait_log("consuming")
    tenants.write_text(SHOP.format("first") + SHOP.format("second").replace("shop", "other"))
    await worker.wait_log("TENANTS_FILE: [tenants.second] smtp_tls: none sends codes unencrypted to another host")
    assert worker.log.count("[tenants.first] smtp_tls: none") == 1
