"""Secrets from files: `SMTP_PASS_FILE=/run/secrets/smtp` instead of `SMTP_PASS`, for every secret setting."""

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from dotenv import dotenv_values
from pydantic import SecretStr

from .base_fields import ENV_FILE
from .settings import Settings

_MAX_BYTES = 65_536


def secret_names() -> list[str]:
    """Return the field names of the settings that can be read from a file."""
    # a command is secret because of its arguments, and is not a secret itself; providers such as Amazon SES give a new
    # user with each new password
    return [
        name
        for name, field in Settings.model_fields.items()
        if name == "smtp_user"
        or (
            SecretStr in (field.annotation, *getattr(field.annotation, "__args__", ()))
            and not name.endswith("_command")
        )
    ]


def read_secret_files(*, env_file: bool) -> tuple[dict[str, str], dict[str, Path], list[str]]:
    """Return the secrets that are in files and these files, by field name, and the problems of unusable files.

    `env_file`: whether `.env` may name files, too; the environment takes precedence.
    """
    variables = _upper(os.environ)
    if env_file and ENV_FILE.is_file():
        variables = _upper(dotenv_values(ENV_FILE, encoding="utf-8-sig")) | variables
    found: dict[str, str] = {}
    files: dict[str, Path] = {}
    problems: list[str] = []
    for field in secret_names():
        name, file = field.upper(), f"{field.upper()}_FILE"
        if not variables.get(file):
            continue
        if variables.get(name):
            problems.append(f"{file}: {name} is set, too; set one of them")
            continue
        path = Path(variables[file].strip())
        try:
            found[field] = read_secret(path)
        except ValueError as error:
            problems.append(f"{file}: {error}{place(path)}")
        else:
            files[field] = path
    return found, files, problems


def files_with_secrets(settings: Settings) -> list[Path]:
    """Return all files that may contain secrets, without those that `TENANTS_FILE` names; not all of them exist."""
    keys = (settings.smtp_key_file, settings.smtp_oauth_key_file, settings.smtp_oauth_token_file)
    tables = (settings.tenants_file, settings.http_tokens_file)
    return [ENV_FILE, *settings.secret_files.values(), *filter(None, (*keys, *tables))]


def _upper(variables: Mapping[str, str | None]) -> dict[str, str]:
    return {name.upper(): value for name, value in variables.items() if value}


def exists(path: Path) -> bool:
    """Return whether a file exists. Its name may be too long for the system, and then Python raises an error."""
    with suppress(OSError, ValueError):
        return path.exists()
    return False


def place(path: Path, given: str | None = None) -> str:
    """Return which file cannot be read, for the end of a message; without its name if that may be the secret itself."""
    if Path(given or path).is_absolute() or exists(path):
        return f": {path}"
    return "; it must be the path of a file, such as /run/secrets/name, and not the secret itself"


def read_secret(path: Path) -> str:
    """Return the content. Raises `ValueError`, whose text quotes nothing of it."""
    try:
        if not path.is_file():  # to read a pipe would wait for its writer
            raise ValueError("is not a file" if path.exists() else "does not exist")
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
        text = content.decode("utf-8-sig").strip()
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ValueError("is not encoded as UTF-8") from None
    if len(content) > _MAX_BYTES:
        raise ValueError(f"has more than {_MAX_BYTES} bytes")
    if not text:
        raise ValueError("is empty")
    return text
