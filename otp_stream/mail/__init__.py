"""E-mails: templates, and the bytes of a message."""

from .composer import Composer
from .identity import MailIdentity
from .templates import TemplateError

__all__ = ["Composer", "MailIdentity", "TemplateError"]
