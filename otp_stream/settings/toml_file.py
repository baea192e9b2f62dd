"""Reads TOML files, such as `TENANTS_FILE`."""

import tomllib
from pathlib import Path
from typing import Any

MAX_BYTES = 1 << 20


def read_toml(path: Path) -> dict[str, Any]:
    """Return the content of a TOML file. Raises `ValueError`, whose text quotes nothing of it."""
    try:
        if path.exists() and not path.is_file():  # to read a pipe would wait for its writer
            raise ValueError("is not a file")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ValueError(f"has more than {MAX_BYTES} bytes")
        return tomllib.loads(content.decode("utf-8-sig"))
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ValueError("is not encoded as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"is not valid TOML: {str(error)[:200]}") from None
    except RecursionError:
        raise ValueError("is nested too deeply") from None


def content_of(path: Path) -> bytes | None:
    """Return the content for a comparison; `None` if the file cannot be read."""
    try:
        if not path.is_file():
            return None
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except (OSError, ValueError):  # or a path with a null byte
        return None
