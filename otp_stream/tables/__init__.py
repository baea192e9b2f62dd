"""Keyed state in the Faust sense: what was sent, and who is at it."""

from .memory import SentInMemory

__all__ = ["SentInMemory"]
