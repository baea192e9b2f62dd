"""E-mails: templates, and the bytes of a message."""

from .brand import Brand
from .composer import Composer
from .identity import MailIdentity
from .templates import TemplateError

__all__ = ["Brand", "Composer", "MailIdentity", "TemplateError"]
