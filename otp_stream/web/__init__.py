"""HTTP: health, metrics, the AsyncAPI document and the web pages."""

from .probe import Probe
from .routes import Sources, routes

__all__ = ["Probe", "Sources", "routes"]
