"""Keyed state in the Faust sense: sent records and claims, the newest codes, windowed counts."""

from .keys import KeyBuilder, TenantLimits
from .memory import MemoryTables
from .redis_connection import RedisConfig
from .tables import Tables

__all__ = ["KeyBuilder", "MemoryTables", "RedisConfig", "Tables", "TenantLimits"]
