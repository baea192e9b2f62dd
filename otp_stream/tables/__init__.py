"""Keyed state in the Faust sense: what was sent and who is at it, the newest codes, windowed counts."""

from .ask import Asker
from .memory import MemoryTables
from .tables import Tables

__all__ = ["Asker", "MemoryTables", "Tables"]
