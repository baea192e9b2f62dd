"""Keyed state in the Faust sense: sent records and claims, the newest codes, windowed counts."""

from .job_statuses import JobStatuses
from .keys import FORGET_FLAG, KeyBuilder, TenantLimits
from .memory import MemoryTables
from .ranked_values import RankedValues
from .redis_connection import RedisConfig
from .tables import Tables

__all__ = [
    "FORGET_FLAG",
    "JobStatuses",
    "KeyBuilder",
    "MemoryTables",
    "RankedValues",
    "RedisConfig",
    "Tables",
    "TenantLimits",
]
