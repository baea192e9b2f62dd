"""A worker with tenants: its file, and jobs of tenants."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smtp_relay import ScriptedRelay
from worker import job


def tenants_toml(tenants: Mapping[str, Mapping[str, object]], **top: object) -> str:
    """Return TENANTS_FILE."""
    lines = [f"{key} = {_value(value)}" for key, value in top.items()]
    for name, keys in tenants.items():
        lines += [f'[tenants."{name}"]', *(f"{key} = {_value(value)}" for key, value in keys.items())]
    return "\n".join(lines) + "\n"


def _value(value: object) -> str:
    return f"'{value}'" if isinstance(value, str | Path) else str(value)


def at(relay: ScriptedRelay, **more: object) -> dict[str, object]:
    """Return the keys of a tenant with its own relay."""
    own = {"smtp_host": "127.0.0.1", "smtp_port": relay.port, "smtp_tls": "none", "smtp_auth": "none"}
    return {**own, **more}


def write(path: Path, content: str) -> None:
    """Replace a file in one step, as an operator should."""
    other = path.with_suffix(".new")
    other.write_text(content)
    other.replace(path)


def job_of(tenant: str | None, number: int = 0, **more: Any) -> bytes:
    """Return the body of a job of a tenant. Each number is another recipient."""
    metadata = {**more.pop("metadata", {}), **({"tenant": tenant} if tenant is not None else {})}
    return job(
        f"{tenant or 'user'}{number}@example.com",
        jobId=f"{tenant}-{number}",
        timestamp=time.time_ns() // 1_000_000,
        metadata=metadata,
        **more,
    )
