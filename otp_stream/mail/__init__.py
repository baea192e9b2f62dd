"""E-mails: templates, and the bytes of a message."""

from .brand import Brand
from .composer import Composer
from .identity import MailIdentity
from .templates import TemplateError
from .watched_templates import WatchedTemplates

__all__ = ["Brand", "Composer", "MailIdentity", "TemplateError", "WatchedTemplates"]
