"""Secrets and certificates of a relay that change while connections to it are opened."""

import shutil
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from certificates import Authority
from oauth_relay import USER, relay_of
from smtp_relay import ScriptedRelay, config, send
from structlog.testing import capture_logs
from token_server import CLIENT, SCOPE, TokenServer

from otp_stream.core.outcome import Accepted, Unavailable
from otp_stream.relay import OAuthConfig, RelayConfig, Rotation, SmtpRelay, oauth

OLD, NEW = "g7Qw-old-1f", "k3Zx-new-8d"


class Secrets:
    """A relay's configuration, of which `refresh` makes the next one the current one."""

    def __init__(self, *configs: RelayConfig) -> None:
        self.configs = list(configs)
        self.refreshed = 0

    def current(self) -> RelayConfig:
        return self.configs[0]

    async def refresh(self) -> None:
        self.refreshed += 1
        if len(self.configs) > 1:
            self.configs.pop(0)

    @asynccontextmanager
    async def client(self) -> AsyncIterator[SmtpRelay]:
        smtp = SmtpRelay(replace(self.configs[0], rotation=Rotation(self.current, self.refresh)))
        try:
            yield smtp
        finally:
            await smtp.close(grace_s=0.2)


def passwords(relay: ScriptedRelay, *passwords: str) -> Secrets:
    return Secrets(*(config(relay, user="mailer", password=it) for it in passwords))


@pytest.fixture
def server() -> Iterator[TokenServer]:
    with TokenServer() as server:
        yield server


@pytest.mark.parametrize("mechanisms", ["PLAIN", "SCRAM-SHA-256 CRAM-MD5 PLAIN LOGIN"])
async def test_a_refused_login_is_tried_again_at_once_if_the_password_has_changed(mechanisms: str) -> None:
    async with ScriptedRelay(login=("mailer", NEW), mechanisms=mechanisms) as relay:
        secrets = passwords(relay, OLD, NEW)
        async with secrets.client() as smtp:
            assert isinstance(await send(smtp), Accepted)
            assert smtp.state()[0].circuit_breaker == "closed"
        assert secrets.refreshed == 1


async def test_a_refused_login_is_not_tried_again_if_the_password_is_the_same() -> None:
    async with ScriptedRelay(login=("mailer", NEW), mechanisms="PLAIN") as relay:
        secrets = passwords(relay, OLD)
        async with secrets.client() as smtp:
            assert isinstance(await send(smtp), Unavailable)
        assert (secrets.refreshed, relay.commands().count("AUTH")) == (1, 1)


async def test_after_a_change_a_refused_login_is_tried_without_a_pause() -> None:
    async with ScriptedRelay(login=("mailer", NEW), mechanisms="PLAIN LOGIN") as relay:
        secrets = passwords(relay, OLD)
        async with secrets.client() as smtp:
            assert isinstance(await send(smtp), Unavailable)
            assert smtp.state()[0].circuit_breaker == "open"
            secrets.configs = [replace(secrets.configs[0], password=NEW)]
            smtp.retry_logins()
            # well below the first pause, which is 5 s
            assert isinstance(await send(smtp, life_ms=4_000), Accepted)
        # each mechanism may be tried again
        assert [line.split()[1] for _, line in relay.log if line.startswith("AUTH")] == ["PLAIN", "LOGIN", "PLAIN"]


async def test_no_password_that_a_relay_quotes_is_shown_whichever_is_current() -> None:
    async with ScriptedRelay(login=("mailer", "x"), mechanisms="PLAIN") as relay:
        relay.always("auth", f"535 5.7.8 {OLD} or {NEW} is wrong")
        secrets = passwords(relay, OLD, NEW)
        async with secrets.client() as smtp:
            outcome = await send(smtp)
            assert isinstance(outcome, Unavailable)
            error = smtp.state()[0].error
            assert error is not None
            assert not any(password in text for password in (OLD, NEW) for text in (error, outcome.error))


@pytest.mark.parametrize("name", ["client_secret", "refresh_token"])
async def test_a_new_secret_for_access_tokens_is_used_at_once(server: TokenServer, name: str) -> None:
    async with relay_of(server) as relay:
        given = {"token_url": server.url, "scope": SCOPE, "refresh_token": server.refresh_token, **CLIENT}
        old, new = OAuthConfig(USER, **given), OAuthConfig(USER, **given | {name: NEW})
        if name == "client_secret":
            server.client["client_secret"] = NEW
        else:
            server.refresh_token = NEW
        secrets = Secrets(*(config(relay, user=USER, oauth=it) for it in (old, new)))
        async with secrets.client() as smtp:
            assert isinstance(await send(smtp), Accepted)
        assert [it[name] for it in server.requests] == [given[name], NEW]


async def test_a_refresh_token_that_the_server_replaced_is_kept_until_its_file_changes(
    server: TokenServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oauth, "_REFUSED_S", 0)
    async with relay_of(server) as relay:
        first = OAuthConfig(USER, server.url, scope=SCOPE, refresh_token=server.refresh_token, **CLIENT)
        secrets = Secrets(config(relay, user=USER, oauth=first))
        async with secrets.client() as smtp:
            for number in range(1, 4):
                assert isinstance(await send(smtp), Accepted)
                server.revoked.add(f"token-{number}")
                if number == 2:
                    server.refresh_token = NEW
                    secrets.configs = [config(relay, user=USER, oauth=replace(first, refresh_token=NEW))]
                relay.cut()
        assert [it["refresh_token"] for it in server.requests] == ["refresh-0", "refresh-1", NEW]


def requiring(authority: Authority) -> ssl.SSLContext:
    """The TLS of a relay that requires a certificate of this authority."""
    context = authority.server("127.0.0.1")
    context.load_verify_locations(authority.ca_file)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


async def test_renewed_certificate_files_are_used_for_new_connections(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "new").mkdir()
    old, new = Authority(tmp_path / "old"), Authority(tmp_path / "new")
    files = [tmp_path / name for name in ("ca.pem", "worker.pem", "worker.key")]

    def install(authority: Authority) -> None:
        for source, file in zip((authority.ca_file, *authority.issue("worker")), files, strict=True):
            shutil.copy(source, file)

    install(old)
    with capture_logs() as logs:
        async with ScriptedRelay(tls=requiring(old), mode="starttls") as relay:
            smtp = SmtpRelay(config(relay, tls="starttls", ca_file=files[0], certificate=(files[1], files[2])))
            assert isinstance(await send(smtp), Accepted)
            # a key without its certificate: the earlier pair stays in use
            shutil.copy(new.issue("worker")[1], files[2])
            for _ in range(2):
                relay.cut()
                assert isinstance(await send(smtp), Accepted)
            install(new)
            relay.tls = requiring(new)
            relay.cut()
            assert isinstance(await send(smtp), Accepted)
            await smtp.close(grace_s=0.2)
    assert [it["event"].partition(":")[0] for it in logs] == [
        "changed certificate files cannot be used", "new certificate files"
    ]  # fmt: skip
