"""The settings: every environment variable that the worker reads, in one typed, frozen object."""

from .fallback_relay import FallbackRelay
from .http_tokens import read_http_tokens
from .load import load
from .problems import REQUIRED, REQUIRED_FOR_LOGIN, find_problems, find_warnings, required_for_login
from .rotated_secrets import RotatedSecrets
from .secret_files import files_with_secrets
from .settings import EMBEDDED_BROKER_PORT, Settings
from .tenants import Tenant, Tenants, read_tenants, tenant_warnings
from .watched_http_tokens import WatchedHttpTokens
from .watched_tenants import WatchedTenants

__all__ = [
    "EMBEDDED_BROKER_PORT",
    "REQUIRED",
    "REQUIRED_FOR_LOGIN",
    "FallbackRelay",
    "RotatedSecrets",
    "Settings",
    "Tenant",
    "Tenants",
    "WatchedHttpTokens",
    "WatchedTenants",
    "files_with_secrets",
    "find_problems",
    "find_warnings",
    "load",
    "read_http_tokens",
    "read_tenants",
    "required_for_login",
    "tenant_warnings",
]
