"""Settings from given environment variables, without those of this machine."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from otp_stream.settings import Settings, load


def clear_settings(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove every setting from the environment, and change to a folder without `.env`."""
    monkeypatch.chdir(folder)
    for name in ("NODE_ENV", *map(str.upper, Settings.model_fields)):
        monkeypatch.delenv(name, raising=False)


def load_settings(
    given: Mapping[str, str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Settings, list[str]]:
    """Return the settings of an environment with these variables alone, and the problems in them."""
    clear_settings(folder, monkeypatch)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    return load()
