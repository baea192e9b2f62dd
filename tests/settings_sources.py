"""Has pydantic-settings examine the type of each setting once in a process, not each time that settings are loaded.

That took most of the 10 ms of a load, and a fifth of the CPU time of the unit tests.
"""

from collections.abc import Callable
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_settings.sources import EnvSettingsSource, PydanticBaseEnvSettingsSource


def _once(method: Callable[..., Any]) -> Callable[..., Any]:
    found: dict[tuple[Any, ...], tuple[FieldInfo, Any]] = {}

    def cached(self: Any, field: FieldInfo, *names: str) -> Any:
        key = (type(self), id(field), *names)
        if key not in found:
            found[key] = (field, method(self, field, *names))  # the field is kept, so that no other one gets its id
        return found[key][1]

    return cached


PydanticBaseEnvSettingsSource._extract_field_info = _once(PydanticBaseEnvSettingsSource._extract_field_info)
EnvSettingsSource._field_is_complex = _once(EnvSettingsSource._field_is_complex)
