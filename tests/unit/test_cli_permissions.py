"""`otp-stream topology permissions`: the commands that it prints, and `--apply` that is interrupted."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli import here

from otp_stream.checks.users import User
from otp_stream.cli import audit, permissions


class Interrupted:
    """RabbitMQ's users, when Ctrl-C is pressed after the first one was created."""

    def __init__(self, _api: object) -> None:
        pass

    async def exists(self, user: User) -> bool:
        if user.role.name != "producer":
            raise KeyboardInterrupt
        return False

    async def apply(self, _user: User, _password: str, report: Callable[[str], object]) -> None:
        report("created")


async def nothing(*_: object) -> None:
    """Do nothing."""


def test_a_generated_password_is_printed_when_the_command_is_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def talk(_: object, work: Callable[[Any], Any]) -> Any:
        return asyncio.run(work(None))

    monkeypatch.setattr(permissions, "Users", Interrupted)
    monkeypatch.setattr(permissions, "talk", talk)
    monkeypatch.setattr(permissions.ManagementApi, "verify", nothing)
    monkeypatch.setattr(audit, "_publish", nothing)
    monkeypatch.setattr(permissions.secrets, "token_urlsafe", lambda _: "generated0815")
    ran = here(tmp_path, "topology", "permissions", "--apply", RABBITMQ_URL="amqp://admin:secret@127.0.0.1/")
    assert ran.code == 130
    assert "amqp://otp-producer:generated0815@127.0.0.1/" in ran.out


def test_the_commands_for_the_user_of_the_url_are_printed_but_not_applied(tmp_path: Path) -> None:
    words, url = ("topology", "permissions", "--worker", "otp-worker"), "amqp://otp-worker:secret@127.0.0.1/"
    shown = here(tmp_path, *words, RABBITMQ_URL=url)
    assert shown.code == 0, shown.out
    assert "rabbitmqctl set_permissions -p / otp-worker" in shown.out
    refused = here(tmp_path, *words, "--apply", RABBITMQ_URL=url)
    assert refused.code == 2
    assert "--worker otp-worker: is the user of RABBITMQ_URL" in refused.out
