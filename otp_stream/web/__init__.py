"""The HTTP side: health, metrics, the AsyncAPI document and the operations page."""

from .routes import Sources, routes

__all__ = ["Sources", "routes"]
