"""Texts for a refused or failed connection to RabbitMQ: what happened and what to do."""

import shlex
from urllib.parse import unquote, urlsplit

from aiormq.exceptions import ConnectionClosed, ConnectionNotAllowed, ProbableAuthenticationError

from .core.masking import scrub

_LONGEST = 200
"""Characters of an error's own text."""


def virtual_host(url: str) -> str:
    """Return the virtual host in an AMQP URL."""
    return unquote(urlsplit(url).path[1:]) or "/"


def user(url: str) -> str:
    """Return the user who logs in."""
    return unquote(urlsplit(url).username or "guest")


def refusal(error: BaseException, url: str) -> tuple[str, str] | None:
    """Return what the broker refuses, as the end of a sentence that begins with it, and what to do.

    `None` if it does not refuse anything.
    """
    name = user(url)
    match error:
        case ProbableAuthenticationError():
            fix = f"correct RABBITMQ_URL, or: {shlex.join(['rabbitmqctl', 'change_password', name])}"
            if name == "guest":
                fix += "; guest may log in over loopback only: create a user for otp-stream"
            return f"refuses the login of {name}", fix
        case ConnectionNotAllowed():
            text = f"has no virtual host {virtual_host(url)}, or {name} may not use it ({error_text(error, url)})"
            fix = f"correct RABBITMQ_URL, or: {shlex.join(['rabbitmqctl', 'add_vhost', virtual_host(url)])}"
            return text, f"{fix}, and set permissions for {name} there"
        case _:
            return None


def no_connection(error: BaseException, url: str) -> str:
    """Return why there is no connection, as the end of a sentence that begins with the broker."""
    if found := refusal(error, url):
        return "; ".join(found)
    if isinstance(error, ConnectionClosed):
        return f"closes the connection ({error_text(error, url)}); see RabbitMQ's log"
    if isinstance(error, TimeoutError) and not str(error):
        return "does not answer in time; is the port right, does a firewall drop packets?"
    return f"does not answer ({error_text(error, url)})"


def error_text(error: BaseException, url: str) -> str:
    """Return the text of an error without the password of `url`, or else the name of its type."""
    name, password = user(url), urlsplit(url).password or ""
    # a password that equals the user's name, as guest's, cannot be distinguished from it
    secrets = [password, unquote(password)] if password != name else []
    return scrub(str(error) or type(error).__name__, *secrets, limit=_LONGEST)
