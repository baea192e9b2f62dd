"""The tenant that `metadata.tenant` names."""

from math import isfinite

DEFAULT = "default"
"""What pages and metrics call the tenant of the environment's settings. A job may name it, too."""


def tenant_name(value: object) -> str:
    """Return the tenant as text, the same for 1, 1.0, "1" and " 1 "; empty if it is not a tenant."""
    if isinstance(value, float):
        value = int(value) if value.is_integer() else str(value) if isfinite(value) else ""
    return str(value).strip() if isinstance(value, str | int) and not isinstance(value, bool) else ""


def named_tenant(value: object) -> str:
    """Return the tenant as `tenant_name`; empty for the default one also if it is named."""
    name = tenant_name(value)
    return "" if name == DEFAULT else name
