"""The JSON Schema of `TENANTS_FILE`."""

from collections.abc import Iterator, Mapping
from typing import Any, get_args

from otp_stream.core.tenant import DEFAULT

from .settings import Settings
from .tenants import FILE_KEYS, KEYS, LONGEST_NAME, MAX_TENANTS, Unknown

_COPIED = {"description", "enum", "minimum", "maximum", "maxLength", "pattern"}


def schema() -> dict[str, Any]:
    """Return the JSON Schema of the file, for editors and `otp-stream tenants check`."""
    known = Settings.model_json_schema()["properties"]
    properties = dict(_properties(known))
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "TENANTS_FILE of otp-stream",
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "unknown": {"enum": list(get_args(Unknown)), "default": "default",
                        "description": "What happens to the jobs of a tenant that is not listed."},
            "tenants": {"type": "object", "maxProperties": MAX_TENANTS,
                        "propertyNames": {"minLength": 1, "maxLength": LONGEST_NAME, "not": {"const": DEFAULT}},
                        "additionalProperties": {"type": "object", "additionalProperties": False,
                                                 "properties": properties}},
        },
    }  # fmt: skip


def _properties(known: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key in KEYS:
        described = {name: it for name, it in known[key].items() if name in _COPIED}
        yield key, described | {"type": _toml_type(known[key])}
    for key, name in FILE_KEYS.items():
        yield key, {"description": f"Path of a file with the value of `{name}`, relative to TENANTS_FILE.",
                    "type": "string"}  # fmt: skip


def _toml_type(described: Mapping[str, Any]) -> str:
    types = [it.get("type") for it in (described, *described.get("anyOf", ()))]
    return next(it for it in types if it and it != "null")  # TOML has no null
