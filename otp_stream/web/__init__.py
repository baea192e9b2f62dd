"""The HTTP side: health, metrics, the AsyncAPI document and the operations page."""

from .probe import Probe
from .routes import Sources, routes

__all__ = ["Probe", "Sources", "routes"]
