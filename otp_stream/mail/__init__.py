"""All e-mail: templates, and the bytes of a message."""

from .book import TemplateError
from .mailroom import Mailroom

__all__ = ["Mailroom", "TemplateError"]
