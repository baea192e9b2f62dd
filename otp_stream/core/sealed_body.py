"""A whole message body as a JWE, for bodies of which no one can tell where their secrets are."""

from typing import NamedTuple

from .jwe import JweError, parse
from .sealing_keys import NoKeyError, SealingKeys

JOSE = "application/jose"
"""The content type of a sealed body (RFC 7515 §9.2.1)."""
START = b"eyJ"
"""The first bytes of every compact JWE, and of no JSON."""

_LONGEST_PROPERTY = 255


class Content(NamedTuple):
    """A message body, and the properties that describe it."""

    body: bytes
    content_type: str | None = None
    content_encoding: str | None = None


def is_sealed(body: bytes) -> bool:
    """Return whether a body looks like a sealed one."""
    return body[:3] == START


def lacks_key(keys: SealingKeys, body: bytes) -> bool:
    """Return whether a body is sealed with a key that is not here: without it, no one can read anything in it."""
    if not is_sealed(body):
        return False
    try:
        open_body(keys, body)
    except NoKeyError:
        return True
    except JweError:
        return False
    return False


def seal_body(keys: SealingKeys, content: Content) -> Content:
    """Seal a body with the first key. The properties that describe it go into the protected header."""
    described = {"cty": content.content_type, "contentEncoding": content.content_encoding}
    header = {name: it for name, it in described.items() if isinstance(it, str) and it.isascii()}
    return Content(keys.seal(header, content.body), JOSE)


def open_body(keys: SealingKeys, body: bytes) -> Content:
    """Return the content of a sealed body. Raises `JweError`, or `NoKeyError`, whose texts complete "body: …"."""
    token = parse(body.strip())
    plaintext = keys.open(token)
    if "email" in token.header:  # a sealed code is no body, although the same key opens it
        raise JweError("is the sealed code of a job, without the job")
    return Content(plaintext, _property(token.header.get("cty")), _property(token.header.get("contentEncoding")))


def _property(value: object) -> str | None:
    """Return a property if AMQP can carry it: otherwise no copy of the message could be published."""
    return value if isinstance(value, str) and value.isascii() and len(value) <= _LONGEST_PROPERTY else None
