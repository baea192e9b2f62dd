"""Secrets that change in their files: which content is used, and what is logged about the rest."""

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs
from structlog.typing import EventDict

from otp_stream.core.sealing_keys import new_jwk
from otp_stream.settings import RotatedSecrets, Settings, load, rotated_secrets

KEY = "c9f1a67be0d24f8893aa51c7"
SAFE = {"sender_email": "a@example.com", "smtp_host": "127.0.0.1", "smtp_user": "u", "worker": True}
FIRST = {
    "RABBITMQ_URL": "amqp://otp:k3Zx9q@rabbit.example/shop",
    "REDIS_URL": "redis://otp:k3Zx9q@redis.example/2",
    "SMTP_PASS": "k3Zx9q",
    "SMTP_FALLBACK_URLS": "smtp://u:k3Zx9q@relay.example, smtps://relay2.example",
    "SECRET_KEY": KEY,
    "HTTP_TOKEN": "Vq3Zx9qk8Rt5wL2m",
}
IN_USE, UNUSABLE, RESTART = (
    "new secret: new connections use it",
    "secret file cannot be used: the earlier secret stays in use",
    "secret file has changed: restart the worker to use it",
)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rotated_secrets, "SETTLE_S", 0)
    monkeypatch.setattr(rotated_secrets, "POLL_S", 0.01)


@pytest.fixture
def logs() -> Iterator[list[EventDict]]:
    with capture_logs() as logs:
        yield logs


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> RotatedSecrets:
    for name, value in FIRST.items():
        (tmp_path / name).write_text(value)
        monkeypatch.setenv(f"{name}_FILE", str(tmp_path / name))
    settings, problems = load(_env_file=None, **SAFE)
    assert problems == []
    return RotatedSecrets(settings)


def value(settings: Settings, name: str) -> str:
    secret: SecretStr = getattr(settings, name.lower())
    return secret.get_secret_value()


@pytest.mark.parametrize(
    ("name", "content", "used"),
    [
        ("SMTP_PASS", "n8Vq2x", "n8Vq2x"),
        ("SMTP_PASS", "n8Vq2x\r\n", "n8Vq2x"),
        ("SMTP_PASS", "\ufeff 'n8Vq2x'\n", "n8Vq2x"),
        ("RABBITMQ_URL", "amqp://other:n8Vq2x@rabbit.example:5672/shop", None),
        ("REDIS_URL", "redis://redis.example:6379/2?username=other&password=n8Vq2x", None),
        ("SMTP_FALLBACK_URLS", "smtp://v:n8Vq2x@relay.example, smtps://relay2.example", None),
    ],
)
async def test_a_new_secret_is_used(
    secrets: RotatedSecrets, logs: list[EventDict], tmp_path: Path, name: str, content: str, used: str | None
) -> None:
    before = secrets.settings
    (tmp_path / name).write_text(content)
    await secrets.refresh()
    await secrets.refresh()
    assert value(secrets.settings, name) == (used or content)
    assert value(before, name) == FIRST[name]
    assert logs == [{"event": IN_USE, "log_level": "info", "setting": f"{name}_FILE"}]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("SMTP_PASS", b"", "is empty"),
        ("SMTP_PASS", b" \r\n", "is empty"),
        (
            "SMTP_PASS",
            b"one\ntwo\n",
            "SMTP_PASS: contains a line break or another control character; set one value only",
        ),
        ("SMTP_PASS", b"\xff\xfen8Vq2x", "is not encoded as UTF-8"),
        ("RABBITMQ_URL", b"amqp://otp:n8V", "RABBITMQ_URL: has a port that is not a number"),
        ("RABBITMQ_URL", b"n8Vq2x", "RABBITMQ_URL: must start with"),
        ("REDIS_URL", b"redis://otp:n8/Vq2x@redis.example/2", "REDIS_URL: must end with a database number"),
        ("SMTP_FALLBACK_URLS", b"smtp://u@relay.example", "SMTP_FALLBACK_URLS: entry 1 must have both"),
    ],
)
async def test_a_content_that_cannot_be_used_changes_nothing_and_is_logged_once(
    secrets: RotatedSecrets, logs: list[EventDict], tmp_path: Path, name: str, content: bytes, problem: str
) -> None:
    before = secrets.settings
    (tmp_path / name).write_bytes(content)
    for _ in range(3):
        await secrets.refresh()
    assert secrets.settings is before
    assert [(it["event"], it["setting"]) for it in logs] == [(UNUSABLE, f"{name}_FILE")]
    assert logs[0]["problem"].startswith(problem)
    assert "n8V" not in str(logs)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("RABBITMQ_URL", "amqp://otp:k3Zx9q@other.example/shop", "more than user and password is different"),
        ("RABBITMQ_URL", "amqp://otp:k3Zx9q@rabbit.example/other", "more than user and password is different"),
        ("RABBITMQ_URL", "amqps://otp:k3Zx9q@rabbit.example/shop", "more than user and password is different"),
        ("REDIS_URL", "redis://otp:k3Zx9q@redis.example/3", "more than user and password is different"),
        ("SMTP_FALLBACK_URLS", "smtp://u:k3Zx9q@relay.example", "other relays; only users and passwords can change"),
        ("SECRET_KEY", f"{KEY}9,{KEY}", "this secret is read at start only"),
        ("HTTP_TOKEN", "Vq3Zx9qk8Rt5wL2n", "this secret is read at start only"),
    ],
)
async def test_what_needs_a_restart_is_logged_once(
    secrets: RotatedSecrets, logs: list[EventDict], tmp_path: Path, name: str, content: str, reason: str
) -> None:
    before = secrets.settings
    (tmp_path / name).write_text(content)
    for _ in range(3):
        await secrets.refresh()
    assert secrets.settings is before
    assert logs == [{"event": RESTART, "log_level": "warning", "setting": f"{name}_FILE", "reason": reason}]


async def test_a_file_may_be_missing_or_a_folder_for_a_while(
    secrets: RotatedSecrets, logs: list[EventDict], tmp_path: Path
) -> None:
    file = tmp_path / "SMTP_PASS"
    file.unlink()
    await secrets.refresh()
    await secrets.refresh()
    file.mkdir()
    await secrets.refresh()
    file.rmdir()
    os.mkfifo(file)
    await secrets.refresh()
    file.unlink()
    file.write_text("n8Vq2x")
    await secrets.refresh()
    assert [(it["event"], it.get("problem")) for it in logs] == [
        (UNUSABLE, "does not exist"), (UNUSABLE, "is not a file"), (IN_USE, None)
    ]  # fmt: skip
    assert value(secrets.settings, "SMTP_PASS") == "n8Vq2x"


async def test_a_symbolic_link_may_be_moved_to_another_folder(
    secrets: RotatedSecrets, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for version in ("one", "two"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "pass").write_text(f"n8Vq2x-{version}")
    (tmp_path / "SMTP_PASS").unlink()
    (tmp_path / "SMTP_PASS").symlink_to(Path("data") / "pass")
    for version in ("one", "two"):
        (tmp_path / "next").symlink_to(version)
        (tmp_path / "next").replace(tmp_path / "data")
        await secrets.refresh()
        assert value(secrets.settings, "SMTP_PASS") == f"n8Vq2x-{version}"


async def test_a_file_that_is_being_written_is_read_again(
    secrets: RotatedSecrets, logs: list[EventDict], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    in_thread = rotated_secrets.in_thread

    async def written_after_the_first_read(*read: Any) -> Any:
        found = await in_thread(*read)
        (tmp_path / "SMTP_PASS").write_text("n8Vq2x")
        return found

    (tmp_path / "SMTP_PASS").write_text("n8V")
    monkeypatch.setattr(rotated_secrets, "in_thread", written_after_the_first_read)
    await secrets.refresh()
    assert secrets.settings.smtp_pass == SecretStr(FIRST["SMTP_PASS"])
    await secrets.refresh()
    assert value(secrets.settings, "SMTP_PASS") == "n8Vq2x"
    assert len(logs) == 1


async def test_a_change_back_is_a_change(secrets: RotatedSecrets, logs: list[EventDict], tmp_path: Path) -> None:
    for content in ("n8Vq2x", FIRST["SMTP_PASS"]):
        (tmp_path / "SMTP_PASS").write_text(content)
        await secrets.refresh()
    assert secrets.settings.smtp_pass == SecretStr(FIRST["SMTP_PASS"])
    assert len(logs) == 2


async def test_watching_reports_each_change(secrets: RotatedSecrets, tmp_path: Path) -> None:
    changes: asyncio.Queue[set[str]] = asyncio.Queue()
    watching = asyncio.create_task(secrets.watch(lambda it: changes.put_nowait(set(it))))
    (tmp_path / "SMTP_PASS").write_text("n8Vq2x")
    assert await asyncio.wait_for(changes.get(), 10) == {"smtp_pass"}
    (tmp_path / "REDIS_URL").write_text("redis://otp:n8Vq2x@redis.example/2")
    await secrets.refresh()  # by a login that was refused, for example
    assert await asyncio.wait_for(changes.get(), 10) == {"redis_url"}
    watching.cancel()


async def test_a_request_does_not_wait_for_the_next_poll(
    secrets: RotatedSecrets, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(rotated_secrets, "POLL_S", 1000)
    changes: asyncio.Queue[set[str]] = asyncio.Queue()
    watching = asyncio.create_task(secrets.watch(lambda it: changes.put_nowait(set(it))))
    await asyncio.sleep(0.05)
    (tmp_path / "SMTP_PASS").write_text("n8Vq2x")
    secrets.request()
    assert await asyncio.wait_for(changes.get(), 10) == {"smtp_pass"}
    watching.cancel()


async def test_files_that_cannot_be_read_in_time_delay_no_one_for_long(
    secrets: RotatedSecrets, logs: list[EventDict], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rotated_secrets, "_READ_S", 0.01)
    monkeypatch.setattr(rotated_secrets, "in_thread", lambda *_: asyncio.Future())
    before = secrets.settings
    await asyncio.wait_for(secrets.refresh(), 10)
    await asyncio.wait_for(secrets.refresh(), 10)
    assert secrets.settings is before
    assert [it["event"].partition(":")[0] for it in logs] == ["secret files cannot be read in time"]


async def test_an_unexpected_error_is_logged_and_raised_to_no_one(
    secrets: RotatedSecrets, logs: list[EventDict], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise RuntimeError("n8Vq2x")

    monkeypatch.setattr(rotated_secrets, "in_thread", fail)
    await secrets.refresh()
    assert [(it["event"].partition(":")[0], it["error"]) for it in logs] == [
        ("secret files were not read", "RuntimeError")
    ]  # fmt: skip
    assert "n8V" not in str(logs)


async def test_user_and_password_may_change_together(
    monkeypatch: pytest.MonkeyPatch, logs: list[EventDict], tmp_path: Path
) -> None:
    for name in ("user", "pass"):
        (tmp_path / name).write_text("k3Zx9q")
        monkeypatch.setenv(f"SMTP_{name.upper()}_FILE", str(tmp_path / name))
    without = {name: it for name, it in SAFE.items() if name != "smtp_user"}
    secrets = RotatedSecrets(load(_env_file=None, secret_key=KEY, **without)[0])
    for name in ("user", "pass"):
        (tmp_path / name).write_text(f"n8Vq2x-{name}")
    await secrets.refresh()
    assert (secrets.settings.smtp_user, value(secrets.settings, "smtp_pass")) == ("n8Vq2x-user", "n8Vq2x-pass")
    assert [it["setting"] for it in logs] == ["SMTP_USER_FILE", "SMTP_PASS_FILE"]


async def test_without_secret_key_a_new_password_is_used_and_its_effect_is_named(
    monkeypatch: pytest.MonkeyPatch, logs: list[EventDict], tmp_path: Path
) -> None:
    (tmp_path / "pass").write_text("k3Zx9q")
    monkeypatch.setenv("SMTP_PASS_FILE", str(tmp_path / "pass"))
    secrets = RotatedSecrets(load(_env_file=None, **SAFE)[0])
    (tmp_path / "pass").write_text("n8Vq2x")
    await secrets.refresh()
    assert [it["event"].partition(":")[0] for it in logs] == ["new secret", "SECRET_KEY is not set"]


async def test_in_production_a_password_that_is_easy_to_guess_is_not_used(
    monkeypatch: pytest.MonkeyPatch, logs: list[EventDict], tmp_path: Path
) -> None:
    (tmp_path / "pass").write_text("k3Zx9q")
    monkeypatch.setenv("SMTP_PASS_FILE", str(tmp_path / "pass"))
    values = {"app_env": "production", "secret_key": KEY, "rabbitmq_url": "amqps://otp:k3Zx9q@rabbit.example/"}
    settings, problems = load(_env_file=None, **SAFE, **values)
    assert problems == []
    secrets = RotatedSecrets(settings)
    (tmp_path / "pass").write_text("changeme")
    await secrets.refresh()
    assert secrets.settings is settings
    assert logs[0]["problem"].startswith("SMTP_PASS: is a placeholder or easy to guess")


async def test_new_sealing_keys_are_used_for_the_next_job_and_bad_ones_change_nothing(
    monkeypatch: pytest.MonkeyPatch, logs: list[EventDict], tmp_path: Path
) -> None:
    old, new, file = new_jwk("oct"), new_jwk("p256"), tmp_path / "keys"
    file.write_text(json.dumps(old))
    monkeypatch.setenv("SEALING_KEYS_FILE", str(file))
    settings, problems = load(_env_file=None, **SAFE, smtp_pass="k3Zx9q")
    assert problems == []
    secrets = RotatedSecrets(settings)
    assert secrets.settings.sealing is secrets.settings.sealing
    for content in ("{}", json.dumps({**old, "k": "AAAA"}), json.dumps([old])):
        file.write_text(content)
        await secrets.refresh()
    assert [it.kid for it in secrets.settings.sealing.keys] == [old["kid"]]
    file.write_text(json.dumps({"keys": [new, old]}, indent=2))
    await secrets.refresh()
    assert [it.kid for it in secrets.settings.sealing.keys] == [new["kid"], old["kid"]]
    assert [it["event"] for it in logs] == [UNUSABLE] * 3 + ["new secret: new jobs use it"]
    assert not any(old["k"] in str(it) for it in logs)


def test_a_value_that_takes_precedence_over_a_file_is_not_replaced_by_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "pass").write_text("k3Zx9q")
    monkeypatch.setenv("SMTP_PASS_FILE", str(tmp_path / "pass"))
    assert load(_env_file=None, smtp_pass="n8Vq2x")[0].secret_files == {}
    assert load(_env_file=None)[0].secret_files == {"smtp_pass": tmp_path / "pass"}
