"""The code of a job as a JWE, which opens only for the recipient, the job and the tenant for which it was sealed."""

from typing import Any, NamedTuple, cast

from pydantic.config import JsonDict

from .address import is_address, trimmed, wire_address
from .code import read_code
from .jwe import JweError, parse
from .lenient import read_job_id
from .sealing_keys import SealingKeys
from .tenant import named_tenant, tenant_name

FIELD, SNAKE = NAMES = ("otpSealed", "otp_sealed")
CODE_FIELDS = ("otp", *NAMES)
"""The fields of a job that contain its code, in plain text or sealed."""
MARK = b'ealed"'
"""In every body with a sealed code, under either name, unless the name is written with escapes."""
PLACEHOLDER = "sealed"
"""Stands for the code until the other fields are read: the address and the id decide whether it may be opened."""
_MAX_TOKEN = 16 * 1024
"""Bytes of the longest token, which has room for the longest address, job id and code."""
SCHEMA: JsonDict = {
    "type": "string",
    "description": "The code as a compact JWE (RFC 7516), in place of `otp`: `dir` or `ECDH-ES` with `A256GCM`. Its "
    "protected header has `kid`, and `email` and `jobId` as the job has them; a `tenant` must be `metadata.tenant`.",
    "pattern": r"^\s*[A-Za-z0-9_-]+\.\.[A-Za-z0-9_-]{16}\.[A-Za-z0-9_-]*\.[A-Za-z0-9_-]{21}[AQgw]\s*$",
    "maxLength": _MAX_TOKEN,
}
"""As JSON schema. The code is the plaintext, in UTF-8."""


class Codes(NamedTuple):
    """The fields of a job of which one or two contain its code."""

    fields: dict[str, Any]
    """With a placeholder for the code, if it is in `token`."""
    token: object
    """The sealed code; `None` if it is not needed."""
    ignored: str | None
    """The field of a second code, which is ignored."""

    @classmethod
    def of(cls, fields: dict[str, Any]) -> "Codes":
        """Choose the plain code if it is valid, otherwise the sealed one: a person gets the code in either case."""
        token = fields.get(FIELD) or fields.get(SNAKE)
        given = fields.get("otp")
        if token is None or token == "":
            return cls(fields, None, None)
        if read_code(given) is not None:
            return cls(fields, None, FIELD)
        return cls({**fields, "otp": PLACEHOLDER}, token, "otp" if given else None)


def seal_code(keys: SealingKeys, code: str, email: str, job_id: str | None, tenant: object = None) -> str:
    """Seal a code with the first key, for a job with this address, id and `metadata.tenant`."""
    header = {"email": email, "tenant": tenant_name(tenant)}
    return keys.seal(header if job_id is None else {**header, "jobId": job_id}, code.encode()).decode()


def open_code(keys: SealingKeys, token: object, email: str, job_id: str | None, tenant: object = None) -> str:
    """Return the code that was sealed for this recipient and job.

    A producer may leave the tenant out of the protected header, but not name another one: a tenant's own relay would
    get the code. Raises `JweError`, or `NoKeyError`, whose texts complete "otpSealed: …" and quote nothing.
    """
    if not isinstance(token, str):
        raise JweError("must be a string, a compact JWE")
    text = trimmed(token)
    if not text.isascii() or len(text) > _MAX_TOKEN:
        raise JweError("is too long" if text.isascii() else "is not a compact JWE, which is ASCII")
    parsed = parse(text.encode())
    header = parsed.header
    plaintext = keys.open(parsed)
    # compared after the tag is verified, because the header is trusted only then
    if not _is_same_address(header.get("email"), email):
        raise JweError("was sealed for another recipient: email in its protected header must be that of the job")
    sealed_for = header.get("jobId")
    if sealed_for != job_id and (read_job_id(sealed_for) or None) != (job_id or None):
        raise JweError("was sealed for another job: jobId in its protected header must be that of the job")
    if "tenant" in header and tenant_name(header["tenant"]) != tenant_name(tenant):
        raise JweError("was sealed for another tenant: tenant in its protected header must be metadata.tenant")
    try:
        return plaintext.decode()
    except UnicodeDecodeError:
        raise JweError("contains a code that is not UTF-8") from None


def stated_tenant(token: str) -> str | None:
    """Return the tenant for which an opened code was sealed; `None` if its producer has stated none."""
    header = parse(trimmed(token).encode()).header
    return named_tenant(header["tenant"]) if "tenant" in header else None


def key_id(token: object) -> object:
    """Return the kid that a token states, which nothing has verified, or `None`."""
    try:
        return parse(cast("str", token).strip().encode()).header.get("kid")
    except (ValueError, AttributeError):
        return None


def is_token(value: object) -> bool:
    """Return whether a value is a compact JWE, whatever is in it."""
    try:
        parse(cast("str", value).strip().encode())
    except (ValueError, AttributeError):
        return False
    return True


def _is_same_address(found: Any, email: str) -> bool:
    """Return whether a text is this wire address, after the changes that are made to the job's `email`."""
    if not isinstance(found, str):
        return False
    if found == email:
        return True
    address = trimmed(found)
    try:
        return is_address(address) and wire_address(address) == email
    except ValueError:
        return False
