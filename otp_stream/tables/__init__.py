"""Keyed state in the Faust sense: sent records and claims, the newest codes, windowed counts."""

from .keys import KeyBuilder
from .memory import MemoryTables
from .tables import Tables

__all__ = ["KeyBuilder", "MemoryTables", "Tables"]
