"""Texts about a refused or failed connection to RabbitMQ, with the fix."""

import shlex
from urllib.parse import unquote, urlsplit

from aiormq.exceptions import ConnectionClosed, ConnectionNotAllowed, ProbableAuthenticationError

from .core.masking import scrub

_MAX_TEXT = 200
"""Maximum characters of an error's own text."""


def virtual_host(url: str) -> str:
    """Return the virtual host in an AMQP URL."""
    return unquote(urlsplit(url).path[1:]) or "/"


def user(url: str) -> str:
    """Return the user who logs in."""
    return unquote(urlsplit(url).username or "guest")


def refusal(error: BaseException, url: str) -> tuple[str, str] | None:
    """Return what the broker refuses, as a predicate whose subject is the broker, and the fix.

    Returns `None` if the error is not a refusal.
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
    """Return why there is no connection, as a predicate whose subject is the broker."""
    if found := refusal(error, url):
        return "; ".join(found)
    if isinstance(error, ConnectionClosed):
        return f"closes the connection ({error_text(error, url)}); see RabbitMQ's log"
    if isinstance(error, TimeoutError) and not str(error):
        return "does not answer in time; is the port right, does a firewall drop packets?"
    return f"does not answer ({error_text(error, url)})"


def error_text(error: BaseException, url: str) -> str:
    """Return the text of an error without the password of `url`, or the name of its type if it has no text."""
    name, password = user(url), urlsplit(url).password or ""
    # a password that equals the user's name, such as guest, would hide the name as well
    secrets = [password, unquote(password)] if password != name else []
    return scrub(str(error) or type(error).__name__, *secrets, limit=_MAX_TEXT)
