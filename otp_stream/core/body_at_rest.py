"""What a broker may store of a message body: no code in plain text, if there are keys to seal it with."""

from typing import Any

from pydantic_core import to_json

from .code import read_code
from .lenient_json import loads
from .masking import contains_secret
from .otp_job import KeyMissingError, OtpJob
from .sealed_body import Content, is_sealed, open_body, seal_body
from .sealed_code import CODE_FIELDS, FIELD, SNAKE, key_id, seal_code
from .sealing_keys import NoKeyError, SealingKeys
from .secret_search import MAX_SEARCHED


def at_rest(content: Content, keys: SealingKeys) -> Content:
    """Return a body without its code in plain text. Without keys, the body stays as it is.

    A job gets `otpSealed` in place of `otp`. A body is sealed as a whole if it is not a job, if it is large, or if it
    has the code in another place as well. A code that was sealed with another than the first key is sealed again.
    """
    if not keys:
        return content
    try:
        if is_sealed(content.body):
            open_body(keys, content.body)
            return content
        job = OtpJob.from_bytes(content.body, keys=keys)
        fields: dict[str, Any] = loads(content.body)
        rest = {name: value for name, value in fields.items() if name not in CODE_FIELDS}
        others = to_json(rest).decode()
    except (KeyMissingError, NoKeyError):
        # it can be opened once the key is back; only by a producer's mistake has it a plain code as well
        return seal_body(keys, content) if b'"otp"' in content.body else content
    except (ValueError, RecursionError):
        return seal_body(keys, content)
    token = fields.get(FIELD) or fields.get(SNAKE)
    if read_code(fields.get("otp")) is not None or key_id(token) != keys.first.kid:
        token = seal_code(keys, job.otp, job.email, job.job_id, job.metadata.tenant)
    sealed = to_json({**rest, FIELD: token})
    if len(sealed) > MAX_SEARCHED or contains_secret(others, "", job.otp, partial=True):
        return seal_body(keys, content)
    return content._replace(body=sealed)
