"""Hooks of authentication servers: each is one function from its payload to jobs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from otp_stream.core.hook_signatures import HookSignature, read_webhook, read_zitadel

from .kratos import kratos_jobs
from .logto import logto_jobs
from .payload import Fields, NoCodeError
from .supabase import supabase_jobs
from .zitadel import zitadel_jobs

ReadSignature = Callable[[Mapping[str, str]], HookSignature]
"""Reads the headers of a request. Raises `SignatureError`."""


def _http_error(status: int, detail: str) -> dict[str, Any]:
    """Return an error as Supabase Auth reads it."""
    return {"error": {"http_code": status, "message": detail}}


@dataclass(frozen=True, slots=True)
class Hook:
    """One hook."""

    name: str
    jobs: Callable[[object], list[Fields]]
    """Returns the jobs in a decoded payload. Raises `NoCodeError`."""
    read_signature: ReadSignature | None = None
    """Reads its signature; `None`: it sends a token."""
    error: Callable[[int, str], dict[str, Any]] | None = None
    """Returns the body of an error response; `None`: `application/problem+json`."""


HOOKS: Mapping[str, Hook] = {
    it.name: it
    for it in (
        Hook("supabase", supabase_jobs, read_webhook, _http_error),
        Hook("zitadel", zitadel_jobs, read_zitadel),
        Hook("kratos", kratos_jobs),
        Hook("logto", logto_jobs),
    )
}

__all__ = ["HOOKS", "Fields", "Hook", "NoCodeError"]
