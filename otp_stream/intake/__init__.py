"""HTTP intake: jobs over HTTP, for programs that do not speak AMQP."""

from .openapi import openapi
from .routes import PREFIX, Intake, document_routes, intake_route

__all__ = ["PREFIX", "Intake", "document_routes", "intake_route", "openapi"]
