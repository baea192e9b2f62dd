"""Generated files are up to date with the code."""

import os
from pathlib import Path

import pytest
from generate import generated

ROOT = Path(__file__).parents[2]


GENERATED: dict[Path, str] = generated()


@pytest.mark.parametrize("path", GENERATED, ids=lambda path: path.name)
def test_a_generated_file_is_not_stale(path: Path) -> None:
    assert path.read_text() == GENERATED[path], "stale: run `make generate`"


def test_every_setting_of_the_example_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from otp_stream.settings import load  # noqa: PLC0415

    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith(("SMTP_", "RABBITMQ_", "WORKER", "NODE_ENV", "APP_ENV")):
            monkeypatch.delenv(name)
    (tmp_path / ".env").write_text((ROOT / ".env.example").read_text())
    settings, problems = load()
    assert problems == []
    assert settings.worker
    assert settings.prefetch_count == 200
    assert settings.sender == ("Example", "no-reply@example.com")
